"""Decoders from a backbone's maps to a map of features: Semantic FPN and UPerNet (paper Sec. 5.3).

Legend: B batch, C channels, H W image; maps c2…c5 of strides 4, 8, 16, 32 are (B, Ci, H/s, W/s).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation


class SemanticFPNHead(nn.Module):
    """A feature pyramid, its levels brought to stride 4 and summed; four maps -> (B, channels, H/4, W/4).

    torchvision's FPN, then for the levels of stride 4, 8, 16, 32 in turn 1, 1, 2, 3 convolutions, each of
    which but the first level's is followed by an upsampling to the size of the next finer level.

    Args:
        in_channels: C2, C3, C4, C5.
        pyramid_channels: Width of the FPN.
        channels: Width of what follows it.
    """

    def __init__(self, in_channels: Sequence[int], pyramid_channels: int = 256, channels: int = 128) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), pyramid_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *(
                    Conv2dNormActivation(pyramid_channels if i == 0 else channels, channels, kernel_size=3)
                    for i in range(max(1, level))
                )
            )
            for level in range(len(in_channels))
        )
        self.out_channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pyramid = list(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
        sizes = [x.shape[-2:] for x in pyramid]
        outputs = []
        for level, (x, convolutions) in enumerate(zip(pyramid, self.levels, strict=True)):
            for i, convolution in enumerate(convolutions.children(), 1):
                x = convolution(x)
                if level > 0:
                    x = F.interpolate(x, sizes[level - i], mode="bilinear", align_corners=False)
            outputs.append(x)
        return torch.stack(outputs).sum(dim=0)


class UPerNetHead(nn.Module):
    """Pooling pyramid and FPN, fused at stride 4; four maps -> (B, channels, H/4, W/4).

    segmentation_models_pytorch's decoder, whose parameters are those of the paper's, but for the layer norms on its
    input.

    Args:
        in_channels: C2, C3, C4, C5.
        channels: Width of the decoder.
        input_norm: Keep these layer norms.

    Raises:
        ValueError: segmentation_models_pytorch is not installed.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 512, input_norm: bool = True) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError:
            raise ValueError(
                "UPerNet needs segmentation-models-pytorch: install the extra `segmentation`"
            ) from None
        # its first two channel counts belong to maps of stride 1 and 2, which it leaves unused
        self.decoder = UPerNetDecoder((0, 0, *in_channels), decoder_channels=channels)
        if not input_norm:
            self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in in_channels)
        self.out_channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if self.training and maps[0].shape[0] == 1 and not _is_synchronised(self):
            raise ValueError(
                "UPerNet pools a map to a single value, so batch norm needs at least two images per device "
                "and accumulated batch; pass --set trainer.batch_size=2 or more"
            )
        return self.decoder([maps[0], maps[0], *maps])


class FCNHead(nn.Sequential):
    """A convolution and a classifier on one map, for the auxiliary loss; (B, C, h, w) -> (B, K, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__(
            Conv2dNormActivation(in_channels, channels, kernel_size=3),
            classifier(channels, num_classes, dropout),
        )


def classifier(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels and a 1×1 convolution: (B, C, h, w) -> logits (B, K, h, w)."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(in_channels, num_classes, kernel_size=1))


def _is_synchronised(module: nn.Module) -> bool:
    return any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
