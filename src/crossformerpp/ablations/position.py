"""The position representations that the paper compares DPB with, Sec. 5.4.4 (Tables X, XI).

Legend: gh gw sides of a group, h heads.

A bias maps the sides of a group to a table of offsets, see layers/position.py. The absolute embedding alone is none: it
is added to the first stage's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from crossformerpp.layers.padding import Sides
from crossformerpp.layers.position import DynamicPositionBias

Position = Literal["dpb", "dpb-residual", "rpb", "rpb-offline", "rpb-online", "ape", "none"]

# Deviation: the paper gives the DPB a width of D/4; its own parameter counts and the released models have D/16.
_DPB_RATIO = 16


def build_position_bias(
    position: Position, dim: int, num_heads: int, group_size: int, table_size: int | None = None
) -> nn.Module | None:
    """The bias of a block's attention under a position representation (Tables X, XI); None where there is none.

    Args:
        dim: Channels of the block, which the DPB's width follows.
        group_size: G of the block.
        table_size: Side of the groups that a table is learnt for; default G.

    Raises:
        ValueError: Unknown representation.
    """
    side = table_size or group_size
    match position:
        case "dpb" | "dpb-residual":
            return DynamicPositionBias(dim // _DPB_RATIO, num_heads, residual=position == "dpb-residual")
        case "rpb":
            return RelativePositionBias((side, side), num_heads)
        case "rpb-offline":
            return EnlargedPositionBias((side, side), num_heads)
        case "rpb-online":
            return InterpolatedPositionBias((side, side), num_heads, group_size)
        case "ape" | "none":
            return None
    raise ValueError(f"unknown position {position!r}: choose one of {', '.join(get_args(Position))}")


class RelativePositionBias(nn.Module):
    """RPB: one learnt bias per head and offset, for groups up to a fixed size (Table X).

    Args:
        max_size: Largest group, (height, width).
    """

    def __init__(self, max_size: Sides, num_heads: int) -> None:
        super().__init__()
        self.max_size = max_size
        self.table = nn.Parameter(torch.empty(num_heads, 2 * max_size[0] - 1, 2 * max_size[1] - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """The bias of every offset, the whole table.

        Raises:
            ValueError: The group is larger than the table is made for.
        """
        if height > self.max_size[0] or width > self.max_size[1]:
            raise ValueError(
                f"a group of {height}x{width} exceeds this relative position bias, made for at most "
                f"{self.max_size[0]}x{self.max_size[1]}: use DynamicPositionBias (position 'dpb') or "
                "interpolation ('rpb-online'), which serve any size, or a larger table (position_sizes)"
            )
        return self.table


def fold(bias: DynamicPositionBias, height: int, width: int) -> RelativePositionBias:
    """A fixed relative position bias with the values of a DPB, for groups up to `height`×`width`."""
    with torch.no_grad():
        folded = RelativePositionBias((height, width), bias.num_heads)
        folded.table.copy_(bias(height, width))
        return folded.to(bias.embed.weight.device, bias.embed.weight.dtype)


class EnlargedPositionBias(RelativePositionBias):
    """Offline interpolated RPB: a table for large groups that takes the values of a smaller, trained one once, when
    weights are loaded (`enlarge_tables`), and is then fine-tuned as it is (Sec. 5.4.4, Table XI)."""


class InterpolatedPositionBias(RelativePositionBias):
    """Online interpolated RPB: a small table, resized bilinearly at every forward (Sec. 5.4.4, Table XI).

    It is resized to the block's group size, and further for a larger group (a map that is one group). The smaller
    groups at a map's edge read the offsets they have from there, as they would from any other table.

    Args:
        max_size: Group that the table was learnt for, (height, width).
        group_size: G that the block has now.
    """

    def __init__(self, max_size: Sides, num_heads: int, group_size: int) -> None:
        super().__init__(max_size, num_heads)
        self.group_size = group_size

    def forward(self, height: int, width: int) -> Tensor:
        """The bias of every offset in groups of any size: (h, ≥ 2·height−1, ≥ 2·width−1)."""
        return resize_table(self.table, max(height, self.group_size), max(width, self.group_size))


def resize_table(table: Tensor, height: int, width: int) -> Tensor:
    """A table of offsets for groups of `height`×`width`, by bilinear interpolation.

    The offset 0 stays in the centre and the largest offsets at the rim: (h, 2·Gh−1, 2·Gw−1) -> (h, 2·height−1,
    2·width−1).
    """
    size = [2 * height - 1, 2 * width - 1]
    if list(table.shape[1:]) == size:
        return table
    for axis, side in enumerate(size, 1):
        if side == 1:  # of which interpolation would take the corner
            table = table.narrow(axis, table.shape[axis] // 2, 1)
    return F.interpolate(table[None], size, mode="bilinear", align_corners=True)[0]


def enlarge_tables(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the tables of every `EnlargedPositionBias` of `model` brought to its size."""
    fitted = dict(weights)
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, EnlargedPositionBias) and key in fitted:
            fitted[key] = resize_table(fitted[key], *module.max_size)
    return fitted


class AbsolutePositionEmbedding(nn.Module):
    """APE: one learnt vector per place of the first stage's map, added to its tokens (Table X).

    A map of another size takes the vectors resized bicubically. (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, height: int, width: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, height, width, dim))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + resample_abs_pos_embed_nhwc(self.embedding, [x.shape[1], x.shape[2]]).to(x.dtype)
