"""The network inside a trained model, and what the exported file says about it.

A map whose shorter side is at most G is one group (Sec. 3.2.1), and a graph holds one answer to that question for
each block: it is exact for images whose shorter side gives the same answers as the size it was exported at, and
the file says for which. A classifier, which sees one size only, is exported at that size.

Every network takes normalised images (B, 3, H, W) and gives a tuple of tensors:

features        c2…c5       (B, Ci, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32
classification  logits      (B, K)
segmentation    logits      (B, K, ceil(H/4), ceil(W/4))
detection       logits      (B, A, K), RetinaNet's raw scores of its A anchors, level by level
                boxes       (B, A, 4), raw offsets to these anchors; decoding and non-maximum suppression are
                            arithmetic outside the network (`crossformerpp.runtime.detector`)
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

import crossformerpp
from crossformerpp.layers.block import CrossFormerBlock
from crossformerpp.models import CrossFormer
from crossformerpp.models.crossformer import CrossFormerStage
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.detection.model import RetinaNetDetector
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import SavedRun

_LEAST_SIDE = 32
_USUAL_SIDE = 512  # where no recipe tells


@dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
        about: Plain data: `task`, `class_names`, `mean`, `std`, and the `view` of an image that the task needs.
        size: Shorter side at which it is exported.
        is_open: Whether height and width stay open, beside the batch.
    """

    network: nn.Module
    outputs: tuple[str, ...]
    about: dict[str, Any]
    size: int
    is_open: bool = True

    @property
    def short_sides(self) -> tuple[int, int | None]:
        """The least and the greatest shorter side of an image for which the graph is exact; None: any."""
        if not self.is_open:
            return self.size, self.size
        least, most = _LEAST_SIDE, list[int]()
        for model in self.network.modules():
            if isinstance(model, CrossFormer):
                for stage, info in zip(model.stages.children(), model.feature_info, strict=False):
                    for block in cast(CrossFormerStage, stage).blocks.children():
                        assert isinstance(block, CrossFormerBlock)
                        limit = (
                            block.attn.rule.group_size * info["reduction"]
                        )  # the map is one group up to here
                        if self.size > limit:
                            least = max(least, limit + 1)
                        else:
                            most.append(limit)
        return least, min(most, default=None)


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


def open_network(saved: SavedRun, features: bool = False, size: int | None = None) -> Network:
    """The network of a trained model, on the CPU.

    Args:
        size: Shorter side of the images; default: the recipe's.

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
        return _features(saved, about, size or _USUAL_SIDE)
    if isinstance(recipe, ClassificationRecipe):
        if size not in (None, recipe.data.size):
            raise ValueError(
                f"size {size}: a classifier is exported at its recipe's {recipe.data.size} pixels"
            )
        resize, crop = eval_transform(recipe.data).transforms[:2]
        view = {
            "short_side": resize.size,
            "crop": list(crop.size),
            "interpolation": recipe.data.interpolation,
        }
        about |= {"task": "classification", "view": view}
        return Network(Outputs(predictor.model), ("logits",), about, recipe.data.size, is_open=False)
    if isinstance(recipe, SegmentationRecipe):
        section = recipe.inference
        view = {"short_side": section.short_side, "multiple_of": section.multiple_of}
        about |= {"task": "segmentation", "view": view, "rules": section.rules, "colors": predictor.colors}
        size = size or recipe.inference.short_side or _USUAL_SIDE
        return Network(Outputs(predictor.look.network), ("logits",), about, size)
    assert isinstance(recipe, DetectionRecipe)
    if not isinstance(predictor.model, RetinaNetDetector):
        raise ValueError(
            f"{saved.path}: Mask R-CNN chooses boxes inside the network and has no export; RetinaNet has one, "
            "and --features exports the backbone"
        )
    about |= {
        "task": "detection",
        "rules": recipe.detector.rules,
        "view": {"short_side": data.short_side[-1], "long_side": data.long_side},
        "anchors": [level.tolist() for level in predictor.model.anchor_generator.cell_anchors],
        "nms_iou": recipe.detector.nms_iou,
        "max_detections": recipe.detector.max_detections,
    }
    return Network(
        RawRetinaNet(predictor.model).eval(), ("logits", "boxes"), about, size or data.short_side[-1]
    )


def _features(saved: SavedRun, about: dict[str, Any], size: int) -> Network:
    pyramid = Pyramid(saved.recipe.model)
    pyramid.load_weights(saved.weights, saved.path)
    about |= {"task": "features", "channels": pyramid.channels, "strides": [4, 8, 16, 32]}
    return Network(Outputs(pyramid.eval()), ("c2", "c3", "c4", "c5"), about, size)
