"""CrossFormer and CrossFormer++ backbones (Wang et al., TPAMI; arXiv 2303.06908)."""

__version__ = "0.1.0"
