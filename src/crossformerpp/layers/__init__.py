"""The paper's parts, one file each, on torch alone."""

from crossformerpp.layers.attention import GroupAttention, Mlp
from crossformerpp.layers.cooling import AmplitudeCoolingLayer
from crossformerpp.layers.embedding import CrossScaleEmbedding, allocate_dims
from crossformerpp.layers.group_size import expand_per_block, linear_group_sizes
from crossformerpp.layers.grouping import Grouping, PaddedGrouping, Part, map_order, regroup
from crossformerpp.layers.position import (
    AbsolutePositionEmbedding,
    DynamicPositionBias,
    EnlargedPositionBias,
    InterpolatedPositionBias,
    RelativePositionBias,
    build_position_bias,
    enlarge_tables,
)
from crossformerpp.layers.projection import Linear
from crossformerpp.layers.self_attention import build_self_attention

__all__ = [
    "AbsolutePositionEmbedding",
    "AmplitudeCoolingLayer",
    "CrossScaleEmbedding",
    "DynamicPositionBias",
    "EnlargedPositionBias",
    "GroupAttention",
    "Grouping",
    "InterpolatedPositionBias",
    "Linear",
    "Mlp",
    "PaddedGrouping",
    "Part",
    "RelativePositionBias",
    "allocate_dims",
    "build_position_bias",
    "build_self_attention",
    "enlarge_tables",
    "expand_per_block",
    "linear_group_sizes",
    "map_order",
    "regroup",
]
