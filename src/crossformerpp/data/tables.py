"""Labelled images listed in a table: CSV, TSV or parquet with a column of paths, one of labels, perhaps one of splits.

    train.csv and val.csv (or valid, validation, dev, test), or one table with a split column, or one to be split

Columns are found by their names, see `data.table_files`; the paths lead from the table's folder, or from the
folder images/ beside it.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossformerpp.data.classification import Files, LabelledImages, Names, draw_split, relabel
from crossformerpp.data.coco_images import Finder
from crossformerpp.data.files import is_hidden
from crossformerpp.data.names import alike, printable
from crossformerpp.data.pixels import PIXEL_EXTENSIONS
from crossformerpp.data.problems import Problems, Remark
from crossformerpp.data.split import Which, split_named
from crossformerpp.data.table_files import (
    LABEL_NAMES,
    PATH_NAMES,
    SPLIT_NAMES,
    TABLE_EXTENSIONS,
    Table,
    lists_images,
    names_image,
    read_table,
)


@dataclass(frozen=True)
class LabelledRows:
    """The usable rows of a table: those whose image exists and has a label.

    Attributes:
        folder: What `paths` are relative to.
        labels: As written.
        splits: Of each row, "train", "val" or "test"; None: the table has no such column.
        rows: Number of each in `table`.
        problems: The rows that were left out, with their lines.
    """

    table: Table
    folder: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    rows: list[int]
    problems: Problems


def find_tables(root: Path) -> dict[Which | None, Path]:
    """The tables of image paths in a folder by split, or the single one under None; `root` may be that file itself.

    Raises:
        ValueError: Several tables claim to be the same split.
    """
    if root.is_file():
        return {None: root} if root.suffix.lower() in TABLE_EXTENSIONS else {}
    files = list(filter(lists_images, _table_files(root)))
    by_split: dict[Which | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_named(path.stem), []).append(path)
    for split, found in by_split.items():
        if len(found) > 1 or (split is not None and None in by_split):
            listed = ", ".join(path.name for path in files)
            raise ValueError(
                f"{root}: several tables list images ({listed}); pass --data {root}/TABLE for one of them"
            )
    return {split: found[0] for split, found in by_split.items()}


def require_tables(root: Path) -> dict[Which | None, Path]:
    """As `find_tables`.

    Raises:
        ValueError: There is none.
    """
    tables = find_tables(root)
    if not tables:
        raise ValueError(f"{root}: no table of images ({', '.join(TABLE_EXTENSIONS)} with a column of paths)")
    return tables


def unusable_table(root: Path) -> str | None:
    """Why the first table in a folder does not list images; None: it does, or there is no table."""
    file = next(_table_files(root), None)
    if file is None:
        return None
    try:
        table = read_table(file)
    except ValueError as error:
        return str(error)
    return None if table.path_column is not None else _without_paths(table)


def _table_files(root: Path) -> Iterator[Path]:
    """The tables in a folder, sorted, whatever they list."""
    for file in sorted(root.iterdir()) if root.is_dir() else ():
        if file.suffix.lower() in TABLE_EXTENSIONS and file.is_file() and not is_hidden(file.name):
            yield file


def read_rows(file: Path, label_of: Callable[[Table], Sequence[str]] | None = None) -> LabelledRows:
    """The rows that can be used, of a table of labelled images.

    Args:
        label_of: The label of each row ("" for none); default: the cells of the label column.

    Raises:
        ValueError: There is no column of paths or of labels, no row can be used, or a split has an unknown name.
    """
    table = read_table(file)
    column = table.path_column
    if column is None:
        raise ValueError(_without_paths(table))
    labels = label_of(table) if label_of is not None else table.columns[_label_column(table, column)]
    splits = _splits(table)
    problems = Problems()
    finders = [Finder(folder) for folder in (file.parent, file.parent / "images", file.parent / file.stem)]
    rows, paths = [], []
    for row, name in enumerate(table.columns[column]):
        path = _find(finders, name)
        if not name:
            problems.add("row without a path", table.where(row))
        elif path is None:
            problems.add("missing image", f"{table.where(row)}: {printable(name)}")
        elif not labels[row]:
            problems.add("row without a label", table.where(row))
        else:
            rows.append(row)
            paths.append(path.relative_to(file.parent).as_posix())
    if not rows:
        left_out = f"left out {problems}" if problems.found else "it has no rows"
        raise ValueError(
            f"{file}: none of its images can be used ({left_out}); paths lead from {file.parent} or its images/"
        )
    return LabelledRows(
        table,
        file.parent,
        paths,
        [labels[row] for row in rows],
        splits and [splits[row] for row in rows],
        rows,
        problems,
    )


def open_table(
    root: Path,
    which: Which,
    val_fraction: float,
    seed: int,
    class_names: list[str] | None = None,
) -> LabelledImages:
    """One split of a table of images with a label each, or of the tables in a folder.

    Splits are those of the files' names, else those of the split column, else drawn as `classification.open_folder`
    draws them; "test" rows stand in for "val" ones where there are none.

    Raises:
        ValueError: As `read_rows`; images with two labels, a single class, or classes that differ from `class_names`
            or between the splits.
    """
    read = {split: read_single_labels(file) for split, file in require_tables(root).items()}
    rows, keep = choose(read, which, root)
    wanted = class_names or _class_names(read, root)
    own = sorted({rows.labels[place] for place in keep}, key=by_number)
    numbers = {name: number for number, name in enumerate(own)}
    labels = [numbers[rows.labels[place]] for place in keep]
    try:
        labels = relabel(rows.table.file, labels, own, wanted)
    except ValueError as error:
        strange = [rows.table.where(rows.rows[place]) for place in keep if rows.labels[place] not in wanted]
        raise ValueError(
            f"{error} ({len(strange)} rows: {', '.join(strange[:3])}); label training images so, or remove these rows"
        ) from None
    paths = [rows.paths[place] for place in keep]
    others = set() if which == "train" or "train" not in read else set(read["train"].paths)
    if shared := [path for path in paths if path in others]:
        warnings.warn(
            f"{rows.table.file}: {len(shared)} of its images are training images, too; the metrics will be too good: "
            f"{', '.join(map(printable, shared[:3]))}",
            stacklevel=2,
        )
    is_drawn = None in read and rows.splits is None and which != "test"
    if is_drawn:
        half = draw_split(labels, val_fraction, seed, wanted, root)[which]
        paths, labels = [paths[place] for place in half], [labels[place] for place in half]
    listed = Names(paths)
    return LabelledImages(
        Files(rows.folder, listed), labels, wanted, listed.as_printable(), is_drawn=is_drawn
    )


def read_single_labels(file: Path) -> LabelledRows:
    """`read_rows` of a table with one label per image; says what is left out.

    Raises:
        ValueError: As `read_rows`; or an image has two labels.
    """
    rows = read_rows(file)
    first: dict[str, int] = {}
    repeated, conflicts = set(), []
    for place, path in enumerate(rows.paths):
        before = first.setdefault(path, place)
        if before != place:
            repeated.add(place)
            rows.problems.add("image listed again with the same label", rows.table.where(rows.rows[place]))
            if rows.labels[before] != rows.labels[place]:
                lines = (rows.table.lines[rows.rows[one]] for one in (before, place))
                conflicts.append(f"{printable(path)} in lines {' and '.join(map(str, lines))}")
    if conflicts:
        raise ValueError(
            f"{file}: {len(conflicts)} images have two labels ({'; '.join(conflicts[:3])}); leave one label each, or "
            "pass --set multi_label=true (`data check`: --multi-label)"
        )
    if rows.problems.found:
        warnings.warn(f"{printable(str(file))}: left out {'; '.join(rows.problems.lines())}", stacklevel=2)
    kept = [place for place in range(len(rows.paths)) if place not in repeated]
    return LabelledRows(
        rows.table,
        rows.folder,
        [rows.paths[place] for place in kept],
        [rows.labels[place] for place in kept],
        rows.splits and [rows.splits[place] for place in kept],
        [rows.rows[place] for place in kept],
        rows.problems,
    )


def _class_names(read: dict[Which | None, LabelledRows], root: Path) -> list[str]:
    """The classes that training images have, sorted; without a training split those of all."""
    try:
        rows, keep = choose(read, "train", root)
    except ValueError:
        rows, keep = choose(read, "val", root)
    names = sorted({rows.labels[place] for place in keep}, key=by_number)
    if len(names) < 2:
        raise ValueError(f"{rows.table.file}: a single class ({names[0]}); at least two are needed")
    warn_of_case(rows.table.file, names)
    if lists := [name for name in names if ";" in name or "|" in name]:
        warnings.warn(
            f"{rows.table.file}: the class {lists[0]} reads like several labels; if so, pass --set multi_label=true",
            stacklevel=3,
        )
    return names


def choose(
    read: dict[Which | None, LabelledRows], which: Which, root: Path
) -> tuple[LabelledRows, list[int]]:
    """The table that holds a split, and the places of the split's rows in it: all rows where it is yet to be drawn.

    Raises:
        ValueError: There is no such split.
    """
    half: Which = "train" if which == "train" else "val"
    wanted = (half,) if half == "train" else ("val", "test")
    if None not in read:
        found = next((name for name in wanted if name in read), None)
        if found is None:
            raise ValueError(
                f"{root}: no table of the {half} split beside {next(iter(read.values())).table.file.name}"
            )
        _say_test(root, found, half)
        return read[found], list(range(len(read[found].paths)))
    rows = read[None]
    if rows.splits is None:
        return rows, list(range(len(rows.paths)))
    counts = Counter(rows.splits)
    name = next((name for name in wanted if counts[name]), None)
    if name is None:
        raise ValueError(f"{rows.table.file}: no row of the {half} split ({dict(counts)})")
    _say_test(root, name, half)
    return rows, [place for place, split in enumerate(rows.splits) if split == name]


def _say_test(root: Path, found: str, half: str) -> None:
    if found != half:
        warnings.warn(
            f"{root}: no validation split; test is used for validation, so that its figures also choose the best "
            "checkpoint",
            stacklevel=3,
        )


def _label_column(table: Table, path_column: str) -> str:
    """
    Raises:
        ValueError: No column has a known name, and several could be meant.
    """
    found = table.find(LABEL_NAMES)
    if found is not None and found != path_column:
        return found
    others = [name for name in table.columns if name not in (path_column, table.find(SPLIT_NAMES))]
    if len(others) != 1:
        raise ValueError(
            f"{table.file}: which column holds the labels? Rename it to `label`: {_columns(table)}; for columns of 0 "
            "and 1 pass --set multi_label=true"
        )
    return others[0]


def _splits(table: Table) -> list[str] | None:
    column = table.find(SPLIT_NAMES)
    if column is None:
        return None
    found: list[str] = []
    wrong = []
    for row, cell in enumerate(table.columns[column]):
        split = split_named(cell)
        if split is None:
            wrong.append(f"{table.where(row)}: {cell!r}")
        found.append(split or "")
    if wrong:
        raise ValueError(
            f"{table.file}: {len(wrong)} rows are of no known split ({'; '.join(wrong[:3])}); column {column} holds "
            "train, val or test"
        )
    return found


def _find(finders: list[Finder], name: str) -> Path | None:
    """Where an image is; a name may lack its extension, as ids do."""
    for finder in finders if name else ():
        with suppress(ValueError):  # it leads out of the folder
            if finder.is_there(path := finder.find(name)):
                return path
        if not names_image(name) and (found := finder.find_any(name, PIXEL_EXTENSIONS)) is not None:
            return found
    return None


def _without_paths(table: Table) -> str:
    wanted = ", ".join(PATH_NAMES[:4])
    return f"{table.file}: no column of image paths; name it one of {wanted}: {_columns(table)}"


def warn_of_case(file: Path, names: Sequence[str]) -> None:
    """Warn of classes that are written in two ways."""
    if pairs := alike(names):
        text = "; ".join(pairs[:3])
        warnings.warn(
            f"{file}: classes that differ only in case: {text}; are they one?", Remark, stacklevel=3
        )


def _columns(table: Table) -> str:
    return f"its columns are {', '.join(table.columns) or 'none'}"


def by_number(name: str) -> Any:
    """0, 1, …, 10 in this order, where classes are numbers."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
