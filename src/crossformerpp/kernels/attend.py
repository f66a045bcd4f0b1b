"""Eq. 1 within equal groups, as fast as the machine at hand does it, and never with all attention maps in memory.

Legend: n groups (of all images), N = gh·gw tokens of a group, h heads, d head dim, C = h·d, Q queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossformerpp.kernels.bias import Sides, add_query_rows, query_rows, spread
from crossformerpp.kernels.choice import choose, rows_class
from crossformerpp.kernels.execution import is_plain_eager

# Elements of the scores that are worked on at a time: 4 MB in float32 stay in the cache and take no fresh pages.
_MAX_SCORES = 1 << 20
# Above this a bias (h, N, N) is not spread at once for the fused kernel: 64 MB in float32.
_MAX_BIAS = 1 << 24
_MAX_SAMPLE = 1 << 22  # elements of qkv that kernels are timed with


def attention(
    qkv: Tensor,
    table: Tensor | None,
    num_heads: int,
    sides: Sides,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(QKᵀ/√d + B)·V (Eq. 1) in every group: n N 3C -> n N C.

    The softmax is in float32 whatever the precision. On a CPU PyTorch's fused kernel has no gradient for the bias, and
    in bfloat16 it takes nearly as long as in float32: there products take its place (docs/performance.md).

    Args:
        table: The bias of every offset, from which B is spread (kernels/bias.py); None for no bias.
        sides: gh, gw.
        mask: (n, 1, 1 or N, N), False where a query may not attend to a key; None where it may to all.
        dropout: Of the attention map.
    """
    if mask is None and dropout == 0.0 and _takes_products(qkv, table, num_heads, sides):
        return _AttentionByProducts.apply(qkv, table, num_heads, sides)
    return _fused(qkv, table, num_heads, sides, mask, dropout)


