"""The paper's parts, one file each; maps (B, H, W, C) in, maps out."""

from crossformerpp.layers.attention import GroupAttention
from crossformerpp.layers.block import CrossFormerBlock, Mlp
from crossformerpp.layers.cooling import AmplitudeCoolingLayer
from crossformerpp.layers.embedding import CrossScaleEmbedding, allocate_dims
from crossformerpp.layers.group_size import expand_per_block, linear_group_sizes
from crossformerpp.layers.grouping import Grouping, GroupRule
from crossformerpp.layers.linear import Linear
from crossformerpp.layers.position import DynamicPositionBias

__all__ = [
    "AmplitudeCoolingLayer",
    "CrossFormerBlock",
    "CrossScaleEmbedding",
    "DynamicPositionBias",
    "GroupAttention",
    "GroupRule",
    "Grouping",
    "Linear",
    "Mlp",
    "allocate_dims",
    "expand_per_block",
    "linear_group_sizes",
]
