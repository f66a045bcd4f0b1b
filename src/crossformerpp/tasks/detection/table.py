"""Tables III and IV of the paper: their CrossFormer rows, and what our models count at the same size."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.recipes.detection import DetectionData, DetectorSection
from crossformerpp.tasks.detection.model import Detector, MaskRCNNDetector, build_detector
from crossformerpp.tasks.pyramid import CLASSIFICATION, CLASSIFICATION_PP, WIDE, Groups, with_groups

SIZE = (800, 1280)  # height and width that the tables count with
NUM_CLASSES = 80

# What the second stage of Mask R-CNN is counted with: boxes, and masks.
_NUM_BOXES, _NUM_MASKS = 1000, 100

EXPLANATION = """\
MACs are multiply-accumulates of matrix products, convolutions and attention in backbone, pyramid and heads
(Mask R-CNN: 1,000 boxes and 100 masks), of real tokens only. The paper's FLOPs are 20 to 46 G higher: its
counter also counts the tokens that pad groups (5 to 12 G), takes the convolutions of the cross-scale embedding
twice (12 G where D1 = 96) and adds biases and norms; of the models with 18 blocks in stage 3 some 15 G remain
that we cannot account for. For RetinaNet with CrossFormer++-S it prints the 40.8M and 272.1G of the row above
again; its own row for Mask R-CNN (43.0M) fits our 33.0M."""


@dataclass(frozen=True)
class PaperRow:
    """A CrossFormer row of Table III or IV as printed: million parameters, 10⁹ "FLOPs", AP in percent.

    The paper lists each CrossFormer of a 1× schedule twice, first with `WIDE` groups. It does not say which
    groups a CrossFormer++ has; ours are counted with those of classification.
    """

    name: str
    detector: Literal["retinanet", "mask_rcnn"]
    schedule: Literal["1x", "3x"]
    groups: Groups
    params: float
    gflops: float
    box_ap: float
    mask_ap: float | None
    fps: int


PAPER = (
    PaperRow("crossformer_small", "retinanet", "1x", WIDE, 40.8, 282.0, 44.4, None, 13),
    PaperRow("crossformer_small", "retinanet", "1x", CLASSIFICATION, 40.8, 272.1, 44.2, None, 14),
    PaperRow("crossformerpp_small", "retinanet", "1x", CLASSIFICATION_PP, 40.8, 272.1, 45.1, None, 16),
    PaperRow("crossformer_base", "retinanet", "1x", WIDE, 62.1, 389.0, 46.2, None, 9),
    PaperRow("crossformer_base", "retinanet", "1x", CLASSIFICATION, 62.1, 379.1, 46.1, None, 9),
    PaperRow("crossformerpp_base", "retinanet", "1x", CLASSIFICATION_PP, 62.2, 389.0, 46.6, None, 11),
    PaperRow("crossformer_small", "mask_rcnn", "1x", WIDE, 50.2, 301.0, 45.4, 41.4, 13),
    PaperRow("crossformer_small", "mask_rcnn", "1x", CLASSIFICATION, 50.2, 291.1, 45.0, 41.2, 14),
    PaperRow("crossformerpp_small", "mask_rcnn", "1x", CLASSIFICATION_PP, 43.0, 287.4, 46.4, 42.1, 17),
    PaperRow("crossformer_base", "mask_rcnn", "1x", WIDE, 71.5, 407.9, 47.2, 42.7, 9),
    PaperRow("crossformer_base", "mask_rcnn", "1x", CLASSIFICATION, 71.5, 398.1, 47.1, 42.7, 9),
    PaperRow("crossformerpp_base", "mask_rcnn", "1x", CLASSIFICATION_PP, 71.5, 408.0, 47.7, 43.2, 12),
    PaperRow("crossformer_small", "mask_rcnn", "3x", CLASSIFICATION, 50.2, 291.1, 48.7, 43.9, 14),
    PaperRow("crossformerpp_small", "mask_rcnn", "3x", CLASSIFICATION_PP, 43.0, 287.4, 49.5, 44.3, 17),
    PaperRow("crossformer_base", "mask_rcnn", "3x", CLASSIFICATION, 71.5, 398.1, 49.8, 44.5, 9),
    PaperRow("crossformerpp_base", "mask_rcnn", "3x", CLASSIFICATION_PP, 71.5, 408.0, 50.2, 44.6, 12),
)


@dataclass(frozen=True)
class ModelRow:
    """One model: exact parameters and multiply-accumulates of one 800 × 1280 image."""

    name: str
    detector: str
    schedule: str
    group_sizes: tuple[int, ...]
    intervals: tuple[int, ...]
    params: int
    macs: int
    paper_params: int  # as printed, times 10⁶
    paper_macs: int  # the paper's "FLOPs", times 10⁹
    paper_box_ap: float
    paper_mask_ap: float | None
    paper_fps: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def model_rows(detector: str | None = None) -> Iterator[ModelRow]:
    """Our counts beside the paper's, of one detector or both, in the paper's order; each row takes about a second."""
    for row in PAPER:
        if detector not in (None, row.detector):
            continue
        params, macs = count(build_meta(row))
        yield ModelRow(
            row.name,
            row.detector,
            row.schedule,
            *row.groups,
            params=params,
            macs=macs,
            paper_params=round(row.params * 1e6),
            paper_macs=round(row.gflops * 1e9),
            paper_box_ap=row.box_ap,
            paper_mask_ap=row.mask_ap,
            paper_fps=row.fps,
        )


def build_meta(row: PaperRow) -> Detector:
    """The model of a row on the meta device: shapes without memory."""
    section = with_groups(row.name, row.groups)
    with torch.device("meta"):
        return build_detector(section, DetectorSection(name=row.detector), DetectionData(), NUM_CLASSES)


def count(detector: Detector, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of an image of `size` (height, width)."""
    counted = count_complexity(_EveryPart(detector), (3, *size))
    return counted.params, counted.macs


class _EveryPart(nn.Module):
    """All of a detector's matrix products, without the choices between them that depend on values."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        pyramid = self.detector.backbone(x)
        maps = list(pyramid.values())
        if not isinstance(self.detector, MaskRCNNDetector):
            self.detector.head(maps)
            return pyramid
        self.detector.rpn.head(maps)
        heads, channels = self.detector.roi_heads, self.detector.backbone.out_channels
        boxes = x.new_zeros(_NUM_BOXES, channels, *heads.box_roi_pool.output_size)
        heads.box_predictor(heads.box_head(boxes))
        masks = x.new_zeros(_NUM_MASKS, channels, *heads.mask_roi_pool.output_size)
        heads.mask_predictor(heads.mask_head(masks))
        return pyramid
