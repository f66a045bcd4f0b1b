"""When a layer may take a shortcut that only plain eager execution can take."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_plain_eager(*tensors: Tensor) -> bool:
    """Whether nothing but autograd watches: no compiler, exporter, tracer, function transform, tensor subclass,
    dispatch mode (as flop counters and fake tensors are) or forward-mode differentiation.

    Kernels unknown to those watchers, and results remembered from an earlier call, are for this case alone.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta for t in tensors)
    )
