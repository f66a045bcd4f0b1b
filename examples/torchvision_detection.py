"""RetinaNet and Mask R-CNN of torchvision on a CrossFormer++ backbone: losses in training, boxes otherwise."""

from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import crossformerpp  # noqa: F401 (registers the models)


class Backbone(nn.Module):
    """What torchvision's detectors ask for: a dictionary of maps with `out_channels` channels each."""

    def __init__(self, name: str, out_indices: tuple[int, ...], extra: nn.Module, **options: object) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=out_indices, **options)
        self.out_channels = 256
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 256, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), c) for i, c in enumerate(self.body(x))))


def main(
    name: str = "crossformerpp_small", size: int = 256, **options: object
) -> dict[str, dict[str, float]]:
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    view = {"min_size": size, "max_size": 2 * size}
    detectors = {
        "RetinaNet": RetinaNet(
            Backbone(name, (1, 2, 3), LastLevelP6P7(256, 256), **options), 3, anchor_generator=anchors, **view
        ),
        "Mask R-CNN": MaskRCNN(
            Backbone(name, (0, 1, 2, 3), LastLevelMaxPool(), **options),
            3,
            rpn_anchor_generator=anchors,
            **view,
        ),
    }
    image, mask = torch.rand(3, size, size + 40), torch.zeros(1, size, size + 40, dtype=torch.uint8)
    mask[:, 10:50, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 50]]), "labels": torch.tensor([1]), "masks": mask}
    found = {}
    for title, detector in detectors.items():
        losses = detector([image], [target])
        sum(losses.values()).backward()
        found[title] = {key: loss.item() for key, loss in losses.items()}
        (prediction,) = detector.eval()([image])
        print(title, found[title], {key: tuple(value.shape) for key, value in prediction.items()})
    return found


if __name__ == "__main__":
    main()
