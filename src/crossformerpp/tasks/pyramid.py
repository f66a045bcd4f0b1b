"""The backbone of dense tasks: any timm model as a pyramid of maps, started from a classifier's weights.

Legend: B batch, C channels, H W image.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.loading import LoadReport, load_weights


class Pyramid(nn.Module):
    """Images (B, 3, H, W) -> one map (B, Ci, H/s, W/s) per stride s.

    Attributes:
        channels: Ci.
        strides: s.
        model: The timm model without its head; its keys are those of the classifier.
    """

    def __init__(self, section: ModelSection, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        """
        Raises:
            ValueError: timm knows no such model, or it has no maps of these strides.
        """
        super().__init__()
        try:
            getter: Any = create_model(section, features_only=True, feature_cls="getter")
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"{section.name} gives no maps of features: {error}") from None
        found = getter.feature_info.reduction()
        missing = [stride for stride in strides if stride not in found]
        if missing:
            raise ValueError(f"{section.name} has maps of strides {found}, but {list(strides)} are needed")
        self.strides = tuple(strides)
        self.taken = [found.index(stride) for stride in strides]
        self.channels: list[int] = [getter.feature_info.channels()[i] for i in self.taken]
        self.getter = getter

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """timm's description of the model's maps, as its models have it."""
        return self.getter.model.feature_info

    @property
    def model(self) -> nn.Module:
        return self.getter.model

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.getter(x)
        return [maps[i] for i in self.taken]

    def load_weights(self, weights: dict[str, Tensor], source: Path) -> LoadReport:
        """Start from a classifier's weights, or the `backbone.` part of a detector's or segmenter's.

        Raises:
            ValueError: They are of another backbone; nothing is loaded then.
        """
        # a classifier's final norm and head are no part of the pyramid, anything else unknown is a mistake
        rooms = {key.split(".")[0] for key in self.model.state_dict()}
        is_part = any(key.startswith("backbone.") for key in weights)
        kept, skipped = {}, []
        for key, value in weights.items():
            name = backbone_key(key)
            if (is_part and not key.startswith("backbone.")) or name.split(".")[0] not in rooms:
                skipped.append(key)
            else:
                kept[name] = value
        return load_weights(self.model, kept, source, skipped=skipped)


def backbone_key(key: str) -> str:
    """The name that a weight of a classifier, detector or segmenter has in the backbone alone."""
    return _PREFIX.sub("", key)


_PREFIX = re.compile(r"^(backbone\.)?(getter\.model\.)?")  # of a detector or segmenter, and of this class
