"""The paper's tables: its figures beside the counts and the speed of our models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from typing import Any

import timm
import torch
import yaml
from torch import nn

from crossformerpp.analysis.benchmark import Setting, timed_call
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.paper_count import count_as_the_paper, is_paper_countable
from crossformerpp.analysis.throughput import Protocol, time_calls
from crossformerpp.models import VARIANTS

TABLES = ("II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI")
DENSE_TABLES = ("III", "IV", "V")  # whose rows are detectors and segmenters: counted in `tasks.tables`
CLASSIFICATION_TABLES = tuple(table for table in TABLES if table not in DENSE_TABLES)
MEASURED_TABLES = CLASSIFICATION_TABLES[:-1]  # whose rows are classifiers


@dataclass(frozen=True)
class TableRow:
    """One row of a table; None where nothing was counted, printed or measured.

    Attributes:
        model: timm name of what was built.
        options: Of `timm.create_model`.
        size: Height and width of the images.
        head: In Tables III to V what stands on the model, a detector or a segmentation head.
        schedule: How long that is trained: 1x, 3x, 80k or 160k.
        recipe: Name of the page that trains it.
        params, macs: As counted here.
        paper_count: Multiply-accumulates by the paper's own counting (`paper_count`).
        paper_params, paper_macs: As printed, times 10⁶ and 10⁹.
        figures: The other figures printed, by column: accuracies in percent and the like.
        paper_throughput: The paper's images/s by batch size, on its GPU.
        throughput: Images/s by batch size, as measured here.
        note: An erratum or assumption.
    """

    table: str
    name: str
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (224, 224)
    head: str | None = None
    schedule: str | None = None
    recipe: str | None = None
    params: int | None = None
    macs: int | None = None
    paper_count: int | None = None
    paper_params: float | None = None
    paper_macs: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    paper_throughput: dict[int, float] = field(default_factory=dict)
    throughput: dict[int, float] = field(default_factory=dict)
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is a CrossFormer or CrossFormer++."""
        return self.model in VARIANTS

    def build(self) -> nn.Module:
        """The model of this row, on the default device; in Tables III to V the backbone with a classifier's head."""
        assert self.model is not None
        return timm.create_model(self.model, **self.options)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def table_title(table: str) -> str:
    """The title of a table of `TABLES`."""
    return read_tables()[table]["title"]


def paper_rows(table: str) -> list[TableRow]:
    """The rows of one of `TABLES` as the paper prints them, nothing counted."""
    page = read_tables()[table]
    rows = []
    for part in page.get("parts", [page]):
        common = {key: part.get(key) for key in ("head", "schedule", "recipe")}
        common["size"] = page.get("size", 224)
        for values in part["rows"]:
            printed = dict(zip(part["columns"], values["printed"], strict=True))
            rows.append(_row(table, printed, **common | {k: v for k, v in values.items() if k != "printed"}))
    return rows


def classification_rows(table: str) -> Iterator[TableRow]:
    """The rows of a table of `CLASSIFICATION_TABLES`, counted by formula if they have the paper's layers alone, else
    on the meta device, which takes about half a second."""
    for row in paper_rows(table):
        if row.model is None:
            yield row
            continue
        with torch.device("meta"):
            model: Any = row.build()
            if row.table not in MEASURED_TABLES:
                model.reset_classifier(0)
        if is_paper_countable(row.model, row.options):
            params = sum(parameter.numel() for parameter in model.parameters())
            macs, by_paper = (
                count_as_the_paper(row.model, row.options, *row.size, padded=is_padded)
                + model.num_features * model.num_classes
                for is_padded in (False, True)
            )
            yield replace(row, params=params, macs=macs, paper_count=by_paper)
        else:
            cost = count_complexity(model, (3, *row.size))
            yield replace(row, params=cost.params, macs=cost.macs)


def read_tables() -> dict[str, Any]:
    """The contents of paper_tables.yaml, whose comment explains them."""
    page = files("crossformerpp.analysis").joinpath("paper_tables.yaml")
    return yaml.safe_load(page.read_text(encoding="utf-8"))


def _row(table: str, printed: dict[str, float | None], size: int | Sequence[int], **values: Any) -> TableRow:
    figures = {column: figure for column, figure in printed.items() if figure is not None}
    params, gflops = figures.pop("params", None), figures.pop("gflops", None)
    rate = "images/s at "
    rates = {column: figures.pop(column) for column in list(figures) if column.startswith(rate)}
    return TableRow(
        table,
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        paper_params=None if params is None else params * 1e6,
        paper_macs=None if gflops is None else gflops * 1e9,
        figures=figures,
        paper_throughput={int(column.removeprefix(rate)): figure for column, figure in rates.items()},
        **values,
    )


def measure(
    rows: Sequence[TableRow],
    batch_sizes: Sequence[int],
    device: str = "cpu",
    seconds: float = 60.0,
    protocol: Protocol = "turns",
) -> list[TableRow]:
    """The rows with their models' images/s here, in float32.

    A batch that does not fit a GPU's memory is left out.

    Args:
        seconds: About how long to time each batch size in turns; every model gets at least five runs.
        protocol: See `throughput.time_calls`.
    """
    models = {i: row.build() for i, row in enumerate(rows) if row.model is not None}
    found: list[dict[int, float]] = [{} for _ in rows]
    for batch_size in batch_sizes:
        calls: dict[str, Callable[[], Any]] = {}
        for i, model in models.items():
            call = timed_call(model, Setting(batch_size, *rows[i].size, device=device))
            if _fits(call):
                calls[str(i)] = call
        for key, timing in time_calls(calls, protocol, seconds, device).items():
            found[int(key)][batch_size] = batch_size / timing.median
    return [replace(row, throughput=rates) for row, rates in zip(rows, found, strict=True)]


def _fits(call: Callable[[], Any]) -> bool:
    try:
        call()
    except torch.OutOfMemoryError:
        return False
    return True
