"""Eq. 1 within the groups of a map, straight on the map, on a GPU.

Legend: B batch, H W map, C = h·d channels, h heads, d head dim, gh gw sides of a group, I interval.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from crossformerpp.kernels.choice import mode
from crossformerpp.kernels.execution import is_plain_eager

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEAD_DIMS = (16, 32, 64, 128)
MAX_TOKENS = 64  # of a group
_HAS_TRITON = find_spec("triton") is not None


def takes_maps(x: Tensor, num_heads: int, gh: int, gw: int) -> bool:
    """Whether `map_attention` does best what attention does with tokens (B, H, W, C) between qkv and proj.

    Large groups, and maps that are one group, take PyTorch's fused kernel (docs/performance.md).
    """
    if not (_HAS_TRITON and x.is_cuda and mode() != "default" and x.shape[3] // num_heads in _HEAD_DIMS):
        return False
    if gh * gw > MAX_TOKENS or (gh, gw) == x.shape[1:3]:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    if dtype not in _DTYPES or torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    return not torch.compiler.is_exporting() if torch.compiler.is_compiling() else is_plain_eager(x)


def map_attention(
    qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
) -> Tensor:
    """softmax(QKᵀ/√d + B)·V (Eq. 1) in every group of a map: B H W 3C -> B H W C.

    Groups are those of `layers/grouping.py`: the map is cut into regions of gh·I × gw·I, and tokens of a region with
    equal offsets modulo I are a group. Differentiable once, by `qkv` and `table`.

    Args:
        gh, gw: Sides of a group, of at most `MAX_TOKENS` tokens.
        table: The bias of every offset (h, ≥ 2gh−1, ≥ 2gw−1), its centre the offset 0; None for no bias.
    """
    return _forward(
        qkv.contiguous(), None if table is None else table.contiguous(), num_heads, gh, gw, interval
    )[0]


@torch.library.custom_op("crossformerpp::map_attention", mutates_args=())
def _forward(
    qkv: Tensor, table: Tensor | None, num_heads: int, gh: int, gw: int, interval: int
) -> tuple[Tensor, Tensor]:
    from crossformerpp.kernels import triton_attention

    return triton_attention.forward(qkv, table, num_heads, gh, gw, interval)


@torch.library.custom_op("crossformerpp::map_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    gh: int,
    gw: int,
    interval: int,
) -> list[Tensor]:
    from crossformerpp.kernels import triton_attention

    gradients = triton_attention.backward(
        grad.contiguous(), qkv, table, out, lse, num_heads, gh, gw, interval
    )
    return [g for g in gradients if g is not None]


@_forward.register_fake
def _(qkv: Tensor, table: Tensor | None, num_heads: int, *cells: int) -> tuple[Tensor, Tensor]:
    B, H, W, channels = qkv.shape
    return qkv.new_empty(B, H, W, channels // 3), qkv.new_empty(B, H, W, num_heads, dtype=torch.float32)


@_backward.register_fake
def _(grad: Tensor, qkv: Tensor, table: Tensor | None, *others: Any) -> list[Tensor]:
    return [torch.empty_like(t) for t in (qkv, table) if t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, table, *ctx.settings = inputs
    ctx.save_for_backward(qkv, table, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    none = (None,) * 6
    if grad is None:
        return none
    for_qkv, *for_table = _backward(grad, *ctx.saved_tensors, *ctx.settings)
    return for_qkv, *(for_table or [None]), *none[2:]


_forward.register_autograd(_gradients, setup_context=_save)
