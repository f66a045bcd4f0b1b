"""The GPU kernels of `map_attention`, in Triton. `kernels.map_attention` is the door; nothing else imports this file.

A program reads the tokens of one head in one group straight from the map, so that no map is gathered or transposed,
no bias is spread, and no attention map leaves the chip. Large groups are worked on in tiles of queries and keys with a
running softmax (Dao et al., "FlashAttention"); backward computes the attention maps again.

Legend: B batch, H W map, C = h·D channels, h heads, D head dim, gh gw sides of a group, N = gh·gw its tokens. Scores
are kept in base 2: p = 2^(s − lse).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
_MAX_BLOCK = 64  # tokens of a tile


@triton.jit
def _rows(group, tokens, H, W, gh, gw, interval, columns, per_image):
    """Where tokens of a group lie on the maps (row-major, all images), and which of them exist."""
    image, rest = group // per_image, group % per_image
    region, offset = rest // (interval * interval), rest % (interval * interval)
    y = (region // columns * gh + tokens // gw) * interval + offset // interval
    x = (region % columns * gw + tokens % gw) * interval + offset % interval
    return (image.to(tl.int64) * H + y) * W + x, (tokens < gh * gw) & (y < H) & (x < W)


@triton.jit
def _load(start, rows, exists, stride, D: tl.constexpr):
    """One head of some rows: (BLOCK, D)."""
    return tl.load(start + rows[:, None] * stride + tl.arange(0, D)[None, :], mask=exists[:, None], other=0.0)


@triton.jit
def _store(start, rows, exists, stride, values, D: tl.constexpr):
    places = start + rows[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(places, values.to(start.dtype.element_ty), mask=exists[:, None])


@triton.jit
def _bias(table, head, queries, keys, gh, gw, height, width):
    """B of Eq. 1 in base 2, from the table (h, height, width) of offsets: (BLOCK, BLOCK)."""
    dy = (queries // gw)[:, None] - (keys // gw)[None, :] + height // 2
    dx = (queries % gw)[:, None] - (keys % gw)[None, :] + width // 2
    exists = (queries < gh * gw)[:, None] & (keys < gh * gw)[None, :]
    return tl.load(table + (head * height + dy) * width + dx, mask=exists, other=0.0).to(tl.float32) * _LOG2E


@triton.jit
def _forward(
    qkv, table, out, lse, C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale,
    HAS_TABLE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, group = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    queries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows, exist = _rows(group, queries, H, W, gh, gw, interval, columns, per_image)
    q = _load(qkv + head * D, rows, exist, 3 * C, D)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    summed = tl.zeros([BLOCK, D], tl.float32)
    for first in range(0, gh * gw, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        key_rows, keys_exist = _rows(group, keys, H, W, gh, gw, interval, columns, per_image)
        k = _load(qkv + C + head * D, key_rows, keys_exist, 3 * C, D)
        v = _load(qkv + 2 * C + head * D, key_rows, keys_exist, 3 * C, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E)
        if HAS_TABLE:
            scores += _bias(table, head, queries, keys, gh, gw, height, width)
        scores = tl.where(keys_exist[None, :], scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # a tile of a border group may hold no key at all
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(p, 1)
        summed = summed * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        highest = new
    total = tl.where(exist, total, 1.0)
    _store(out + head * D, rows, exist, C, summed / total[:, None], D)
    tl.store(lse + rows * num_heads + head, highest + tl.log2(total), mask=exist)


@triton.jit
def _p_and_ds(
    q, k, v, grad, lse, delta, bias, exist, keys_exist, scale, PRECISION: tl.constexpr
):  # fmt: skip
    """The attention map again, and the gradient of its scores: (BLOCK, BLOCK) each."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E) + bias
    p = tl.where(exist[:, None] & keys_exist[None, :], tl.exp2(scores - lse[:, None]), 0.0)
    dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    return p, p * (dp - delta[:, None])


@triton.jit
def _queries_side(qkv, out, lse, grad, head, num_heads, C, rows, exist, D: tl.constexpr):
    """What the backward pass needs of queries: q, the output's gradient, lse and Σ out·grad."""
    q = _load(qkv + head * D, rows, exist, 3 * C, D)
    of_out = _load(grad + head * D, rows, exist, C, D)
    o = _load(out + head * D, rows, exist, C, D)
    delta = tl.sum(o.to(tl.float32) * of_out.to(tl.float32), 1)
    return q, of_out, tl.load(lse + rows * num_heads + head, mask=exist, other=0.0), delta


