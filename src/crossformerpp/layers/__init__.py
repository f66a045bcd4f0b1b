"""The paper's parts, one file each, on torch alone."""

from crossformerpp.layers.attention import GroupAttention, Mlp
from crossformerpp.layers.cooling import AmplitudeCoolingLayer
from crossformerpp.layers.embedding import CrossScaleEmbedding, allocate_dims
from crossformerpp.layers.group_size import expand_per_block, linear_group_sizes
from crossformerpp.layers.grouping import Grouping, PaddedGrouping, Part, map_order, regroup
from crossformerpp.layers.position import DynamicPositionBias, RelativePositionBias
from crossformerpp.layers.projection import Linear

__all__ = [
    "AmplitudeCoolingLayer",
    "CrossScaleEmbedding",
    "DynamicPositionBias",
    "GroupAttention",
    "Grouping",
    "Linear",
    "Mlp",
    "PaddedGrouping",
    "Part",
    "RelativePositionBias",
    "allocate_dims",
    "expand_per_block",
    "linear_group_sizes",
    "map_order",
    "regroup",
]
