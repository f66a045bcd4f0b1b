"""MMDetection's conventions in torchvision's detectors, for weights trained with MMDetection.

The parameters are the same; the arithmetic around them differs, and one ReLU:

                        torchvision                                MMDetection 2.x
anchors                 rounded to whole pixels; from cell to cell  as they are; the level's stride
                        the image's side over the map's, floored
P7 of RetinaNet         from the ReLU of P6                         from P6
a box's size            at most 1000/16 of its anchor's             also at least 16/1000 of it
candidates of RetinaNet the best 1,000 (anchor, class) of a level   all classes of its best 1,000 anchors
RetinaNet's losses      divided by each image's positive anchors    by those of the batch
boxes without width     dropped                                     kept
RoIAlign                samples half a pixel off, boxes of at       samples at pixel centres
                        least one cell
a mask in its image     scaled to the box's whole pixels            sampled at the image's pixel centres
the image               without fractions of a pixel, antialiased   to the nearest pixel, not antialiased

Legend: N boxes (left, top, right, bottom, in pixels), A anchors, K classes, C channels.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from crossformerpp.recipes.detection import DetectorSection
from crossformerpp.tasks.resizing import resize_bytes

_PER_LEVEL = 1000  # of RetinaNet's anchors, the candidates
_LEAST_SCALE = 16 / 1000  # of a box's side to its anchor's
_FINEST = 56  # pixels: larger boxes are pooled from levels above the finest

Found = tuple[list[Tensor], list[Tensor], list[Tensor]]  # boxes, scores, labels of each image


def follow_mmdetection(detector: RetinaNet | MaskRCNN, section: DetectorSection) -> None:
    """Make one of torchvision's detectors follow MMDetection; its parameters keep their names."""
    sizes = section.anchor_sizes
    parts: Any = detector  # torchvision's attributes are typed as modules
    if isinstance(detector, RetinaNet):
        octaves = tuple(tuple(size * 2 ** (third / 3) for third in range(3)) for size in sizes)
        parts.anchor_generator = StrideAnchors(
            octaves, detector.anchor_generator.aspect_ratios, first_stride=8
        )
        parts.box_coder = SymmetricBoxCoder((1.0, 1.0, 1.0, 1.0))
        parts.postprocess_detections = AnchorCandidates(section)
        return
    ratios = detector.rpn.anchor_generator.aspect_ratios
    parts.rpn.anchor_generator = StrideAnchors(tuple((size,) for size in sizes), ratios, first_stride=4)
    parts.rpn.box_coder = SymmetricBoxCoder((1.0, 1.0, 1.0, 1.0))
    parts.rpn.min_size = 0.0
    heads: Any = detector.roi_heads
    heads.box_coder = SymmetricBoxCoder(heads.box_coder.weights)
    for name in ("box_roi_pool", "mask_roi_pool"):
        pool = getattr(heads, name)
        setattr(heads, name, CentredRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio))
    heads.postprocess_detections = SecondStage(section)


class StrideAnchors(AnchorGenerator):
    """Anchors of exact sizes, moved by the stride of their level.

    Args:
        first_stride: Of the first level; it doubles from level to level.
    """

    def __init__(self, sizes: Any, aspect_ratios: Any, first_stride: int) -> None:
        super().__init__(sizes, aspect_ratios)
        self.first_stride = first_stride

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (torchvision's signature)
    ) -> Tensor:
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        height = (heights[:, None] * sizes).flatten()
        width = (sizes / heights[:, None]).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        exact: Any = [[self.first_stride << level] * 2 for level in range(len(grid_sizes))]
        return super().grid_anchors(grid_sizes, exact)


class P6P7(LastLevelP6P7):
    """P6 from the backbone's last map, P7 from P6 as it is."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


class SymmetricBoxCoder(BoxCoder):
    """Offsets to boxes whose sides are at most 1000/16 and at least 16/1000 of their anchor's."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        rel_codes = rel_codes.clone()
        for column in (2, 3):
            least = float(np.log(_LEAST_SCALE)) * self.weights[column]
            rel_codes[:, column::4].clamp_(min=least)
        return super().decode_single(rel_codes, boxes)


