"""When a shortcut may be taken: nobody watches the tensors, nobody listens to the layers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.nn.modules.module import _has_any_global_hook

_PLAIN = (Tensor, nn.Parameter)


def is_plain_eager(*tensors: Tensor) -> bool:
    """Whether nothing but autograd watches: no compiler, exporter, tracer, function transform, tensor subclass,
    dispatch mode (flop counters, fake tensors) or forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return (
        not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and all(type(t) in _PLAIN and not t.is_meta for t in tensors)
    )


def are_untouched(layers: Iterable[tuple[nn.Module, type[nn.Module]]]) -> bool:
    """Whether every layer is exactly of its kind and has no hooks, so that its weights may be used without calling it.

    Adapters (LoRA), parametrizations, patched `forward` methods and hooks all answer no.
    """
    return not _has_any_global_hook() and all(
        type(layer) is kind
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and "forward" not in layer.__dict__
        for layer, kind in layers
    )


def sizes_are_symbols(height: int, width: int) -> bool:
    """Whether a compiler or exporter is at work that leaves the size of maps open."""
    return torch.compiler.is_compiling() and not (has_static_value(height) and has_static_value(width))


def is_compiled() -> bool:
    """Whether a compiler is at work that can take operators of our own; an exporter cannot."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def needs_padding(height: int, width: int) -> bool:
    """Whether a graph is being made that cannot hold the groups of a map of one size."""
    return sizes_are_symbols(height, width) or torch.compiler.is_dynamo_compiling()


def smaller(a: int, b: int) -> Any:
    """`min(a, b)`, without a branch that would specialise a graph of symbolic sizes."""
    return torch.sym_min(a, b) if sizes_are_symbols(a, b) else min(a, b)


def larger(a: int, b: int) -> Any:
    """`max(a, b)`, without a branch that would specialise a graph of symbolic sizes."""
    return torch.sym_max(a, b) if sizes_are_symbols(a, b) else max(a, b)


def if_at_most(value: Any, limit: int, then: int, otherwise: int) -> Any:
    """`then if value <= limit else otherwise`, without a branch that would specialise a graph of symbolic sizes."""
    if not sizes_are_symbols(value, limit):
        return then if value <= limit else otherwise
    is_at_most = torch.sym_min(1, torch.sym_max(0, limit + 1 - value))
    return otherwise + (then - otherwise) * is_at_most


def takes_blocks(x: Tensor) -> bool:
    """Whether `kernels.block` may take a block's inference: in eager mode, or as an operator of a compiled graph."""
    if torch.compiler.is_compiling():
        return not (torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"))
    return is_plain_eager(x)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Full precision for what is computed in it."""
    # the meta device has none; asking PyTorch which devices have would break a graph (2.11)
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
