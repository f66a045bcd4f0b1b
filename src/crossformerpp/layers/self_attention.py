"""Which self-attention a block has: LSDA, or one of those that Table VIII compares it with."""

from __future__ import annotations

from typing import Any, Literal, get_args

from crossformerpp.layers.attention import GroupAttention
from crossformerpp.layers.global_attention import (
    ChannelAttention,
    ScalableAttention,
    SpatialReductionAttention,
)
from crossformerpp.layers.group_size import Interval
from crossformerpp.layers.position import Position, build_position_bias
from crossformerpp.layers.window_attention import (
    CrossPatchAttention,
    CrossShapedAttention,
    InteractiveWindowAttention,
    MapAttention,
    WindowAttention,
)

Attention = Literal["lsda", "swin", "cat", "pvt", "davit", "cswin", "scalablevit"]
Distance = Literal["short", "long"]


def build_self_attention(
    attention: Attention,
    position: Position,
    dim: int,
    num_heads: int,
    distance: Distance,
    group_size: int,
    interval: Interval,
    table_size: int | None = None,
    **options: Any,
) -> GroupAttention | MapAttention:
    """The self-attention of one block.

    A mechanism of two kinds has the local one in "short" blocks and the far-reaching one in "long" blocks:

    | attention     | "short"            | "long"              | group size     | interval  |
    |---------------|--------------------|---------------------|----------------|-----------|
    | "lsda"        | SDA                | LDA                 | G              | I         |
    | "swin"        | windows            | shifted windows     | window M       | not used  |
    | "cat"         | within patches     | across patches      | patch M        | not used  |
    | "davit"       | windows            | channels            | window M       | not used  |
    | "cswin"       | stripes            | stripes             | stripe width   | not used  |
    | "pvt"         | reduced keys       | reduced keys        | not used       | R         |
    | "scalablevit" | interacting windows| reduced keys        | window M       | R         |

    Args:
        table_size: See `build_position_bias`.
        options: `qkv_bias`, `attn_drop` and `proj_drop`.

    Raises:
        ValueError: Unknown attention or position, or one that does not go with the rest.
    """

    def bias(num_heads: int = num_heads) -> Any:
        return build_position_bias(position, dim, num_heads, group_size, table_size)

    match attention, distance:
        case "lsda", _:
            return GroupAttention(dim, num_heads, bias(), **options)
        case "swin", _:
            return WindowAttention(dim, num_heads, bias(), group_size, distance == "long", **options)
        case (("cat" | "davit"), "short"):
            return WindowAttention(dim, num_heads, bias(), group_size, **options)
        case "cat", _:
            return CrossPatchAttention(group_size, bias(num_heads=1), **options)
        case "davit", _:
            return ChannelAttention(dim, num_heads, **options)
        case "cswin", _:
            return CrossShapedAttention(dim, num_heads, bias(), group_size, **options)
        case "scalablevit", "short":
            return InteractiveWindowAttention(dim, num_heads, bias(), group_size, **options)
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
