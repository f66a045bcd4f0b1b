"""Matrix products and the MLP, from the fastest library at hand.

On CPUs `torch.nn.functional.linear` multiplies float32 matrices with MKL, which on some processors reaches half the
speed of oneDNN and on others all of it (docs/performance.md). PyTorch ships both; `kernels/choice.py` measures which
one to call.

Legend: T rows, K inputs, M outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossformerpp.kernels.choice import choose, mode, rows_class
from crossformerpp.kernels.execution import is_plain_eager

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_DTYPES = {torch.float32}
if _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.add(torch.bfloat16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`: x (…, K), weight (M, K), bias (M,) -> (…, M)."""
    if not _can_take_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, bias)):
        return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))
    return _product(x, weight, bias)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    """`F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)`: (…, K) -> (…, K).

    In training GELU's output, the widest tensor of a block, is computed again in the backward pass instead of kept.
    """
    if torch.is_grad_enabled():
        hidden = linear(x, weight1, bias1)
        if not is_plain_eager(hidden, weight2):
            return F.linear(F.gelu(hidden), weight2, bias2)
        return _GeluLinear.apply(hidden, weight2, bias2)
    if not _can_take_onednn(x, weight1) or _fastest_gelu(x, weight1, bias1) == "default":
        return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)
    rows = x.reshape(-1, x.shape[-1])
    return linear(_onednn_gelu(rows, weight1, bias1), weight2, bias2).view(*x.shape[:-1], len(weight2))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _fastest_product(x, weight, bias) == "default":
        return F.linear(x, weight, bias)
    return _onednn_product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def _onednn_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows·weightᵀ + bias."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _onednn_gelu(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gelu(rows·weightᵀ + bias) in one pass."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none")


def _fastest_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    T = rows_class(x.numel() // x.shape[-1])
    layout = () if weight.is_contiguous() else ("transposed",)

    def candidates() -> dict[str, Callable[[], Any]]:
        rows, own, added = _sample(x, T), weight.detach(), None if bias is None else bias.detach()
        return {
            "default": lambda: F.linear(rows, own, added),
            "oneDNN": lambda: _onednn_product(rows, own, added),
        }

    return choose(("linear", T, *weight.shape, *layout, x.dtype), "oneDNN", candidates)


def _fastest_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    T = rows_class(x.numel() // x.shape[-1])

    def candidates() -> dict[str, Callable[[], Any]]:
        rows = _sample(x, T)
        return {
            "default": lambda: F.gelu(linear(rows, weight, bias)),
            "oneDNN": lambda: _onednn_gelu(rows, weight, bias),
        }

    return choose(("linear and gelu", T, *weight.shape, x.dtype), "oneDNN", candidates)


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ·x: grad (T, M), x (T, K) -> (M, K)."""
    if torch.is_grad_enabled() or not _can_take_onednn(grad, x):
        return grad.t() @ x
    T = rows_class(len(grad))

    def candidates() -> dict[str, Callable[[], Any]]:
        some, rows = _sample(grad, T), _sample(x, T)
        return {"default": lambda: some.t() @ rows, "oneDNN": lambda: _onednn_weight_gradient(some, rows)}

    choice = choose(("weight gradient", T, grad.shape[1], x.shape[1], x.dtype), "oneDNN", candidates)
    return grad.t() @ x if choice == "default" else _onednn_weight_gradient(grad, x)


def _onednn_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    (T, M), K = grad.shape, x.shape[1]
    if K < M < T:  # oneDNN copies the first factor, so that should be the smaller one
        return _onednn_product(x.t(), grad.t()).t().contiguous()
    return _onednn_product(grad.t(), x.t())


def _sample(x: Tensor, rows: int) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1])[:rows]


def _can_take_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and mode() != "default"
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and is_plain_eager(x, weight)
    )


class _Product(torch.autograd.Function):
    """x (T, K), weight (M, K), bias (M,) or None -> x·weightᵀ + bias, (T, M). Differentiable any number of times.

    Each product, forward and backward, is chosen on its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t(), None) if for_x else None,
            _weight_gradient(grad, x) if for_weight else None,
            grad.sum(0) if for_bias and ctx.has_bias else None,
        )


class _GeluLinear(torch.autograd.Function):
    """hidden (…, K), weight (M, K), bias (M,) or None -> linear(gelu(hidden)), (…, M); keeps `hidden` alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.has_bias = bias is not None
        return linear(F.gelu(hidden), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        for_x = of_weight = None
        if for_hidden:
            for_gelu = linear(grad, weight.to(grad.dtype).t(), None)
            for_x = torch.ops.aten.gelu_backward(for_gelu, hidden)
        if for_weight:
            of_weight = _weight_gradient(rows, F.gelu(hidden).reshape(-1, hidden.shape[-1]))
        return for_x, of_weight, rows.sum(0) if for_bias and ctx.has_bias else None
