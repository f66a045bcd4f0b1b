"""The GPU kernels of `map_attention`, in Triton. `kernels.map_attention` is the door; nothing else imports this file.

A program reads one head of one group after the other straight from the map: no map is gathered or transposed, and no
attention map leaves the chip. What all groups share, the bias and the places of their tokens, is computed once. The
backward pass computes the attention maps again.

Legend: B batch, H W map, C = h·D channels, h heads, D head dim, gh gw sides of a group, N = gh·gw ≤ BLOCK its tokens,
I interval.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
_WARPS = {16: 1, 32: 2, 64: 4}  # by tokens of a tile; a larger group takes PyTorch's own kernel


@triton.jit
def _rows(group, tokens, H, W, gh, gw, interval, columns, per_image):
    """Where tokens of a group lie on the maps (row-major, all images), and which of them exist."""
    image, rest = group // per_image, group % per_image
    region, offset = rest // (interval * interval), rest % (interval * interval)
    y = (region // columns * gh + tokens // gw) * interval + offset // interval
    x = (region % columns * gw + tokens % gw) * interval + offset % interval
    return (image.to(tl.int64) * H + y) * W + x, (tokens < gh * gw) & (y < H) & (x < W)


@triton.jit
def _load(start, rows, exist, stride, D: tl.constexpr):
    """One head of some rows: (BLOCK, D)."""
    return tl.load(start + rows[:, None] * stride + tl.arange(0, D)[None, :], mask=exist[:, None], other=0.0)


@triton.jit
def _store(start, rows, exist, stride, values, D: tl.constexpr):
    places = start + rows[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(places, values.to(start.dtype.element_ty), mask=exist[:, None])


@triton.jit
def _bias(table, head, gh, gw, height, width, HAS_TABLE: tl.constexpr, BLOCK: tl.constexpr):
    """B of Eq. 1 from the table (h, height, width) of offsets, times log₂e; −∞ for keys beyond N: (BLOCK, BLOCK)."""
    tokens = tl.arange(0, BLOCK)
    exist = (tokens < gh * gw)[:, None] & (tokens < gh * gw)[None, :]
    bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    if HAS_TABLE:
        dy = (tokens // gw)[:, None] - (tokens // gw)[None, :] + height // 2
        dx = (tokens % gw)[:, None] - (tokens % gw)[None, :] + width // 2
        places = (head * height + dy) * width + dx
        bias = tl.load(table + places, mask=exist, other=0.0).to(tl.float32) * _LOG2E
    return bias


@triton.jit
def _forward(
    qkv, table, out, lse, num_groups, C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale,
    HAS_TABLE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(QKᵀ/√d + B)·V, and lse = log₂ of the softmax's denominator with scores in base 2."""
    head, share = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    bias = _bias(table, head, gh, gw, height, width, HAS_TABLE, BLOCK)
    for group in range(share, num_groups, tl.num_programs(0) // num_heads):
        rows, exist = _rows(group, tl.arange(0, BLOCK), H, W, gh, gw, interval, columns, per_image)
        q = _load(qkv + head * D, rows, exist, 3 * C, D)
        k = _load(qkv + C + head * D, rows, exist, 3 * C, D)
        v = _load(qkv + 2 * C + head * D, rows, exist, 3 * C, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E) + bias
        scores = tl.where(exist[None, :], scores, -1e30)  # finite: a border group may have no token at all
        highest = tl.max(scores, 1)
        p = tl.exp2(scores - highest[:, None])
        total = tl.sum(p, 1)
        attended = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
        _store(out + head * D, rows, exist, C, attended, D)
        tl.store(lse + rows * num_heads + head, highest + tl.log2(total), mask=exist)


@triton.jit
def _backward(
    qkv, table, out, lse, grad, for_qkv, for_bias,
    num_groups, C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale,
    HAS_TABLE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v, and of the bias (share, h, N, N), summed over a program's groups."""
    head, share = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    tokens = tl.arange(0, BLOCK)
    bias = _bias(table, head, gh, gw, height, width, HAS_TABLE, BLOCK)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(share, num_groups, tl.num_programs(0) // num_heads):
        rows, exist = _rows(group, tokens, H, W, gh, gw, interval, columns, per_image)
        q = _load(qkv + head * D, rows, exist, 3 * C, D)
        k = _load(qkv + C + head * D, rows, exist, 3 * C, D)
        v = _load(qkv + 2 * C + head * D, rows, exist, 3 * C, D)
        do = _load(grad + head * D, rows, exist, C, D)
        o = _load(out + head * D, rows, exist, C, D)
        own_lse = tl.load(lse + rows * num_heads + head, mask=exist, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E) + bias
        p = tl.where(exist[:, None] & exist[None, :], tl.exp2(scores - own_lse[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        ds = p * (dp - delta[:, None])
        summed += ds
        dv = tl.dot(tl.trans(p.to(v.dtype)), do, input_precision=PRECISION)
        ds = ds.to(k.dtype)
        dq = tl.dot(ds, k, input_precision=PRECISION)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        _store(for_qkv + head * D, rows, exist, 3 * C, dq * scale, D)
        _store(for_qkv + C + head * D, rows, exist, 3 * C, dk * scale, D)
        _store(for_qkv + 2 * C + head * D, rows, exist, 3 * C, dv, D)
    if HAS_TABLE:
        N = gh * gw
        places = (
            for_bias + ((share * num_heads + head).to(tl.int64) * N + tokens[:, None]) * N + tokens[None, :]
        )
        tl.store(places, summed, mask=(tokens < N)[:, None] & (tokens < N)[None, :])


@triton.jit
def _table_backward(for_bias, for_table, gh, gw, height, width, BLOCK: tl.constexpr):
    """The gradient of one offset of the table: the sum over the pairs of tokens that lie so far apart."""
    head, offset = tl.program_id(0), tl.program_id(1)
    N, queries = gh * gw, tl.arange(0, BLOCK)
    dy, dx = offset // (2 * gw - 1) - (gh - 1), offset % (2 * gw - 1) - (gw - 1)
    y, x = queries // gw - dy, queries % gw - dx  # of the key
    exist = (queries < N) & (y >= 0) & (y < gh) & (x >= 0) & (x < gw)
    values = tl.load(for_bias + (head * N + queries) * N + y * gw + x, mask=exist, other=0.0)
    tl.store(for_table + (head * height + height // 2 + dy) * width + width // 2 + dx, tl.sum(values, 0))


class _Launch:
    """What the kernels are told of a map and its groups, and how many programs share the groups."""

    def __init__(
        self, qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
    ) -> None:
        B, H, W, _ = qkv.shape
        C = qkv.shape[3] // 3
        columns = -(-W // (gw * interval))
        per_image = -(-H // (gh * interval)) * columns * interval * interval
        height, width = table.shape[1:] if table is not None else (1, 1)
        block = max(16, triton.next_power_of_2(gh * gw))
        # programs that run at once; more would compute the bias more often
        at_once = 16 * _num_processors(qkv.device) // _WARPS[block]
        self.shares = min(B * per_image, max(1, at_once // num_heads))
        places = H, W, gh, gw, interval, columns, per_image
        self.numbers = B * per_image, C, num_heads, *places, height, width, (C // num_heads) ** -0.5
        is_exact = qkv.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        self.constants = {
            "HAS_TABLE": table is not None,
            "D": C // num_heads,
            "BLOCK": block,
            "PRECISION": "ieee" if is_exact else "tf32",
            "num_warps": _WARPS[block],
        }


def forward(
    qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
) -> tuple[Tensor, Tensor]:
    """qkv (B, H, W, 3C) -> the map (B, H, W, C), and lse (B, H, W, h) in float32. Tensors are contiguous."""
    B, H, W, channels = qkv.shape
    launch = _Launch(qkv, table, num_heads, gh, gw, interval)
    out, lse = qkv.new_empty(B, H, W, channels // 3), qkv.new_empty(B, H, W, num_heads, dtype=torch.float32)
    inputs = qkv, qkv if table is None else table
    _forward[launch.shares * num_heads,](*inputs, out, lse, *launch.numbers, **launch.constants)
    return out, lse


def backward(
    grad: Tensor, qkv: Tensor, table: Tensor | None, out: Tensor, lse: Tensor,
    num_heads: int, gh: int, gw: int, interval: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradients of qkv and of the table, from the output's and what `forward` gave. Tensors are contiguous."""
    launch = _Launch(qkv, table, num_heads, gh, gw, interval)
    N = gh * gw
    for_qkv = torch.empty_like(qkv)
    for_bias = qkv.new_empty(launch.shares, num_heads, N, N, dtype=torch.float32)
    inputs = qkv, qkv if table is None else table, out, lse, grad
    _backward[launch.shares * num_heads,](*inputs, for_qkv, for_bias, *launch.numbers, **launch.constants)
    if table is None:
        return for_qkv, None
    for_table = torch.zeros_like(table, dtype=torch.float32)
    _table_backward[num_heads, (2 * gh - 1) * (2 * gw - 1)](
        for_bias.sum(0), for_table, gh, gw, *table.shape[1:], BLOCK=launch.constants["BLOCK"]
    )
    return for_qkv, for_table.to(table.dtype)


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