def _fused(
    qkv: Tensor,
    table: Tensor | None,
    num_heads: int,
    sides: Sides,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attention` by PyTorch's own kernel."""
    # unbatched, the fused kernel declines
    bias = None if table is None else spread(table, sides, qkv.dtype)[None]
    if mask is not None:
        # the lowest finite number: −inf would make a group of padding alone NaN
        bias = torch.where(mask, 0.0 if bias is None else bias, torch.finfo(qkv.dtype).min).to(qkv.dtype)
    q, k, v = _heads(qkv, num_heads).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout).transpose(1, 2)
    if torch.compiler.is_exporting():
        # else the graph would hold the memory layout of the kernel that this machine chose
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2)


def _heads(qkv: Tensor, num_heads: int) -> Tensor:
    """n N 3C -> 3 n h N d."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def _takes_products(qkv: Tensor, table: Tensor | None, num_heads: int, sides: Sides) -> bool:
    if not qkv.is_cpu or torch.is_autocast_enabled("cpu") or not is_plain_eager(qkv):
        return False
    if torch.is_grad_enabled():
        return qkv.dtype == torch.float32
    groups, N, channels = qkv.shape
    num_scores = num_heads * N**2  # of a group
    if num_scores > _MAX_BIAS:
        return True
    if num_scores > _MAX_SCORES or qkv.dtype not in (torch.float32, torch.bfloat16) or groups == 0:
        return False
    n = rows_class(groups)

    def candidates() -> dict[str, Callable[[], Tensor]]:
        some = qkv[: min(n, max(1, _MAX_SAMPLE // qkv[0].numel()))]
        return {
            "default": lambda: _fused(some, table, num_heads, sides),
            "products": lambda: _AttentionByProducts.apply(some, table, num_heads, sides),
        }

    fixed = "products" if qkv.dtype == torch.bfloat16 else "default"
    shapes = "attention", n, N, channels, num_heads, qkv.dtype
    return choose(shapes, fixed, candidates) == "products"


class _AttentionByProducts(torch.autograd.Function):
    """Attention in portions of groups and query rows; the backward pass computes the attention maps again, so that
    none is kept: qkv (n, N, 3C), table (h, ·, ·) or None -> (n, N, C)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor | None, num_heads: int, sides: Sides) -> Tensor:
        ctx.save_for_backward(qkv, table)
        ctx.num_heads, ctx.sides = num_heads, sides
        q, k, v = _heads(qkv, num_heads).contiguous().unbind(0)
        out = torch.empty_like(q)
        for bias, rows in _query_blocks(table, q, sides):
            for some in _portions(len(q), num_heads * (rows.stop - rows.start) * q.shape[2]):
                weights = _attention_weights(q[some, :, rows], k[some], bias)
                out[some, :, rows] = weights.to(v.dtype) @ v[some]
        return out.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, table = ctx.saved_tensors
        n, N, _ = qkv.shape
        q, k, v = _heads(qkv, ctx.num_heads).contiguous().unbind(0)
        grad = grad.reshape(n, N, ctx.num_heads, -1).transpose(1, 2).contiguous()  # n h N d
        for_q, for_k, for_v = (torch.zeros_like(q) for _ in range(3))
        for_table = None if table is None else torch.zeros_like(table)
        scale = q.shape[-1] ** -0.5
        for bias, rows in _query_blocks(table, q, ctx.sides):
            for_bias = None if bias is None else torch.zeros_like(bias)
            for some in _portions(n, ctx.num_heads * (rows.stop - rows.start) * N):
                weights = _attention_weights(q[some, :, rows], k[some], bias)
                out_grad = grad[some, :, rows]
                for_weights = out_grad @ v[some].transpose(-2, -1)
                for_scores = weights * (for_weights - (for_weights * weights).sum(-1, keepdim=True))
                for_q[some, :, rows] = (for_scores @ k[some]) * scale
                for_k[some] += (for_scores.transpose(-2, -1) @ q[some, :, rows]) * scale
                for_v[some] += weights.transpose(-2, -1) @ out_grad
                if for_bias is not None:
                    for_bias += for_scores.sum(0)
            if for_table is not None and for_bias is not None:
                add_query_rows(for_table, for_bias, ctx.sides, rows)
        for_qkv = torch.stack([for_q, for_k, for_v]).permute(1, 3, 0, 2, 4)  # -> n N 3 h d
        return for_qkv.reshape(qkv.shape), for_table, None, None


def _attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """q (p, h, Q, d), k (p, h, N, d), bias (h, Q, N) -> softmax(qkᵀ/√d + bias), (p, h, Q, N) in float32."""
    scale = q.shape[-1] ** -0.5
    if bias is None or q.dtype != torch.float32:
        scores = (
            (q @ k.transpose(-2, -1)).float().mul_(scale)
        )  # rounded to the tokens' precision, as under autocast
        return (scores if bias is None else scores.add_(bias)).softmax(-1)
    scores = bias.expand(len(q), *bias.shape).clone(memory_format=torch.contiguous_format).flatten(0, 1)
    scores.baddbmm_(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return scores.softmax(-1).unflatten(0, (-1, len(bias)))


def _query_blocks(table: Tensor | None, q: Tensor, sides: Sides) -> Iterator[tuple[Tensor | None, slice]]:
    """(bias (h, Q, N) in float32, the queries) of as many rows of a group at a time as there is room for."""
    gh, gw = sides
    _, h, N, _ = q.shape
    step = max(1, _MAX_SCORES // (h * gw * N))
    for first in range(0, gh, step):
        last = min(first + step, gh)
        bias = None
        if table is not None:
            is_whole = last - first == gh
            bias = spread(table, sides, torch.float32) if is_whole else query_rows(table, sides, first, last)
        yield bias, slice(first * gw, last * gw)


def _portions(n: int, num_scores: int) -> Iterator[slice]:
    """As many groups at a time as there is room for scores."""
    step = max(1, _MAX_SCORES // num_scores)
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))
