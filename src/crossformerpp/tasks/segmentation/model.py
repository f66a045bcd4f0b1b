"""The segmenter: backbone, head, classifier, and the auxiliary head that only training uses.

Legend: B batch, K classes, H W image.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from crossformerpp.data.mask_files import Color
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.recipes.segmentation import HeadSection
from crossformerpp.tasks.backbone import undecayed
from crossformerpp.tasks.loading import LoadReport, load_weights
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import read_weights
from crossformerpp.tasks.segmentation.heads import FCNHead, SemanticFPNHead, UPerNetHead, classifier

_STRIDE_16 = 2  # position of the map that the auxiliary head looks at


class Segmenter(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K, ceil(H/4), ceil(W/4)).

    Attributes:
        colors: (K, 3) bytes, in which pictures show the classes; no part of the network, but of its weights'
            file, so that predicting needs no palette.
        auxiliary_weight: Of the auxiliary loss; 0 if there is no such head.
    """

    colors: Tensor

    def __init__(self, model: ModelSection, head: HeadSection, colors: Sequence[Color]) -> None:
        super().__init__()
        num_classes = len(colors)
        self.backbone = Pyramid(model)
        channels = self.backbone.channels
        self.decoder: SemanticFPNHead | UPerNetHead
        if head.name == "semantic_fpn":
            self.decoder = SemanticFPNHead(channels, head.pyramid_channels, head.channels or 128)
        else:
            self.decoder = UPerNetHead(channels, head.channels or 512, head.input_norm)
        self.classifier = classifier(self.decoder.out_channels, num_classes, head.dropout)
        weight = head.auxiliary_weight
        self.auxiliary_weight = (0.4 if head.name == "upernet" else 0.0) if weight is None else weight
        self.auxiliary: FCNHead | None = None
        if self.auxiliary_weight:
            self.auxiliary = FCNHead(channels[_STRIDE_16], num_classes, head.auxiliary_channels, head.dropout)
        self.register_buffer("colors", torch.tensor(colors, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.decoder(self.backbone(x)))

    def forward_train(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K, ceil(H/4), ceil(W/4)), and auxiliary ones (B, K, ceil(H/16), ceil(W/16)) or None."""
        maps = self.backbone(x)
        logits = self.classifier(self.decoder(maps))
        return logits, None if self.auxiliary is None else self.auxiliary(maps[_STRIDE_16])

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases, which are recognised by their shape."""
        return undecayed(self)

    def start_from(self, path: Path) -> LoadReport:
        """Start from a classifier (the backbone only) or from a segmenter with the same head.

        What depends on the number of classes stays fresh where the checkpoint's segmenter knows another one.

        Raises:
            ValueError: Unreadable, or of another network; nothing is loaded then.
        """
        weights = read_weights(path)
        if not any(key.startswith("decoder.") for key in weights):
            return self.backbone.load_weights(weights, path)
        weights["colors"] = self.colors
        unused = [k for k in weights if self.auxiliary is None and k.startswith("auxiliary.")]
        kept = {k: v for k, v in weights.items() if k not in unused}
        return load_weights(self, kept, path, may_differ=("classifier.1.", "auxiliary."), skipped=unused)
