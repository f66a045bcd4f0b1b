"""Results that follow from a module's weights, kept until a weight changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from crossformerpp.kernels.execution import is_plain_eager

MAX_KEPT = 18  # per module or table: a map that does not divide has up to nine kinds of groups

# module -> (weights, their versions and addresses, results by key)
_kept: WeakKeyDictionary[nn.Module, tuple[list[Tensor], list[Any], dict[Hashable, Tensor]]] = (
    WeakKeyDictionary()
)


def remember(module: nn.Module, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives from the module's weights, in evaluation without gradients kept for the next call.

    A result is dropped when a parameter is replaced or its version counter moves; `forget` drops all. An in-place edit
    through `.data` moves no counter: call `forget`, `train` or `eval` after one. Nothing is kept while hooks listen to
    a layer within, or where version counters do not exist.
    """
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute()
    layers = [module]
    for layer in layers:  # faster than module.modules()
        layers.extend(child for child in layer._modules.values() if child is not None)
    weights: list[Tensor] = [p for layer in layers for p in layer._parameters.values() if p is not None]
    if (
        not weights  # the replicas of nn.DataParallel have none
        or not is_plain_eager(*weights)
        or any(p.is_inference() for p in weights)
        or not all(map(_is_plain, layers))
        or _has_any_global_hook()
    ):
        return compute()
    versions = [(p._version, p.data_ptr()) for p in weights]
    old_weights, old_versions, known = _kept.get(module, ([], [], {}))  # read once: threads may replace it
    if versions != old_versions or any(p is not old for p, old in zip(weights, old_weights, strict=True)):
        known = {}
    if key not in known:
        # An inference tensor kept here would fail in a later forward under plain no_grad.
        with torch.inference_mode(False), torch.no_grad():
            known = {**dict(list(known.items())[1 - MAX_KEPT :]), key: compute()}
        _kept[module] = (weights, versions, known)
    return known[key]


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's result follows from its weights alone, and nobody listens to it: no adapter, no hook."""
    return (
        type(layer).__module__.startswith(("torch.nn.", "crossformerpp."))
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and "forward" not in layer.__dict__
    )


def forget(module: nn.Module) -> None:
    """Drop what is kept for a module."""
    _kept.pop(module, None)
