"""Build the parts of a block: the paper's layers, or those that its tables compare them with."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from crossformerpp.ablations.cooling import AmplitudeLimiter, CoolingKind, GatedCoolingLayer
from crossformerpp.ablations.position import Position, build_position_bias
from crossformerpp.ablations.reduced import ChannelAttention, ScalableAttention, SpatialReductionAttention
from crossformerpp.ablations.windows import (
    CrossPatchAttention,
    CrossShapedAttention,
    InteractiveWindowAttention,
    ShiftedWindowAttention,
    WindowAttention,
)
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.layers.cooling import AmplitudeCoolingLayer, is_cooled
from crossformerpp.layers.grouping import GroupRule, Interval

Attention = Literal["lsda", "swin", "cat", "cat-unbiased", "pvt", "davit", "cswin", "scalablevit"]


def build_attention(
    attention: Attention,
    position: Position,
    dim: int,
    num_heads: int,
    rule: GroupRule,
    table_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """The self-attention of one block.

    A mechanism of two kinds has the local one in "short" blocks and the far-reaching one in "long" blocks:

    | attention     | "short"            | "long"              | group size     | interval  |
    |---------------|--------------------|---------------------|----------------|-----------|
    | "lsda"        | SDA                | LDA                 | G              | I         |
    | "swin"        | windows            | shifted windows     | window M       | not used  |
    | "cat"         | within patches     | across patches      | patch M        | not used  |
    | "cat-unbiased"| within patches     | across patches, without a position bias, as CAT has it | patch M | not used |
    | "davit"       | windows            | channels            | window M       | not used  |
    | "cswin"       | stripes            | stripes             | stripe width   | not used  |
    | "pvt"         | reduced keys       | reduced keys        | not used       | R         |
    | "scalablevit" | interacting windows| reduced keys        | window M       | R         |

    Args:
        rule: What each mechanism takes of it says the table.
        table_size: Side of the groups that a learnt table of biases is for; default G.
        options: `qkv_bias`, `attn_drop` and `proj_drop`.

    Raises:
        ValueError: Unknown attention or position, or one that does not go with the rest.
    """

    distance, G, interval, _ = rule

    def bias(num_heads: int = num_heads) -> nn.Module | None:
        return build_position_bias(position, dim, num_heads, G, table_size)

    match attention, distance:
        case "lsda", _:
            return GroupAttention(dim, num_heads, bias(), rule, **options)
        case "swin", _:
            kind = WindowAttention if distance == "short" else ShiftedWindowAttention
            return kind(dim, num_heads, bias(), G, **options)
        case (("cat" | "cat-unbiased" | "davit"), "short"):
            return WindowAttention(dim, num_heads, bias(), G, **options)
        case "cat", _:
            return CrossPatchAttention(bias(num_heads=1), G, **options)
        case "cat-unbiased", _:
            return CrossPatchAttention(None, G, **options)
        case "davit", _:
            return ChannelAttention(dim, num_heads, **options)
        case "cswin", _:
            return CrossShapedAttention(dim, num_heads, bias(), G, **options)
        case "scalablevit", "short":
            return InteractiveWindowAttention(dim, num_heads, bias(), G, **options)
        case "scalablevit", _:
            return ScalableAttention(dim, num_heads, _reduction(attention, interval), **options)
        case "pvt", _:
            if bias() is not None:
                raise ValueError(
                    f"attention 'pvt' has no place for position {position!r}: choose 'none' or 'ape'"
                )
            return SpatialReductionAttention(dim, num_heads, _reduction(attention, interval), **options)
    raise ValueError(f"unknown attention {attention!r}: choose one of {', '.join(get_args(Attention))}")


def _reduction(attention: Attention, interval: Interval) -> int:
    if not isinstance(interval, int):
        raise ValueError(
            f"attention {attention!r} reduces maps by the interval, a weight's size: give a number "
            f"instead of {interval!r}"
        )
    return interval


def build_cooling(kind: CoolingKind, dim: int, block: int, depth: int, every: int | None) -> nn.Module | None:
    """The cooling layer after block number `block` of a stage of `depth`; None where there is none.

    Args:
        every: k, the interval of cooling layers in blocks; None or 0 for none.

    Raises:
        ValueError: There is no such kind, or the interval is negative.
    """
    kinds = {"acl": AmplitudeCoolingLayer, "gated": GatedCoolingLayer, "limit": AmplitudeLimiter}
    if kind not in kinds:
        raise ValueError(f"cooling_kind {kind!r}: choose one of {', '.join(kinds)}")
    if every is not None and every < 0:
        raise ValueError(f"cooling {every!r}: it must be at least 1 block, or 0 for no cooling layers")
    return kinds[kind](dim) if is_cooled(block, depth, every) else None
