"""The network inside a trained model, and what the exported file says about it.

Every network takes normalised images (B, 3, H, W) and gives a tuple of tensors:

features        c2…c5       (B, Ci, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32
classification  logits      (B, K)
segmentation    logits      (B, K, ceil(H/4), ceil(W/4))
detection       logits      (B, A, K), RetinaNet's raw scores of its A anchors, level by level
                boxes       (B, A, 4), raw offsets to these anchors; decoding and non-maximum suppression are
                            arithmetic outside the network (`crossformerpp.exported.detector`)
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import crossformerpp
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.detection.model import RetinaNetDetector
from crossformerpp.tasks.plug import find_task
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import SavedRun


@dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
        about: Plain data: `task`, `class_names`, `mean`, `std`, and the `view` of an image that the task needs.
    """

    network: nn.Module
    outputs: tuple[str, ...]
    about: dict[str, Any]


class Outputs(nn.Module):
    """A network whose single output becomes a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return tuple(output) if isinstance(output, list | tuple) else (output,)


class RawRetinaNet(nn.Module):
    """A RetinaNet without its transform, anchors and post-processing."""

    def __init__(self, detector: RetinaNetDetector) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(images).values()))
        return found["cls_logits"], found["bbox_regression"]


def open_network(saved: SavedRun, features: bool = False) -> Network:
    """The network of a trained model, on the CPU.

    Raises:
        ValueError: There is no export of such a model.
    """
    recipe = saved.recipe
    data: Any = getattr(recipe, "data", None)
    about: dict[str, Any] = {
        "crossformerpp": crossformerpp.__version__,
        "model": recipe.model.name,
        "mean": list(data.mean),
        "std": list(data.std),
    }
    predictor: Any = find_task(recipe.task).predictor(saved, device="cpu")
    about["class_names"] = predictor.class_names
    if features:
        return _features(saved, about)
    if isinstance(recipe, ClassificationRecipe):
        resize, crop = eval_transform(recipe.data).transforms[:2]
        view = {
            "short_side": resize.size,
            "crop": list(crop.size),
            "interpolation": recipe.data.interpolation,
        }
        about |= {"task": "classification", "view": view}
        return Network(Outputs(predictor.model), ("logits",), about)
    if isinstance(recipe, SegmentationRecipe):
        about |= {"task": "segmentation", "view": {"short_side": recipe.inference.short_side}}
        about["colors"] = predictor.colors
        return Network(Outputs(predictor.look.network), ("logits",), about)
    assert isinstance(recipe, DetectionRecipe)
    if not isinstance(predictor.model, RetinaNetDetector):
        raise ValueError(
            f"{saved.path}: Mask R-CNN chooses boxes inside the network and has no export; RetinaNet has one, "
            "and --features exports the backbone"
        )
    about |= {
        "task": "detection",
        "view": {"short_side": data.short_side[-1], "long_side": data.long_side},
        "anchors": [level.tolist() for level in predictor.model.anchor_generator.cell_anchors],
        "nms_iou": recipe.detector.nms_iou,
        "max_detections": recipe.detector.max_detections,
    }
    return Network(RawRetinaNet(predictor.model).eval(), ("logits", "boxes"), about)


def _features(saved: SavedRun, about: dict[str, Any]) -> Network:
    pyramid = Pyramid(saved.recipe.model)
    pyramid.load_weights(saved.weights, saved.path)
    about |= {"task": "features", "channels": pyramid.channels, "strides": [4, 8, 16, 32]}
    return Network(Outputs(pyramid.eval()), ("c2", "c3", "c4", "c5"), about)
