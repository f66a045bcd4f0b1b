"""All tables of the paper, counted: those of classification by `analysis.tables`, those of dense tasks here."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import crossformerpp
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.paper_count import count_as_the_paper
from crossformerpp.analysis.tables import DENSE_TABLES, TABLES, TableRow, classification_rows, paper_rows
from crossformerpp.data.names import read_json
from crossformerpp.data.writing import cache_folder, write_json
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.pyramid import Pyramid

if TYPE_CHECKING:
    from crossformerpp.tasks.detection.model import Detector
    from crossformerpp.tasks.segmentation.model import Segmenter

_NUM_CLASSES = 80  # of COCO

# What the second stage of Mask R-CNN is counted with: boxes, and masks.
_NUM_BOXES, _NUM_MASKS = 1000, 100
_COUNTS = ("params", "macs", "paper_count")


def table_rows(table: str) -> Iterator[TableRow]:
    """The rows of one of `TABLES`, counted on the meta device.

    Raises:
        ValueError: There is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: choose among {', '.join(TABLES)}")
    return _dense_rows(table) if table in DENSE_TABLES else classification_rows(table)


def kept_rows(table: str) -> Iterator[TableRow]:
    """As `table_rows`, counted once: the user's cache keeps the counts until the package's or PyTorch's code changes.

    Raises:
        ValueError: As `table_rows`.
    """
    return _kept_or_counted(table, table_rows(table))  # fails at once if there is no such table


def _kept_or_counted(table: str, counted: Iterator[TableRow]) -> Iterator[TableRow]:
    file, made_by = cache_folder() / "counts.json", _fingerprint()
    kept = _kept_counts(file, made_by)
    rows = paper_rows(table)
    if len(kept.get(table, [])) == len(rows):
        yield from (replace(row, **counts) for row, counts in zip(rows, kept[table], strict=True))
        return
    own = []
    for row in counted:
        own.append({name: getattr(row, name) for name in _COUNTS})
        yield row
    with suppress(OSError):  # without a cache it is counted again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"made_by": made_by, "tables": {**_kept_counts(file, made_by), table: own}})


def _kept_counts(file: Path, made_by: str) -> dict[str, list[dict[str, Any]]]:
    try:
        page = read_json(file)
        if page["made_by"] != made_by:
            return {}
        return {
            table: [{name: row[name] for name in _COUNTS} for row in rows]
            for table, rows in page["tables"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # none yet, or damaged
        return {}


def _fingerprint() -> str:
    """Changes with the package's code and tables, and the versions of what it counts with."""
    digest = hashlib.sha256(f"{torch.__version__} {timm.__version__} {torchvision.__version__}".encode())
    root = Path(crossformerpp.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_row(row: TableRow) -> Detector | Segmenter:
    """The detector or segmenter of a row of Tables III to V, on the default device."""
    assert row.model is not None
    section = ModelSection(name=row.model, options=row.options)
    if row.head in ("retinanet", "mask_rcnn"):
        from crossformerpp.recipes.detection import DetectionData, DetectorSection
        from crossformerpp.tasks.detection.model import build_detector

        detector = DetectorSection.model_validate({"name": row.head})
        return build_detector(section, detector, DetectionData(), _NUM_CLASSES)
    from crossformerpp.data import ade20k
    from crossformerpp.recipes.segmentation import HeadSection
    from crossformerpp.tasks.segmentation.model import Segmenter

    head = HeadSection.model_validate({"name": row.head, "input_norm": row.head != "upernet"})
    return Segmenter(section, head, ade20k.COLORS)


def _dense_rows(table: str) -> Iterator[TableRow]:
    """Parameters with the auxiliary head, which only training uses; multiply-accumulates without it."""
    for row in paper_rows(table):
        if row.model is None:
            yield row
            continue
        with torch.device("meta"):
            model = build_row(row)
            backbone = model.backbone
            maps = [
                torch.zeros(1, channels, *(-(-side // stride) for side in row.size))
                for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
            ]
        whole = count_complexity(_EveryPart(model), (3, *row.size))
        head = count_complexity(_Head(model), (maps,))
        by_paper = count_as_the_paper(row.model, row.options, *row.size) + head.macs
        yield replace(row, params=whole.params, macs=whole.macs, paper_count=by_paper)


class _Head(nn.Module):
    """All matrix products behind the backbone, without the choices among boxes, which depend on values."""

    def __init__(self, model: Detector | Segmenter) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, maps: list[Tensor]) -> None:
        model = self.model
        if not hasattr(model.backbone, "fpn"):
            model.classifier(model.decoder(maps))
            return
        pyramid = list(model.backbone.fpn(OrderedDict((str(i), c) for i, c in enumerate(maps))).values())
        if not hasattr(model, "roi_heads"):
            model.head(pyramid)
            return
        model.rpn.head(pyramid)
        heads, channels, like = model.roi_heads, model.backbone.out_channels, pyramid[0]
        boxes = like.new_zeros(_NUM_BOXES, channels, *heads.box_roi_pool.output_size)
        heads.box_predictor(heads.box_head(boxes))
        masks = like.new_zeros(_NUM_MASKS, channels, *heads.mask_roi_pool.output_size)
        heads.mask_predictor(heads.mask_head(masks))


class _EveryPart(_Head):
    """Backbone and head on one image."""

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        super().forward(Pyramid.forward(self.model.backbone, x))
