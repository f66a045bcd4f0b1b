"""torchvision's RetinaNet and Mask R-CNN on a pyramid of any timm backbone (paper Sec. 5.2).

Legend: B images, K classes, N detections; maps c2…c5 of strides 4, 8, 16, 32 from the backbone, p2…p7 from
the pyramid. Images are lists of 3 × H × W tensors of any sizes, bytes or floats from 0 to 1. A target has
`boxes` (N × 4: left, top, right, bottom, in pixels), `labels` (N, from 0) and for Mask R-CNN `masks`
(N × H × W). In training a detector returns a dictionary of losses; else per image `boxes` in the image's own
pixels, `labels`, `scores` (N, best first) and for Mask R-CNN `masks` (N × 28 × 28, how sure the object is to
cover each part of its box).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from crossformerpp.recipes.detection import DetectionData, DetectionRecipe, DetectorSection
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.backbone import undecayed
from crossformerpp.tasks.detection import mmdetection
from crossformerpp.tasks.detection.losses import BatchAveragedHead, with_l1_loss
from crossformerpp.tasks.loading import LoadReport, load_weights
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import read_weights, trained_recipe

_RATIOS = ((0.5, 1.0, 2.0),) * 5
_ANCHORS = 9  # of RetinaNet: three sizes by three ratios
_POOLED = 7  # side of what the box head sees of a box

# Parts that know the number of classes: fresh where a checkpoint's detector has another.
_CLASS_KEYS = (
    "head.classification_head.cls_logits.",
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)


class FeaturePyramid(Pyramid):
    """A backbone and its FPN: images B × 3 × H × W -> {"0": p2 or p3, …}, maps of `out_channels` channels.

    The maps are float32 whatever autocast does, because torchvision gives anchors the type of the maps, and
    half precision would round their corners to whole pixels and worse.
    """

    def __init__(self, model: ModelSection, section: DetectorSection) -> None:
        is_retinanet = section.name == "retinanet"
        super().__init__(model, (8, 16, 32) if is_retinanet else (4, 8, 16, 32))
        self.out_channels = section.pyramid_channels
        extra: ExtraFPNBlock = LastLevelMaxPool()
        if is_retinanet:
            two_levels = mmdetection.P6P7 if section.rules == "mmdetection" else LastLevelP6P7
            extra = two_levels(self.channels[-1], self.out_channels)
        self.fpn = FeaturePyramidNetwork(self.channels, self.out_channels, extra, _norm_layer(section))

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        maps = super().forward(x)
        pyramid = self.fpn(OrderedDict((str(i), c) for i, c in enumerate(maps)))
        return OrderedDict((name, p.float()) for name, p in pyramid.items())


class View(GeneralizedRCNNTransform):
    """How a detector sees images: normalised, and outside training resized without aliasing.

    In training images arrive resized, with their targets. Masks stay as small as they are predicted; see
    `evaluation.paste_masks`.

    Attributes:
        rules: Of a `DetectorSection`.
    """

    rules = "torchvision"

    def normalize(self, image: Tensor) -> Tensor:
        if self.rules == "mmdetection":
            return image  # bytes are resized first, to bytes
        return self._normalized(image)

    def _normalized(self, image: Tensor) -> Tensor:
        return super().normalize(image if image.is_floating_point() else image.float() / 255)

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        if self.rules == "mmdetection":
            if not self.training:
                image = mmdetection.resize(_as_bytes(image), self.min_size[-1], self.max_size)
            return self._normalized(image), target
        if self.training:
            return image, target
        sides = image.shape[-2:]
        scale = min(self.min_size[-1] / min(sides), self.max_size / max(sides))
        size = [max(1, int(side * scale)) for side in sides]
        return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0], target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if not self.training:
            for found, seen, original in zip(result, image_shapes, original_image_sizes, strict=True):
                found["boxes"] = resize_boxes(found["boxes"], seen, original)
        return result


class RetinaNetDetector(RetinaNet):
    """torchvision's RetinaNet: focal loss (γ 2, α 0.25), L1 box loss, IoU 0.5/0.4, 9 anchors per position."""

    backbone: FeaturePyramid

    def __init__(
        self, backbone: FeaturePyramid, section: DetectorSection, view: View, num_classes: int
    ) -> None:
        octaves = tuple(
            tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in section.anchor_sizes
        )
        head = BatchAveragedHead if section.rules == "mmdetection" else RetinaNetHead
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=AnchorGenerator(octaves, _RATIOS),
            head=head(backbone.out_channels, _ANCHORS, num_classes, _norm_layer(section)),
            score_thresh=section.min_score,
            nms_thresh=section.nms_iou,
            detections_per_img=section.max_detections,
        )
        self.transform = view
        if section.rules == "mmdetection":
            mmdetection.follow_mmdetection(self, section)
        _keep_full_precision(self.head)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases, which are recognised by their shape."""
        return undecayed(self)


class MaskRCNNDetector(MaskRCNN):
    """torchvision's Mask R-CNN, with labels from 0 outside (inside 0 is the background)."""

    backbone: FeaturePyramid
    rpn: Any  # RegionProposalNetwork and RoIHeads, which torchvision leaves untyped
    roi_heads: Any

    def __init__(
        self, backbone: FeaturePyramid, section: DetectorSection, view: View, num_classes: int
    ) -> None:
        channels, masks = backbone.out_channels, section.mask_channels
        super().__init__(
            backbone,
            rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in section.anchor_sizes), _RATIOS),
            box_head=_box_head(channels, section),
            box_predictor=FastRCNNPredictor(section.box_channels, num_classes + 1),
            mask_head=MaskRCNNHeads(channels, (masks,) * section.mask_layers, 1, _norm_layer(section)),
            mask_predictor=MaskRCNNPredictor(masks, masks, num_classes + 1),
            rpn_pre_nms_top_n_train=section.train_proposals,
            rpn_post_nms_top_n_train=section.kept_proposals or section.train_proposals,
            box_roi_pool=_roi_align(_POOLED, section),
            mask_roi_pool=_roi_align(2 * _POOLED, section),
            box_batch_size_per_image=section.train_samples,
            box_score_thresh=section.min_score,
            box_nms_thresh=section.nms_iou,
            box_detections_per_img=section.max_detections,
        )
        if section.box_loss == "l1":
            self.rpn, self.roi_heads = with_l1_loss(self.rpn, self.roi_heads)
        self.transform = view
        if section.rules == "mmdetection":
            mmdetection.follow_mmdetection(self, section)
        for head in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            _keep_full_precision(head)

    def no_weight_decay(self) -> set[str]:
        """As `RetinaNetDetector`'s."""
        return undecayed(self)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        output = super().forward(images, targets)
        if not self.training:
            for found in output:
                found["labels"] = found["labels"] - 1
                found["masks"] = found["masks"][:, 0]  # N 1 28 28 -> N 28 28
        return output