@triton.jit
def _backward(
    qkv, table, out, lse, grad, for_qkv, for_bias, num_groups,
    C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale,
    HAS_TABLE: tl.constexpr, FOR_BIAS: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v of a tile's tokens, for some groups one after the other. Where a tile holds a group
    (WHOLE), the gradient of the bias too, summed over those groups."""
    head, share = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    shares = tl.num_programs(0) // num_heads
    mine = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    N = gh * gw
    bias = tl.zeros([BLOCK, BLOCK], tl.float32)
    if HAS_TABLE and WHOLE:
        bias = _bias(table, head, mine, mine, gh, gw, height, width)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(share, num_groups, shares):
        rows, exist = _rows(group, mine, H, W, gh, gw, interval, columns, per_image)
        my_k = _load(qkv + C + head * D, rows, exist, 3 * C, D)
        my_v = _load(qkv + 2 * C + head * D, rows, exist, 3 * C, D)
        my_q, my_grad, my_lse, my_delta = _queries_side(
            qkv, out, lse, grad, head, num_heads, C, rows, exist, D
        )
        dq = tl.zeros([BLOCK, D], tl.float32)
        dk = tl.zeros([BLOCK, D], tl.float32)
        dv = tl.zeros([BLOCK, D], tl.float32)
        if WHOLE:
            p, ds = _p_and_ds(
                my_q, my_k, my_v, my_grad, my_lse, my_delta, bias, exist, exist, scale, PRECISION
            )
            if FOR_BIAS:
                summed += ds
            ds = ds.to(my_k.dtype)
            dq = tl.dot(ds, my_k, input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds), my_q, input_precision=PRECISION)
            dv = tl.dot(tl.trans(p.to(my_k.dtype)), my_grad, input_precision=PRECISION)
        else:
            for first in range(0, N, BLOCK):
                theirs = first + tl.arange(0, BLOCK)
                their_rows, they_exist = _rows(group, theirs, H, W, gh, gw, interval, columns, per_image)
                q, of_out, their_lse, delta = _queries_side(
                    qkv, out, lse, grad, head, num_heads, C, their_rows, they_exist, D
                )
                if HAS_TABLE:
                    bias = _bias(table, head, theirs, mine, gh, gw, height, width)
                p, ds = _p_and_ds(
                    q, my_k, my_v, of_out, their_lse, delta, bias, they_exist, exist, scale, PRECISION
                )
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
                dv += tl.dot(tl.trans(p.to(q.dtype)), of_out, input_precision=PRECISION)
                k = _load(qkv + C + head * D, their_rows, they_exist, 3 * C, D)
                v = _load(qkv + 2 * C + head * D, their_rows, they_exist, 3 * C, D)
                if HAS_TABLE:
                    bias = _bias(table, head, mine, theirs, gh, gw, height, width)
                p, ds = _p_and_ds(
                    my_q, k, v, my_grad, my_lse, my_delta, bias, exist, they_exist, scale, PRECISION
                )
                dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        _store(for_qkv + head * D, rows, exist, 3 * C, dq * scale, D)
        _store(for_qkv + C + head * D, rows, exist, 3 * C, dk * scale, D)
        _store(for_qkv + 2 * C + head * D, rows, exist, 3 * C, dv, D)
    if FOR_BIAS and WHOLE:
        _store_scores(for_bias, share * num_heads + head, mine, mine, N, summed)


@triton.jit
def _store_scores(to, index, queries, keys, N, values):
    places = to + (index.to(tl.int64) * N + queries[:, None]) * N + keys[None, :]
    tl.store(places, values, mask=(queries < N)[:, None] & (keys < N)[None, :])


@triton.jit
def _bias_backward(
    qkv, table, out, lse, grad, for_bias, num_groups,
    C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias of one tile of a large group, summed over some groups."""
    head, share = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    shares = tl.num_programs(0) // num_heads
    queries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keys = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    bias = _bias(table, head, queries, keys, gh, gw, height, width)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for group in range(share, num_groups, shares):
        rows, exist = _rows(group, queries, H, W, gh, gw, interval, columns, per_image)
        key_rows, keys_exist = _rows(group, keys, H, W, gh, gw, interval, columns, per_image)
        q, of_out, own_lse, delta = _queries_side(qkv, out, lse, grad, head, num_heads, C, rows, exist, D)
        k = _load(qkv + C + head * D, key_rows, keys_exist, 3 * C, D)
        v = _load(qkv + 2 * C + head * D, key_rows, keys_exist, 3 * C, D)
        _, ds = _p_and_ds(q, k, v, of_out, own_lse, delta, bias, exist, keys_exist, scale, PRECISION)
        summed += ds
    _store_scores(for_bias, share * num_heads + head, queries, keys, gh * gw, summed)


@triton.jit
def _table_backward(for_bias, for_table, gh, gw, height, width, BLOCK: tl.constexpr):
    """The gradient of one offset of the table: the sum over all pairs of tokens that lie so far apart."""
    head, offset = tl.program_id(0), tl.program_id(1)
    N = gh * gw
    dy, dx = offset // (2 * gw - 1) - (gh - 1), offset % (2 * gw - 1) - (gw - 1)
    summed = tl.zeros([BLOCK], tl.float32)
    for first in range(0, N, BLOCK):
        queries = first + tl.arange(0, BLOCK)
        y, x = queries // gw - dy, queries % gw - dx  # of the key
        exists = (queries < N) & (y >= 0) & (y < gh) & (x >= 0) & (x < gw)
        places = (head.to(tl.int64) * N + queries) * N + y * gw + x
        summed += tl.load(for_bias + places, mask=exists, other=0.0)
    place = (head * height + height // 2 + dy) * width + width // 2 + dx
    tl.store(for_table + place, tl.sum(summed, 0))


class _Launch:
    """What all kernels are told of a map and its groups."""

    def __init__(
        self, qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
    ) -> None:
        B, H, W, _ = qkv.shape
        C = qkv.shape[3] // 3
        columns = -(-W // (gw * interval))
        per_image = -(-H // (gh * interval)) * columns * interval * interval
        self.num_heads, self.num_groups, self.num_tokens = num_heads, B * per_image, gh * gw
        height, width = table.shape[1:] if table is not None else (1, 1)
        scale = (C // num_heads) ** -0.5
        self.numbers = (C, num_heads, H, W, gh, gw, interval, columns, per_image, height, width, scale)
        self.block = max(16, min(_MAX_BLOCK, triton.next_power_of_2(self.num_tokens)))
        self.tiles = triton.cdiv(self.num_tokens, self.block)
        exact = qkv.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        self.constants = {
            "D": C // num_heads,
            "BLOCK": self.block,
            "PRECISION": "ieee" if exact else "tf32",
            "num_warps": {16: 1, 32: 2}.get(self.block, 4),
        }


def forward(
    qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
) -> tuple[Tensor, Tensor]:
    """qkv (B, H, W, 3C), contiguous -> the map (B, H, W, C), and of every query log₂ Σ 2^s, (B, H, W, h)."""
    B, H, W, _ = qkv.shape
    launch = _Launch(qkv, table, num_heads, gh, gw, interval)
    out, lse = (
        qkv.new_empty(B, H, W, qkv.shape[3] // 3),
        qkv.new_empty(B, H, W, num_heads, dtype=torch.float32),
    )
    _forward[launch.num_groups * num_heads, launch.tiles](
        qkv, qkv if table is None else table, out, lse, *launch.numbers,
        HAS_TABLE=table is not None, **launch.constants,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, qkv: Tensor, table: Tensor | None, out: Tensor, lse: Tensor,
    num_heads: int, gh: int, gw: int, interval: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradients of qkv and of the table, from the output's and what `forward` gave; tensors contiguous."""
    launch = _Launch(qkv, table, num_heads, gh, gw, interval)
    is_whole, programs = launch.tiles == 1, 16 * _num_processors(qkv.device)
    shares = launch.num_groups
    if is_whole and table is not None:  # more programs would sum less each and write more
        shares = min(shares, max(1, programs // (4 if launch.block == _MAX_BLOCK else 1) // num_heads))
    for_qkv, N = torch.empty_like(qkv), launch.num_tokens
    inputs = qkv, qkv if table is None else table, out, lse, grad
    for_bias = qkv.new_empty(shares if is_whole else 0, num_heads, N, N, dtype=torch.float32)
    _backward[shares * num_heads, launch.tiles](
        *inputs, for_qkv, for_bias, launch.num_groups, *launch.numbers,
        HAS_TABLE=table is not None, FOR_BIAS=table is not None, WHOLE=is_whole, **launch.constants,
    )  # fmt: skip
    if table is None:
        return for_qkv, None
    if not is_whole:
        shares = min(launch.num_groups, max(1, programs // 4 // (num_heads * launch.tiles**2)))
        for_bias = qkv.new_empty(shares, num_heads, N, N, dtype=torch.float32)
        _bias_backward[shares * num_heads, launch.tiles, launch.tiles](
            *inputs, for_bias, launch.num_groups, *launch.numbers, **launch.constants
        )
    for_table = torch.zeros_like(table, dtype=torch.float32)
    _table_backward[num_heads, (2 * gh - 1) * (2 * gw - 1)](
        for_bias.sum(0), for_table, gh, gw, *table.shape[1:], BLOCK=128
    )
    return for_qkv, for_table.to(table.dtype)


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
