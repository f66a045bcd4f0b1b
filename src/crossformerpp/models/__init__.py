"""The backbones; importing this registers the eight variants with timm."""

from crossformerpp.models.crossformer import CrossFormer
from crossformerpp.models.variants import VARIANTS

__all__ = ["VARIANTS", "CrossFormer"]
