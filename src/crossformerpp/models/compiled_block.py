"""A block's inference on a CPU as one operator that a compiler does not look into.

A compiler sees single layers: it multiplies with MKL, and every layer runs over all tokens before the next one begins.
The operator does what a block does in eager mode: oneDNN's products, some groups at a time through the whole block
(docs/performance.md has both times). Embeddings, cooling layers and gathers between groupings are compiled around it.

Legend: T rows of tokens, C channels, h heads, N tokens of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.attention import GroupAttention, Mlp, attend_in_groups
from crossformerpp.layers.grouping import (
    Grouping,
    OpaqueGrouping,
    SamePart,
    map_order,
    regroup,
)
from crossformerpp.layers.position import BiasMemory, DynamicPositionBias, dynamic_bias_table
from crossformerpp.layers.projection import Linear, linear, linear_gelu

# Elements of a chunk's rows (T·C). Its widest intermediate, the MLP's hidden layer, is four times that: 16 MB.
CHUNK_ELEMENTS = 1 << 20


def takes_operator(norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module, x: Tensor) -> bool:
    """Whether a compiler is at work on an inference on a CPU, of a block with the parts that it was built with."""
    if (
        not torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or x.device.type != "cpu"
        or type(attn) is not GroupAttention
        or type(mlp) is not Mlp
    ):
        return False
    layers: Any = (norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2)
    kinds = (nn.LayerNorm, Linear, Linear, nn.LayerNorm, Linear, Linear)
    others: Any = (attn.position_bias, attn.proj_drop)
    return (
        mlp.is_plain_inference()
        and tuple(type(layer) for layer in layers) == kinds
        and tuple(type(part) for part in others) == (DynamicPositionBias, nn.Dropout)
        and all(layer.weight is not None and layer.bias is not None for layer in layers)
        and not any(part.training for part in (attn, *others))
        and not any(
            part._forward_hooks or part._forward_pre_hooks
            for part in (*layers, attn, mlp, *others, *others[0].modules())
        )
    )


def run_operator(
    norm1: nn.LayerNorm,
    attn: nn.Module,
    norm2: nn.LayerNorm,
    mlp: Mlp,
    x: Tensor,
    grouping: Grouping | OpaqueGrouping,
) -> Tensor:
    """x + attention, + MLP: rows (T, C) in the order of `grouping` -> (T, C)."""
    assert isinstance(attn, GroupAttention)
    assert isinstance(attn.position_bias, DynamicPositionBias)
    layers = (norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2)
    return _opaque_block(
        x,
        [tensor for layer in layers for tensor in (layer.weight, layer.bias)],
        attn.position_bias.weights(),
        attn.position_bias.residual,
        attn.num_heads,
        norm1.eps,
        norm2.eps,
        isinstance(grouping, OpaqueGrouping),
        grouping.as_tuple(),
    )


@torch.library.custom_op("crossformerpp::block", mutates_args=())
def _opaque_block(
    x: Tensor,
    layers: list[Tensor],
    bias_parameters: list[Tensor],
    residual: bool,
    num_heads: int,
    eps1: float,
    eps2: float,
    is_in_map_order: bool,
    sizes: Sequence[int],  # `Grouping.as_tuple`
) -> Tensor:
    grouping, map_rows = Grouping(*sizes), map_order(*sizes[:3])
    rows = regroup(x, map_rows, grouping) if is_in_map_order else x.contiguous()
    sides = [(part.height, part.width) for part in grouping.parts]
    biases = _biases_of(bias_parameters[0].data_ptr()).recall(
        bias_parameters, sides, x.dtype, lambda h, w: dynamic_bias_table(bias_parameters, residual, h, w)
    )
    bias_of = dict(zip(sides, biases, strict=True))
    out = torch.empty_like(rows)
    for start, stop, part in grouping.chunks(max(1, CHUNK_ELEMENTS // x.shape[-1])):
        out[start:stop] = _infer(rows[start:stop], layers, bias_of, num_heads, eps1, eps2, part)
    return regroup(out, grouping, map_rows) if is_in_map_order else out


@lru_cache(maxsize=64)
def _biases_of(address: int) -> BiasMemory:
    """What is remembered of the block whose first bias weight lies at an address: no more than a place to look, as the
    memory compares all weights."""
    return BiasMemory()


def _infer(
    x: Tensor,
    layers: Sequence[Tensor],
    bias_of: dict[tuple[int, int], Tensor],
    num_heads: int,
    eps1: float,
    eps2: float,
    part: SamePart,
) -> Tensor:
    """What `CrossFormerBlock` computes, of groups of one size: (T, C) -> (T, C)."""
    norm1, bias1, qkv, qkv_bias, proj, proj_bias, norm2, bias2, fc1, fc1_bias, fc2, fc2_bias = layers

    def position_bias(sizes: Sequence[tuple[int, int]], dtype: torch.dtype | None) -> list[Tensor]:
        return [bias_of[size] for size in sizes]

    hidden = linear(F.layer_norm(x, norm1.shape, norm1, bias1, eps1), qkv, qkv_bias)
    x = x + linear(attend_in_groups(hidden, num_heads, position_bias, part), proj, proj_bias)
    hidden = linear_gelu(F.layer_norm(x, norm2.shape, norm2, bias2, eps2), fc1, fc1_bias)
    return x + linear(hidden, fc2, fc2_bias)


@_opaque_block.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
