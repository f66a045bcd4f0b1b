"""Build the network that a recipe's `model` section names."""

import difflib
from typing import Any

import timm
from torch import nn

from crossformerpp.checkpoints.download import pretrained_file
from crossformerpp.models import weights  # registers our models with timm
from crossformerpp.recipes.schema import ModelSection

weights.find_file = pretrained_file


def create_model(section: ModelSection, **arguments: Any) -> nn.Module:
    """A timm model with the section's options; its weights are fresh.

    Args:
        arguments: What the task adds, e.g. `num_classes` or `features_only`.

    Raises:
        ValueError: timm knows no such model (the nearest name is given), or it takes no such option.
    """
    if not timm.is_model(section.name):
        near = difflib.get_close_matches(section.name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "`timm.list_models()` in Python lists them"
        raise ValueError(f"no model {section.name!r}; {hint}")
    try:
        model: Any = timm.create_model(section.name, **{**section.options, **arguments})
    except TypeError as error:
        raise ValueError(f"model.options of {section.name}: {error}") from None
    if section.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if section.compile:
        model.compile()
    return model


def undecayed(model: nn.Module) -> set[str]:
    """Parameters that the backbone within a model wants without weight decay, besides norms and biases."""
    return {
        f"{prefix}.{name}"
        for prefix, part in model.named_modules()
        if part is not model and hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the keys of a timm classifier's head, which depends on the number of classes."""
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
