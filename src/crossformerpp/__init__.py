"""CrossFormer and CrossFormer++ backbones (Wang et al., TPAMI; arXiv 2303.06908).

Importing this registers the eight variants with timm: `timm.create_model("crossformerpp_small")`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The command imports what its subcommands need, so that help comes at once and exported models run without torch.
if TYPE_CHECKING or "crossformer_command" not in sys.modules:
    from crossformerpp.models import VARIANTS, CrossFormer
    from crossformerpp.models import weights as _weights

    def _find_file(name: str) -> Path:
        from crossformerpp.checkpoints.download import pretrained_file

        return pretrained_file(name)

    _weights.find_file = _find_file
if TYPE_CHECKING:
    from crossformerpp.share import from_pretrained

__version__ = "0.1.0"
__all__ = ["VARIANTS", "CrossFormer", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "from_pretrained":
        from crossformerpp.share import from_pretrained

        return from_pretrained
    from crossformerpp import models

    return getattr(models, name)
