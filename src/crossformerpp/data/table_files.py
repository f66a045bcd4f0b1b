"""The cells of tables that list images: CSV, TSV and parquet files."""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossformerpp.data.names import printable, read_text
from crossformerpp.data.pixels import PIXEL_EXTENSIONS

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet")
PATH_NAMES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "image_id",
)
LABEL_NAMES = ("label", "class", "class_name", "category", "target", "labels", "y")
SEPARATORS = (";", "|", ",")  # of several labels in a cell
SPLIT_NAMES = ("split", "subset", "set", "fold", "partition")


@dataclass(frozen=True)
class Table:
    """The cells of a table as text.

    Attributes:
        columns: By name, each with a cell per row; no cell is None, missing ones are "".
        lines: Line of each row in the file, from 1 on; of parquet, its row.
    """

    file: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def find(self, names: Sequence[str]) -> str | None:
        """The first column of one of these names, in any case."""
        by_name = {name.strip().lower().replace(" ", "_"): name for name in reversed(self.columns)}
        return next((by_name[name] for name in names if name in by_name), None)

    @property
    def path_column(self) -> str | None:
        """The column of paths, by its name or, failing that, by the names of image files in all of its first cells."""
        named = self.find(PATH_NAMES)
        looks = [name for name, cells in self.columns.items() if cells and all(map(names_image, cells[:50]))]
        return next(iter(looks), None) if named is None or (looks and named not in looks) else named

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.file.name}:{self.lines[row]}"


def lists_images(file: Path) -> bool:
    """Whether a table has a column of image paths, by its first rows."""
    try:
        return _read_table(file, 50).path_column is not None
    except ValueError:
        return False


def read_table(file: Path) -> Table:
    """All cells of a CSV, TSV or parquet file. A CSV's cells are separated by commas, semicolons, tabs or |, or as its
    first line `sep=…` says.

    A CSV whose first line already names an image has no heading: its columns are called 1, 2, ….

    Raises:
        ValueError: Unreadable, empty, a column name twice, or a row of another length; names the line.
    """
    return _read_table(file, None)


def names_image(cell: str) -> bool:
    """Whether a cell ends like the name of an image file."""
    return Path(cell).suffix.lower() in PIXEL_EXTENSIONS


def _read_table(file: Path, limit: int | None) -> Table:
    names, cells, lines = (_read_parquet if file.suffix.lower() == ".parquet" else _read_csv)(file, limit)
    if limit is not None:  # a look: what is wrong with it is said when it is read
        cells = [[*row, *[""] * len(names)][: len(names)] for row in cells]
    twice = [] if limit is not None else [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{file}, line 1: two columns are called {twice[0]!r}; rename one")
    columns = {name: [row[number] for row in cells] for number, name in enumerate(names)}
    return Table(file, columns, lines)


def _read_csv(file: Path, limit: int | None) -> tuple[list[str], list[list[str]], list[int]]:
    text = read_text(file)
    heading = text.lstrip().partition("\n")[0]
    told = re.fullmatch(r"sep=(.)\s*", heading, re.IGNORECASE)  # as Excel writes it
    by_name = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=heading.count)
    delimiter = told[1] if told else by_name
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([printable(cell.strip()) for cell in row])
                lines.append(reader.line_num)
            if limit is not None and len(rows) > limit:
                break
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: unreadable ({error})") from None
    if told:
        rows, lines = rows[1:], lines[1:]
    if not rows:
        raise ValueError(f"{file}: an empty table")
    has_heading = not any(map(names_image, rows[0]))
    names = rows.pop(0) if has_heading else [str(number + 1) for number in range(len(rows[0]))]
    lines = lines[1:] if has_heading else lines
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names) and limit is None:
            raise ValueError(f"{file}, line {line}: {len(row)} cells, but the first line has {len(names)}")
    kept = [n for n, name in enumerate(names) if name or any(row[n : n + 1] != [""] for row in rows)]
    # without columns of neither name nor values, as spreadsheets leave them
    names, *rows = ([row[n] for n in kept if n < len(row)] for row in (names, *rows))
    return names, rows, lines


def _read_parquet(file: Path, limit: int | None) -> tuple[list[str], list[list[str]], list[int]]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise ValueError(
            f"{file}: reading this needs pyarrow: pip install pyarrow; or save it as CSV"
        ) from None
    try:
        with parquet.ParquetFile(file) as page:
            flat = [field.name for field in page.schema_arrow if _is_text(field.type, types)]
            if limit is None:
                table = page.read(columns=flat)
            else:
                table = next(
                    page.iter_batches(limit, columns=flat), page.schema_arrow.empty_table().select(flat)
                )
            columns = [table.column(name).to_pylist() for name in flat]
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file}: unreadable parquet ({' '.join(str(error).split())[:200]})") from None
    cells = [[printable(_as_text(value).strip()) for value in row] for row in zip(*columns, strict=True)]
    return flat, cells, list(range(1, len(cells) + 1))


def _is_text(kind: Any, types: Any) -> bool:
    """Whether a column of this type holds texts or numbers, or lists of them."""
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return not types.is_nested(kind) and not types.is_binary(kind)


def _as_text(value: Any) -> str:
    """Of a cell; a list as ;-separated, or as JSON where a separator is part of a text."""
    if isinstance(value, list):
        texts = [_as_text(one) for one in value]
        is_plain = not any(separator in text for text in texts for separator in SEPARATORS)
        return ";".join(texts) if is_plain else json.dumps(texts)
    is_number = not (isinstance(value, float) and math.isnan(value))
    return str(value) if value is not None and is_number else ""
