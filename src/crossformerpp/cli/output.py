"""How commands print: tables for people, or the same as JSON, on stdout; everything else on stderr."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crossformerpp.data.names import printable, without_controls
from crossformerpp.data.writing import to_json

T = TypeVar("T")


def say(message: str) -> None:
    """A line to people, on stderr."""
    print(plain(message), file=sys.stderr)


def show(message: str) -> None:
    """A line of the answer, on stdout."""
    print(plain(message))


def plain(text: str) -> str:
    """The text without what would steer a terminal: names of files and classes may hold anything."""
    return without_controls(printable(text))


def track(
    items: Iterable[T], total: int, title: str, *, done: int = 0, unit: str | None = None
) -> Iterator[T]:
    """The items, with a progress bar on stderr while they come, if somebody looks at it.

    Args:
        done: How many of `total` came before.
        unit: What is counted, to show how many come per second.
    """
    console = Console(file=sys.stderr)
    columns: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    ]
    if unit is not None:
        columns.insert(3, _Speed(unit))
    hidden = total < 2 or not console.is_terminal
    with progress.Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(escape(plain(title)), total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


class _Speed(progress.ProgressColumn):
    """How many come per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: progress.Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s")


def show_json(content: Any) -> None:
    """The only thing on stdout with --json."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(to_json(content, ascii_only=not is_unicode))


def show_json_list(entries: Iterable[Any]) -> None:
    """As `show_json` of a list, but entry by entry, one a line."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    separator = "["
    for entry in entries:
        print(separator + to_json(entry, ascii_only=not is_unicode, indent=None), end="")
        separator = ",\n "
    print("]" if separator != "[" else "[]")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table; columns of figures to the right."""
    rows = list(rows)
    table = Table()
    for number, name in enumerate(columns):
        figures = all(row[number].strip("%kMG").replace(".", "", 1).isdigit() for row in rows)
        table.add_column(Text(plain(name)), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(plain(cell).replace("\n", " ")) for cell in row)
        )  # as text: brackets are no markup
    console = Console(highlight=False)
    # a pipe has no width; do not break its lines at 80
    console.width = console.width if console.is_terminal else 200
    if title is not None:
        console.print(plain(title), style="italic", markup=False, soft_wrap=True)
    console.print(table)


def show_metrics(metrics: dict[str, Any], title: str) -> None:
    """A table of an evaluation's flat metrics."""
    show_table(("metric", "value"), [(name, _figure(value)) for name, value in metrics.items()], title)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
