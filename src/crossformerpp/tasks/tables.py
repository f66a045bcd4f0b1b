"""All tables of the paper by their numbers: those of classification, and of the dense tasks."""

from collections.abc import Iterator
from typing import Any

from crossformerpp.analysis.tables import (
    CLASSIFICATION_TABLES,
    TableRow,
    classification_rows,
    classification_title,
)

TABLES = ("II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI")

_DENSE_TITLES = {
    "III": "RetinaNet on COCO, 1280×800",
    "IV": "Mask R-CNN on COCO, 1280×800",
    "V": "Semantic segmentation on ADE20K, 1024×1024",
}
_RETINANET_SLIP = "the paper prints the row above again; its Mask R-CNN with this backbone fits our count"


def table_title(table: str) -> str:
    """What a table is about."""
    return classification_title(table) if table in CLASSIFICATION_TABLES else _DENSE_TITLES[table]


def table_rows(table: str) -> Iterator[TableRow]:
    """The rows of one of `TABLES`, counted on the meta device.

    Raises:
        ValueError: There is no such table.
    """
    if table in CLASSIFICATION_TABLES:
        return classification_rows(table)
    if table not in _DENSE_TITLES:
        raise ValueError(f"no table {table!r}: choose among {', '.join(TABLES)}")
    return _segmentation_rows() if table == "V" else _detection_rows(table)


def _detection_rows(table: str) -> Iterator[TableRow]:
    from crossformerpp.tasks.detection.table import SIZE, model_rows

    for row in model_rows("retinanet" if table == "III" else "mask_rcnn"):
        note = _RETINANET_SLIP if table == "III" and row.name == "crossformerpp_small" else ""
        figures = {"box AP": row.paper_box_ap, "mask AP": row.paper_mask_ap}
        yield _dense_row(table, f"{row.name} {row.schedule}", row, SIZE, figures, note)


def _segmentation_rows() -> Iterator[TableRow]:
    from crossformerpp.tasks.segmentation.table import SIZE, model_rows

    for row in model_rows():
        figures = {"IoU": row.paper_iou, "MS IoU": row.paper_ms_iou}
        yield _dense_row("V", f"{row.name} {row.decoder}", row, (SIZE, SIZE), figures)


def _dense_row(
    table: str,
    name: str,
    row: Any,
    size: tuple[int, int],
    figures: dict[str, float | None],
    note: str = "",
) -> TableRow:
    return TableRow(
        table,
        f"{name} ({', '.join(map(str, row.group_sizes))})",
        row.name,
        {"group_sizes": list(row.group_sizes), "intervals": list(row.intervals)},
        size,
        row.params,
        row.macs,
        row.paper_params,
        row.paper_macs,
        {label: value for label, value in figures.items() if value is not None},
        note=note,
    )
