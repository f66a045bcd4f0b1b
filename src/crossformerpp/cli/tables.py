"""`crossformer tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crossformerpp.cli.bench import Protocol
from crossformerpp.cli.output import say, show_json, show_table, track
from crossformerpp.cli.train import AsJson, Overwrite

if TYPE_CHECKING:
    from crossformerpp.analysis.tables import TableRow


def tables(
    numbers: Annotated[
        list[str] | None, typer.Argument(metavar="[II … XI]", help="Tables of the paper; default: all.")
    ] = None,
    count: Annotated[
        Literal["ours", "paper"],
        typer.Option(
            help="Which multiply-accumulates: ours, without padding; paper, including padded tokens as the paper does."
        ),
    ] = "ours",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time the classification models on this machine.")
    ] = False,
    batch: Annotated[list[int], typer.Option(min=1, help="Images per batch; may be repeated.")] = [64, 1],  # noqa: B006
    device: Annotated[str, typer.Option(help="Where to time: cpu, cuda, cuda:1, …")] = "cpu",
    seconds: Annotated[
        float, typer.Option(help="Approximate time per table and batch size, with --protocol turns.")
    ] = 60.0,
    protocol: Protocol = "turns",
    out: Annotated[Path | None, typer.Option(help="Folder for tables.md, tables.csv and plots.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Print the paper's tables with our parameters and multiply-accumulates (MACs) beside them."""
    from crossformerpp.analysis.tables import MEASURED_TABLES, TABLES, table_title
    from crossformerpp.analysis.tables import measure as timed
    from crossformerpp.data.writing import claim_folder
    from crossformerpp.tasks.tables import kept_rows

    chosen = [number.upper() for number in numbers or TABLES]
    sources = {number: kept_rows(number) for number in chosen}  # fails at once if there is no such table
    if out is not None:
        claim_folder(out, overwrite)
    found = {number: list(rows) for number, rows in track(sources.items(), len(sources), "counting")}
    if measure:
        for number in track([n for n in chosen if n in MEASURED_TABLES], len(chosen), "timing"):
            found[number] = timed(found[number], batch, device, seconds, protocol)
    if out is not None:
        _write({number: (table_title(number), rows) for number, rows in found.items()}, out, count)
    if as_json:
        show_json([row.to_json() for rows in found.values() for row in rows])
        return
    for number, rows in found.items():
        _show(f"Table {number}: {table_title(number)}", rows, count)


def _show(title: str, rows: Sequence[TableRow], count: Literal["ours", "paper"]) -> None:
    from crossformerpp.analysis.table_files import table_cells

    show_table(*table_cells(rows, count), title)
    for row in rows:
        if row.note:
            say(f"{row.name}: {row.note}")


def _write(
    found: Mapping[str, tuple[str, Sequence[TableRow]]], out: Path, count: Literal["ours", "paper"]
) -> None:
    from crossformerpp.analysis.table_files import as_csv, as_markdown, draw
    from crossformerpp.data.writing import replacing

    page = "\n".join(as_markdown(title, rows, count) for title, rows in found.values())
    sheet = as_csv([row for _, rows in found.values() for row in rows])
    for name, text in (("tables.md", page), ("tables.csv", sheet)):
        with replacing(out / name) as file:
            file.write(text.encode())
    for number, (title, rows) in found.items():
        draw(title, rows, out / f"table_{number}.png")
