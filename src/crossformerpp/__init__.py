"""CrossFormer and CrossFormer++ backbones (Wang et al., TPAMI; arXiv 2303.06908).

Importing this registers the eight variants with timm: `timm.create_model("crossformerpp_small")`.
"""

from crossformerpp.models import VARIANTS, CrossFormer

__version__ = "0.1.0"
__all__ = ["VARIANTS", "CrossFormer"]