class CentredRoIAlign(MultiScaleRoIAlign):
    """Maps of strides 4, 8, … -> N × C × size × size, with samples at pixel centres."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        maps = [x[name] for name in self.featmap_names]
        numbers = [torch.full_like(of[:, :1], image) for image, of in enumerate(boxes)]
        rois = torch.cat([torch.cat(numbers), torch.cat(boxes)], dim=1)  # N × (image, box)
        levels = roi_levels(rois[:, 1:], is_exact=True)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, map_ in enumerate(maps):
            chosen = (levels == level).nonzero()[:, 0]
            scale = 1 / (4 << level)
            pooled[chosen] = roi_align(
                map_, rois[chosen], self.output_size, scale, self.sampling_ratio, aligned=True
            )
        return pooled


def roi_levels(boxes: Tensor, is_exact: bool) -> Tensor:
    """The pyramid's level, 0 to 3, that each box (N × 4) is pooled from.

    Args:
        is_exact: Round as MMDetection does, else as torchvision.
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    if is_exact:
        return (sides / _FINEST + 1e-6).log2().floor().clamp(0, 3)
    return ((sides / (4 * _FINEST)).log2() + 4 + 1e-6).floor().clamp(2, 5) - 2


class AnchorCandidates:
    """RetinaNet's post-processing: candidates are all classes of each level's 1,000 anchors with the highest scores."""

    def __init__(self, section: DetectorSection) -> None:
        self.section = section
        self.coder = SymmetricBoxCoder((1.0, 1.0, 1.0, 1.0))

    def __call__(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        found = []
        for image, shape in enumerate(image_shapes):
            boxes, scores = [], []
            outputs = (head_outputs["cls_logits"], head_outputs["bbox_regression"])
            for logits, offsets, cells in zip(*outputs, anchors[image], strict=True):
                best = logits[image].amax(dim=1).topk(min(_PER_LEVEL, len(cells))).indices
                scores.append(logits[image][best].sigmoid())
                boxes.append(self.coder.decode_single(offsets[image][best], cells[best]))
            clipped = clip_boxes_to_image(torch.cat(boxes), shape)
            kept = best_of_each_class(clipped[:, None], torch.cat(scores), self.section)
            found.append(dict(zip(("boxes", "scores", "labels"), kept, strict=True)))
        return found


class SecondStage:
    """Post-processing of Mask R-CNN's second stage: all boxes are candidates; labels start at 1."""

    def __init__(self, section: DetectorSection) -> None:
        self.section = section
        self.coder = SymmetricBoxCoder((10.0, 10.0, 5.0, 5.0))

    def __call__(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Found:
        decoded = self.coder.decode(box_regression, proposals)  # N × (1 + K) × 4
        counts = [len(of) for of in proposals]
        found: Found = ([], [], [])
        for boxes, scores, shape in zip(
            decoded.split(counts), class_logits.softmax(dim=1).split(counts), image_shapes, strict=True
        ):
            clipped = clip_boxes_to_image(boxes[:, 1:], shape)
            boxes, scores, labels = best_of_each_class(clipped, scores[:, 1:], self.section)
            for part, value in zip(found, (boxes, scores, labels + 1), strict=True):
                part.append(value)
        return found


def best_of_each_class(
    boxes: Tensor, scores: Tensor, section: DetectorSection
) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold and non-maximum suppression per class -> boxes, scores, labels, best first.

    Args:
        boxes: N × K × 4, or N × 1 × 4 where the classes share a box.
        scores: N × K.
    """
    which, labels = (scores > section.min_score).nonzero(as_tuple=True)
    above = scores[which, labels]
    boxes = boxes.expand(-1, scores.shape[1], -1)[which, labels]
    kept = batched_nms(boxes, above, labels, section.nms_iou)[: section.max_detections]
    return boxes[kept], above[kept], labels[kept]


def resize(image: Tensor, short_side: int, long_side: int) -> Tensor:
    """Resize an image, 3 × H × W bytes, to the size the detector takes."""
    sides = image.shape[-2:]
    scale = min(long_side / max(sides), short_side / min(sides))
    return resize_bytes(image, [int(side * scale + 0.5) for side in sides])


def paste_mask(mask: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """A predicted mask (28 × 28, shares) at its place in the image -> H × W bytes of 0 and 1."""
    left, top, right, bottom = box.tolist()
    # outside its box a mask stays below one half
    rows = range(max(0, int(np.floor(top)) - 1), min(height, int(np.ceil(bottom)) + 1))
    columns = range(max(0, int(np.floor(left)) - 1), min(width, int(np.ceil(right)) + 1))
    y, x = (
        (torch.tensor(at, dtype=torch.float32) + 0.5 - first) / (last - first) * 2 - 1
        if last > first
        else torch.zeros(len(at))
        for at, first, last in ((rows, top, bottom), (columns, left, right))
    )
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    shares = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
    pasted = np.zeros((height, width), np.uint8)
    pasted[rows.start : rows.stop, columns.start : columns.stop] = (shares >= 0.5).numpy()
    return pasted
