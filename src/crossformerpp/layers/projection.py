"""A linear layer that multiplies with the fastest library at hand.

On CPUs `torch.nn.functional.linear` multiplies float32 matrices with MKL, which on AMD processors reaches about half
the speed of oneDNN (measured in docs/performance.md). PyTorch ships both; here oneDNN is asked directly.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.execution import is_plain_eager

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_TYPES = {torch.float32}
if _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _TYPES.add(torch.bfloat16)


class Linear(nn.Linear):
    """`nn.Linear`, its result to float32 rounding: (…, in_features) -> (…, out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def with_gelu(self, x: Tensor) -> Tensor:
        """GELU of the result."""
        return linear_gelu(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, K), weight (N, K), bias (N,) -> (…, N)."""
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    return _OneDNNProduct.apply(rows, weight, bias).view(*x.shape[:-1], len(weight))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU of `linear`; in one pass where oneDNN multiplies and no gradient is wanted."""
    if torch.is_grad_enabled() or not _takes_onednn(x, weight):
        return F.gelu(linear(x, weight, bias))
    rows = x.reshape(-1, x.shape[-1])
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none")
    return out.view(*x.shape[:-1], len(weight))


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _TYPES
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and is_plain_eager(x, weight)
    )


class _OneDNNProduct(torch.autograd.Function):
    """x (T, K), weight (N, K), bias (N,) or None -> x·weightᵀ + bias, (T, N). Differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _OneDNNProduct.apply(grad, weight.t(), None) if for_x else None,
            _OneDNNProduct.apply(grad.t(), x.t(), None) if for_weight else None,
            grad.sum(0) if for_bias and ctx.has_bias else None,
        )
