"""Distillation: a trained classifier, the teacher, whose answers a student learns beside the labels.

Legend: B images, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.recipes.classification import ClassificationRecipe, DistillSection
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import open_saved, read_weights

Colours = tuple[
    tuple[float, ...], tuple[float, ...]
]  # mean and standard deviation by which images are normalised


class Teacher:
    """A frozen classifier that sees the student's images, augmented and mixed as they are.

    It is no part of the student's module: neither its weights nor its state are saved, trained or averaged. It moves to
    where the images are when it is first asked.

    Args:
        seen: How the student's images are normalised; the teacher's own are made of them.
    """

    def __init__(self, model: nn.Module, own: Colours, seen: Colours) -> None:
        self.model = model.eval().requires_grad_(False)
        mean, std, seen_mean, seen_std = (torch.tensor(v).view(-1, 1, 1) for v in (*own, *seen))
        self.scale, self.shift = seen_std / std, (seen_mean - mean) / std
        self.is_same = own == seen

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the student sees them -> logits (B, K)."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return self.model(images if self.is_same else images * self.scale + self.shift)


def open_teacher(recipe: ClassificationRecipe, num_classes: int) -> Teacher | None:
    """The teacher of a recipe's `distill` section, if there is one.

    Raises:
        ValueError: timm knows no such model, or the weights are missing, of another model or of other classes.
    """
    section = recipe.distill
    if section is None:
        return None
    if recipe.data.channels != 3:
        channels = {"in_chans": recipe.data.channels}
        section = section.model_copy(update={"options": channels | section.options})
    seen = (recipe.data.mean, recipe.data.std)
    if section.checkpoint == "pretrained":
        return _open_pretrained(section, num_classes, seen)
    path = Path(section.checkpoint)
    if not path.exists():
        raise ValueError(f"distill.checkpoint {path}: no such file or run")
    model = create_model(ModelSection(name=section.teacher, options=section.options), num_classes=num_classes)
    try:
        load_weights(model, read_weights(path), path)
    except ValueError as error:
        raise ValueError(f"distill.teacher={section.teacher} with {num_classes} classes: {error}") from None
    return Teacher(model, _trained_colours(path) or seen, seen)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of logits (B, K) softened by T, averaged over images.

    T² keeps the gradient's scale whatever T is.
    """
    soft = F.log_softmax(student.float() / temperature, dim=1)
    wanted = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(soft, wanted, reduction="batchmean", log_target=True)


def _open_pretrained(section: DistillSection, num_classes: int, seen: Colours) -> Teacher:
    """With timm's weights, which may be downloaded."""
    plain = create_model(ModelSection(name=section.teacher, options=section.options))
    known: Any = getattr(plain, "pretrained_cfg", {})
    if known.get("num_classes") != num_classes:
        raise ValueError(
            f"distill.teacher {section.teacher}: timm's weights know {known.get('num_classes')} classes and the data "
            f"have {num_classes}; fine-tune the teacher first and name its run in distill.checkpoint"
        )
    try:
        model = timm.create_model(section.teacher, pretrained=True, **section.options)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"distill.teacher {section.teacher}: timm's weights could not be loaded ({error})"
        ) from None
    own = (tuple(known["mean"]), tuple(known["std"]))
    return Teacher(model, own if len(own[0]) == len(seen[0]) else seen, seen)


def _trained_colours(path: Path) -> Colours | None:
    """How a run's images were normalised; None if the file does not record it."""
    try:
        recipe = open_saved(path).recipe
    except ValueError:
        return None
    return (recipe.data.mean, recipe.data.std) if isinstance(recipe, ClassificationRecipe) else None
