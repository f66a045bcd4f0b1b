"""The network inside a trained model, and what the exported file says about it.

A map whose shorter side is at most G is one group (Sec. 3.2.1), and a graph holds one answer to that question for
each block: it is exact for images whose shorter side gives the same answers as the size it was exported at, and
the file says for which. A classifier, which its recipe shows one size only, is exported at that size, unless its
height and width shall stay open too.

Every network takes normalised images (B, C, H, W) and gives a tuple of tensors:

features        c2…c5       (B, Ci, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32
classification  logits      (B, K)
segmentation    logits      (B, K, ceil(H/4), ceil(W/4))
detection       logits      (B, A, K), RetinaNet's raw scores of its A anchors, level by level
                boxes       (B, A, 4), raw offsets to these anchors; decoding and non-maximum suppression are
                            arithmetic outside the network (`crossformerpp.runtime.detector`)
                or of Mask R-CNN, whose graph takes one image and does all of that (`crossformerpp.export.mask_rcnn`):
                boxes (N, 4), labels (N,), scores (N,), masks (N, 28, 28)
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import crossformerpp
from crossformerpp.data.pixels import PixelFormat
from crossformerpp.export.mask_rcnn import MaskRCNNGraph
from crossformerpp.layers.block import CrossFormerBlock
from crossformerpp.models import CrossFormer
from crossformerpp.models.crossformer import CrossFormerStage
from crossformerpp.recipes.classification import ClassificationData, ClassificationRecipe
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import dump_recipe, without_paths
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import eval_transform, pixel_view
from crossformerpp.tasks.detection.model import MaskRCNNDetector, RetinaNetDetector
from crossformerpp.tasks.points import setting_of
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import SavedRun

_LEAST_SIDE = 32
_USUAL_SIDE = 512  # where no recipe tells
_LEAST_SCORE = 0.05  # of the objects that eager and the exported Mask R-CNN are compared by


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
    def channels(self) -> int:
        """Of the images."""
        return len(self.about["mean"])

    @property
    def is_whole(self) -> bool:
        """Whether the graph goes from one image to its objects, and so has other inputs beside it."""
        return isinstance(self.network, MaskRCNNGraph)

    def inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """All that the graph takes, for these images."""
        if not self.is_whole:
            return (images,)
        height, width = images.shape[-2:]
        assert isinstance(self.network, MaskRCNNGraph)
        least = self.network.detector.roi_heads.score_thresh
        return images, torch.tensor([height - 3, width - 5]), torch.tensor(least)  # as if it were padded

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


def open_network(
    saved: SavedRun, features: bool = False, size: int | None = None, is_open: bool = False
) -> Network:
    """The network of a trained model, on the CPU.

    Args:
        size: Shorter side of the images; default: the recipe's.
        is_open: Leave a classifier's height and width open; those of the others always are.

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
        **_of_pixels(data.pixels),
    }
    predictor: Any = find_task(recipe.task).predictor(saved, device="cpu", min_score=_LEAST_SCORE)
    about["class_names"] = predictor.class_names
    about["recipe"] = dump_recipe(without_paths(recipe))
    if saved.is_at_point:
        about["setting"] = setting_of(recipe).model_dump()
    if features:
        return _features(saved, about, size or _USUAL_SIDE)
    if isinstance(recipe, ClassificationRecipe):
        if size not in (None, recipe.data.size) and not is_open:
            raise ValueError(
                f"size {size}: a classifier is exported at its recipe's {recipe.data.size} pixels; pass "
                "--dynamic-size to leave its height and width open"
            )
        view = _classifier_view(recipe.data)
        about |= {"task": "classification", "view": view}
        if predictor.class_names != saved.class_names:
            about["labels"] = saved.class_names
        if recipe.multi_label:
            about["thresholds"] = [float(one) for one in predictor.thresholds]
        elif predictor.promise is not None:
            about["conformal"] = predictor.promise.to_json()
        return Network(Outputs(predictor.model), ("logits",), about, size or recipe.data.size, is_open)
    if isinstance(recipe, SegmentationRecipe):
        section = recipe.inference
        view = {"short_side": section.short_side, "multiple_of": section.multiple_of}
        about |= {"task": "segmentation", "view": view, "rules": section.rules, "colors": predictor.colors}
        size = size or recipe.inference.short_side or _USUAL_SIDE
        return Network(Outputs(predictor.look.network), ("logits",), about, size)
    assert isinstance(recipe, DetectionRecipe)
    about |= {
        "task": "detection",
        "network": recipe.detector.name,
        "rules": recipe.detector.rules,
        "view": {"short_side": data.short_side[-1], "long_side": data.long_side},
        "nms_iou": recipe.detector.nms_iou,
        "max_detections": recipe.detector.max_detections,
    }
    size = size or data.short_side[-1]
    if isinstance(predictor.model, MaskRCNNDetector):
        graph = MaskRCNNGraph(predictor.model).eval()
        return Network(graph, ("boxes", "labels", "scores", "masks"), about, size)
    assert isinstance(predictor.model, RetinaNetDetector)
    about["anchors"] = [level.tolist() for level in predictor.model.anchor_generator.cell_anchors]
    return Network(RawRetinaNet(predictor.model).eval(), ("logits", "boxes"), about, size)


def _of_pixels(pixels: PixelFormat) -> dict[str, Any]:
    """What a file says of images that are no RGB photographs."""
    return {} if pixels.is_photograph else {"in_chans": pixels.channels, "max_value": pixels.max_value}


def _classifier_view(data: ClassificationData) -> dict[str, Any]:
    if data.pixels.is_photograph:
        resize, crop = eval_transform(data).transforms[:2]
        short_side, sides = resize.size, list(crop.size)
    else:
        view = pixel_view(data)
        short_side, sides = view.short_side, list(view.crop)
    return {"short_side": short_side, "crop": sides, "interpolation": data.interpolation}


def _features(saved: SavedRun, about: dict[str, Any], size: int) -> Network:
    pyramid = Pyramid(saved.recipe.model)
    pyramid.load_weights(saved.weights, saved.path)
    about |= {"task": "features", "channels": pyramid.channels, "strides": [4, 8, 16, 32]}
    return Network(Outputs(pyramid.eval()), ("c2", "c3", "c4", "c5"), about, size)
