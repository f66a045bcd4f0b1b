"""Mask R-CNN as one graph, from an image to its objects, for `torch.export`.

torchvision's own forward pass asks questions while it runs (is this level larger than the 1,000 boxes that are kept?
is anything left?), whose answers a graph would hold for good. Here the same layers, boxes and thresholds are put
together without such questions, so that one graph serves all sizes of images and any number of objects.

Legend: H W the padded image, A anchors, P proposals, N detections, K classes; a box is left, top, right, bottom in
pixels of the padded image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import nms

from crossformerpp.tasks.detection.mmdetection import CentredRoIAlign, roi_levels
from crossformerpp.tasks.detection.model import MaskRCNNDetector

_LEAST_SIDE = 1e-2  # of a detection, in pixels; as in torchvision


class MaskRCNNGraph(nn.Module):
    """One image -> its objects, as the detector's own forward pass finds them before masks are pasted.

    Suppression within a level or a class compares boxes of others too, moved apart by more than the image, as
    torchvision does where there are few boxes.
    """

    def __init__(self, detector: MaskRCNNDetector) -> None:
        super().__init__()
        self.detector = detector
        self.is_exact = detector.transform.rules == "mmdetection"

    def forward(self, images: Tensor, size: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (1, 3, H, W), normalised, padded at the right and at the bottom.
            size: (2,) of int64: height and width of the image in it.
            min_score: (), objects with lower scores are left out.

        Returns:
            boxes (N, 4), labels (N,) from 0, scores (N,) best first, masks (N, 28, 28).
        """
        maps = list(self.detector.backbone(images).values())
        limits = size[[1, 0, 1, 0]].to(images.dtype)
        proposals = self._proposals(images, maps, limits)
        heads = self.detector.roi_heads
        features = heads.box_head(_pool(heads.box_roi_pool, maps, proposals))
        logits, offsets = heads.box_predictor(features)
        boxes, labels, scores = self._detections(logits, offsets, proposals, limits, min_score)
        masks = heads.mask_predictor(heads.mask_head(_pool(heads.mask_roi_pool, maps, boxes)))
        index = (labels + 1)[:, None, None, None].expand(-1, 1, masks.shape[2], masks.shape[3])
        return boxes, labels, scores, masks.gather(1, index)[:, 0].sigmoid()

    def _proposals(self, images: Tensor, maps: list[Tensor], limits: Tensor) -> Tensor:
        """The first stage: (P, 4)."""
        rpn = self.detector.rpn
        objectness, offsets = rpn.head(maps)
        found: list[Tensor] = []
        scores_found: list[Tensor] = []
        for anchors, scores, deltas in zip(self._anchors(images, maps), objectness, offsets, strict=True):
            flat, deltas = concat_box_prediction_layers([scores], [deltas])
            top, best = flat.flatten().topk(torch.sym_min(rpn.pre_nms_top_n(), anchors.shape[0]))
            boxes = rpn.box_coder.decode_single(deltas[best], anchors[best])
            boxes = torch.minimum(boxes.clamp(min=0), limits)
            large = _at_least(boxes, rpn.min_size)
            boxes, top = boxes[large], top[large].sigmoid()
            kept = nms(boxes, top, rpn.nms_thresh)
            found.append(boxes[kept])
            scores_found.append(top[kept])
        boxes, scores = torch.cat(found), torch.cat(scores_found)
        return boxes[scores.topk(torch.sym_min(rpn.post_nms_top_n(), scores.shape[0])).indices]

    def _anchors(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        generator = self.detector.rpn.anchor_generator
        sizes = [tuple(level.shape[-2:]) for level in maps]
        steps: Any = [
            [side // cells for side, cells in zip(images.shape[-2:], size, strict=True)] for size in sizes
        ]
        generator.set_cell_anchors(images.dtype, images.device)
        return generator.grid_anchors(sizes, steps)

    def _detections(
        self, logits: Tensor, offsets: Tensor, proposals: Tensor, limits: Tensor, min_score: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The second stage: boxes (N, 4), labels (N,), scores (N,)."""
        heads = self.detector.roi_heads
        boxes = heads.box_coder.decode_single(offsets, proposals).unflatten(1, (-1, 4))[:, 1:]  # P K 4
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        scores = logits.softmax(-1)[:, 1:]
        above = scores > min_score
        if not self.is_exact:
            above = above & _at_least(boxes, _LEAST_SIDE)
        which, labels = above.nonzero().unbind(1)
        boxes, scores = boxes[which, labels], scores[which, labels]
        apart = labels[:, None] * (limits.max() + 1)
        kept = nms(boxes + apart, scores, heads.nms_thresh)[: heads.detections_per_img]
        return boxes[kept], labels[kept], scores[kept]


def _at_least(boxes: Tensor, side: float) -> Tensor:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return (width >= side) & (height >= side)


def _pool(pool: Any, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box from its level: (N, C, size, size)."""
    is_exact = isinstance(pool, CentredRoIAlign)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    levels = roi_levels(boxes, is_exact)
    pooled = maps[0].new_zeros((boxes.shape[0], maps[0].shape[1], *pool.output_size))
    for level in range(4):
        chosen = (levels == level).nonzero()[:, 0]
        part = torch.ops.torchvision.roi_align(
            maps[level], rois[chosen], 1 / (4 << level), *pool.output_size, pool.sampling_ratio, is_exact
        )
        pooled = pooled.index_copy(0, chosen, part)
    return pooled