Detector = RetinaNetDetector | MaskRCNNDetector


def build_detector(
    model: ModelSection, section: DetectorSection, data: DetectionData, num_classes: int
) -> Detector:
    """A detector with fresh weights.

    Raises:
        ValueError: timm knows no such backbone, or it has no maps of the strides that are needed.
    """
    backbone = FeaturePyramid(model, section)
    view = View(data.short_side[-1], data.long_side, list(data.mean), list(data.std))
    view.rules = section.rules
    kind = RetinaNetDetector if section.name == "retinanet" else MaskRCNNDetector
    return kind(backbone, section, view, num_classes)


def start_from(detector: Detector, path: Path) -> LoadReport:
    """Start from a classifier or segmenter (the backbone only), or from a detector of the same kind.

    What depends on the number of classes stays fresh where the checkpoint's detector knows another one.

    Raises:
        ValueError: Unreadable, or of another network; nothing is loaded then.
    """
    weights = read_weights(path)
    if not any(key.startswith("backbone.fpn.") for key in weights):
        return detector.backbone.load_weights(weights, path)
    report = load_weights(detector, weights, path, may_differ=_CLASS_KEYS)
    trained = trained_recipe(path)
    here = detector.transform.rules
    if not isinstance(trained, DetectionRecipe) or trained.detector.rules == here:
        return report
    there = trained.detector.rules
    note = f"detector.rules {here} here, trained with {there}: the weights fit either, the outputs differ"
    return replace(report, notes=(note,))


def _as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().byte() if image.is_floating_point() else image


def _box_head(channels: int, section: DetectorSection) -> nn.Module:
    if not section.box_convolutions:
        return TwoMLPHead(channels * _POOLED**2, section.box_channels)
    return FastRCNNConvFCHead(
        (channels, _POOLED, _POOLED),
        [channels] * section.box_convolutions,
        [section.box_channels] * 2,
        _norm_layer(section),
    )


def _roi_align(size: int, section: DetectorSection) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign([str(level) for level in range(4)], size, section.roi_samples)


def _norm_layer(section: DetectorSection) -> Callable[[int], nn.Module] | None:
    return _group_norm if section.group_norm else None


def _group_norm(channels: int) -> nn.Module:
    """Groups of eight channels where eight divides them."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


def _keep_full_precision(head: nn.Module) -> None:
    """Make a head answer in float32 also under autocast: torchvision decodes boxes in the head's type."""
    head.register_forward_hook(_as_float)


def _as_float(head: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        has_values = not (head.training or output.is_meta or torch.compiler.is_compiling())
        if has_values and not output.isfinite().all():  # torchvision would drop such boxes without a word
            raise ValueError("the network's output is not a number (NaN)")
        return output.float()
    if isinstance(output, dict):
        return {name: _as_float(head, inputs, value) for name, value in output.items()}
    return type(output)(_as_float(head, inputs, part) for part in output)
