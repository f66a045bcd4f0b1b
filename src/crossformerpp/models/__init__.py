"""The backbones; importing this registers the eight variants, and Swin with PGS and ACL, with timm."""

from crossformerpp.models.crossformer import CrossFormer
from crossformerpp.models.swin import CooledSwinTransformer
from crossformerpp.models.universal import add_cooling, use_cross_scale_embedding
from crossformerpp.models.variants import VARIANTS

__all__ = ["VARIANTS", "CooledSwinTransformer", "CrossFormer", "add_cooling", "use_cross_scale_embedding"]
