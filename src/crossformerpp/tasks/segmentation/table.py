"""Table V of the paper: its CrossFormer rows, and what our models count at the same size."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.data import ade20k
from crossformerpp.recipes.segmentation import HeadSection
from crossformerpp.tasks.pyramid import CLASSIFICATION, CLASSIFICATION_PP, WIDE, Groups, with_groups
from crossformerpp.tasks.segmentation.model import Segmenter

SIZE = 1024  # side of the image that Table V counts with


@dataclass(frozen=True)
class PaperRow:
    """A CrossFormer row of Table V as printed: million parameters, 10⁹ "FLOPs", IoU in percent.

    The paper lists each CrossFormer twice, first with `WIDE` groups. It does not say which groups a
    CrossFormer++ has; ours are counted with those of classification.
    """

    name: str
    decoder: Literal["semantic_fpn", "upernet"]
    groups: Groups
    params: float
    gflops: float
    iou: float
    ms_iou: float | None = None


PAPER = (
    PaperRow("crossformer_small", "semantic_fpn", WIDE, 34.3, 220.7, 46.0),
    PaperRow("crossformer_small", "semantic_fpn", CLASSIFICATION, 34.3, 209.8, 46.4),
    PaperRow("crossformerpp_small", "semantic_fpn", CLASSIFICATION_PP, 27.1, 199.5, 47.4),
    PaperRow("crossformer_base", "semantic_fpn", WIDE, 55.6, 331.0, 47.7),
    PaperRow("crossformer_base", "semantic_fpn", CLASSIFICATION, 55.6, 320.1, 48.0),
    PaperRow("crossformerpp_base", "semantic_fpn", CLASSIFICATION_PP, 55.6, 331.1, 48.6),
    PaperRow("crossformer_large", "semantic_fpn", WIDE, 95.4, 497.0, 48.7),
    PaperRow("crossformer_large", "semantic_fpn", CLASSIFICATION, 95.4, 482.7, 49.1),
    PaperRow("crossformerpp_large", "semantic_fpn", CLASSIFICATION_PP, 95.5, 482.8, 49.5),
    PaperRow("crossformerpp_huge", "semantic_fpn", CLASSIFICATION_PP, 99.4, 612.3, 49.7),
    PaperRow("crossformer_small", "upernet", WIDE, 62.3, 979.5, 47.6, 48.4),
    PaperRow("crossformer_small", "upernet", CLASSIFICATION, 62.3, 968.5, 47.4, 48.2),
    PaperRow("crossformerpp_small", "upernet", CLASSIFICATION_PP, 53.1, 963.5, 49.4, 50.0),
    PaperRow("crossformer_base", "upernet", WIDE, 83.6, 1089.7, 49.7, 50.6),
    PaperRow("crossformer_base", "upernet", CLASSIFICATION, 83.6, 1078.8, 49.2, 50.1),
    PaperRow("crossformerpp_base", "upernet", CLASSIFICATION_PP, 83.7, 1089.8, 50.7, 51.0),
    PaperRow("crossformer_large", "upernet", WIDE, 125.5, 1257.8, 50.4, 51.4),
    PaperRow("crossformer_large", "upernet", CLASSIFICATION, 125.5, 1243.5, 50.5, 51.4),
    PaperRow("crossformerpp_large", "upernet", CLASSIFICATION_PP, 125.5, 1257.9, 51.0, 51.9),
    PaperRow("crossformerpp_huge", "upernet", CLASSIFICATION_PP, 129.5, 1416.1, 51.2, 51.8),
)


@dataclass(frozen=True)
class ModelRow:
    """One model: exact parameters, the auxiliary head's included, and multiply-accumulates without it."""

    name: str
    decoder: str
    group_sizes: tuple[int, ...]
    intervals: tuple[int, ...]
    params: int
    macs: int
    paper_params: float  # as printed, times 10⁶
    paper_macs: float  # the paper's "FLOPs", times 10⁹
    paper_iou: float
    paper_ms_iou: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def model_rows() -> Iterator[ModelRow]:
    """Our counts beside the paper's, row by row in the paper's order; each takes about a second."""
    for row in PAPER:
        model = build_meta(row)
        counted = count_complexity(model, (3, SIZE, SIZE))
        yield ModelRow(
            row.name,
            row.decoder,
            *row.groups,
            params=counted.params,
            macs=counted.macs,
            paper_params=round(row.params * 1e6),
            paper_macs=round(row.gflops * 1e9),
            paper_iou=row.iou,
            paper_ms_iou=row.ms_iou,
        )


def build_meta(row: PaperRow) -> Segmenter:
    """The model of a row on the meta device: shapes without memory."""
    section = with_groups(row.name, row.groups)
    with torch.device("meta"):
        return Segmenter(section, HeadSection(name=row.decoder), ade20k.COLORS)
