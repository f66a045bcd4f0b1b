"""The paper's tables as text for people (Markdown), for programs (CSV) and as a diagram."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from crossformerpp.analysis.tables import TableRow
from crossformerpp.data.writing import replacing

Count = Literal["ours", "paper"]
_ACCURACIES = ("accuracy", "box AP", "IoU")  # what a diagram shows, whichever a table has


def table_cells(rows: Sequence[TableRow], count: Count = "ours") -> tuple[list[str], list[list[str]]]:
    """Header and cells of one table; columns that no row fills are left out.

    Args:
        count: "paper" for multiply-accumulates as the paper counts them; else of real tokens only.
    """
    figures = list(dict.fromkeys(label for row in rows for label in row.figures))
    batches = sorted(
        {batch for row in rows for batch in (*row.throughput, *row.paper_throughput)}, reverse=True
    )
    has_rates = any(row.throughput for row in rows)
    columns: dict[str, list[str]] = {"model": [row.name for row in rows]}
    columns["head"] = [f"{row.head} {row.schedule}" if row.head else "" for row in rows]
    columns["params, M"] = [_scaled(row.params, 1e6, 2) for row in rows]
    columns["paper's params, M"] = [_scaled(row.paper_params, 1e6, 1) for row in rows]
    columns["Δ params"] = [_difference(row.params, row.paper_params) for row in rows]
    macs = [row.paper_count if count == "paper" else row.macs for row in rows]
    columns["GMACs" if count == "ours" else "GMACs as the paper counts"] = [_scaled(m, 1e9, 2) for m in macs]
    columns["paper's GMACs"] = [_scaled(row.paper_macs, 1e9, 1) for row in rows]
    columns["Δ GMACs"] = [_difference(m, row.paper_macs) for m, row in zip(macs, rows, strict=True)]
    for label in figures:
        columns[f"paper's {label}"] = [_scaled(row.figures.get(label), 1, 1) for row in rows]
    for batch in batches:
        if has_rates:
            columns[f"images/s at {batch}"] = [_scaled(row.throughput.get(batch), 1, 1) for row in rows]
        columns[f"paper's images/s at {batch}"] = [
            _scaled(row.paper_throughput.get(batch), 1, 0) for row in rows
        ]
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return list(filled), [list(cells) for cells in zip(*filled.values(), strict=True)]


def as_markdown(title: str, rows: Sequence[TableRow], count: Count = "ours") -> str:
    """A heading, the table, and its notes."""
    header, cells = table_cells(rows, count)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    text = "\n".join(f"| {' | '.join(cell.strip().replace('|', '/') for cell in line)} |" for line in lines)
    notes = "".join(f"\n{row.name}: {row.note}.\n".replace("|", "/") for row in rows if row.note)
    return f"## Table {rows[0].table}: {title}\n\n{text}\n{notes}"


def as_csv(rows: Sequence[TableRow]) -> str:
    """All rows with exact numbers, a column per kind of figure and batch size."""
    records = []
    for row in rows:
        plain = {k: v for k, v in row.to_json().items() if not isinstance(v, dict)}
        plain["size"] = "x".join(map(str, row.size))
        plain |= {f"paper {label}": value for label, value in row.figures.items()}
        plain |= {f"images/s at {batch}": rate for batch, rate in row.throughput.items()}
        plain |= {f"paper images/s at {batch}": rate for batch, rate in row.paper_throughput.items()}
        records.append(plain)
    columns = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def draw(title: str, rows: Sequence[TableRow], path: Path) -> None:
    """The paper's accuracy over multiply-accumulates, and over each measured throughput, as a PNG.

    Multiply-accumulates are ours where they were counted, else the paper's.
    """
    batches = sorted({batch for row in rows for batch in row.throughput}, reverse=True)
    figure = Figure(figsize=(7 * (1 + len(batches)), 5.5), layout="constrained")
    panels = figure.subplots(1, 1 + len(batches), squeeze=False)[0]
    label = next(label for label in _ACCURACIES if any(label in row.figures for row in rows))
    macs = [row.macs or row.paper_macs for row in rows]
    _scatter(panels[0], rows, [value and value / 1e9 for value in macs], "GMACs", label)
    for panel, batch in zip(panels[1:], batches, strict=True):
        _scatter(
            panel, rows, [row.throughput.get(batch) for row in rows], f"images/s at batch {batch}", label
        )
    figure.suptitle(f"Table {rows[0].table}: {title}")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _scatter(
    axes: Axes, rows: Sequence[TableRow], values: Sequence[float | None], quantity: str, label: str
) -> None:
    for row, x in zip(rows, values, strict=True):
        y = row.figures.get(label)
        if x is None or y is None:
            continue
        color, order = ("tab:red", 3) if row.is_ours else ("tab:gray", 2)  # ours above what they overlap with
        axes.plot(x, y, "o", color=color, zorder=order)
        text = axes.annotate(row.name, (x, y), (3, 3), textcoords="offset points", fontsize=6, zorder=order)
        text.set(
            color="black" if row.is_ours else "dimgray",
            path_effects=[withStroke(linewidth=2, foreground="w")],
        )
    axes.set(xlabel=quantity, ylabel=f"{label}, % (paper)", xscale="log")
    axes.margins(x=0.12)  # for the names to the right of the outermost points
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.grid(alpha=0.3, which="both")


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _difference(ours: float | None, paper: float | None) -> str:
    return "" if ours is None or paper is None else f"{ours / paper - 1:+.1%}"
