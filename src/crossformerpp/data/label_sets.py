"""Images with any number of labels each: listed in a table, or lying in several class folders.

A table has a column of labels, separated by ; | or a comma, or a column of 0 and 1 per class; an image may have several
rows, whose labels are joined. Class folders hold a picture in the folder of each of its classes: as a link, symbolic or
hard, or as a copy of the same content.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossformerpp.data.classification import (
    Files,
    LabelledImages,
    Names,
    relabel,
    scan_classes,
    split_folder,
)
from crossformerpp.data.names import printable
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat
from crossformerpp.data.problems import Remark
from crossformerpp.data.split import Which
from crossformerpp.data.table_files import LABEL_NAMES, SEPARATORS, SPLIT_NAMES, Table
from crossformerpp.data.tables import LabelledRows, by_number, choose, read_rows, require_tables, warn_of_case

# a list of quoted texts, one in square brackets, or an empty one, as programs write them into a cell
_LIST = re.compile(r"[\[({]\s*(?:(['\"]).*['\"],?)?\s*[\])}]|\[.*\]", re.DOTALL)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_TRUE, _FALSE, _UNKNOWN = ("1", "1.0", "true"), ("0", "0.0", "false"), ("-1", "-1.0")


def open_label_sets(
    root: Path,
    which: Which,
    is_table: bool,
    val_fraction: float,
    seed: int,
    class_names: list[str] | None = None,
    pixels: PixelFormat = PHOTOGRAPHS,
) -> LabelledImages:
    """One split of a table or of class folders; without splits of its own it is drawn, class by class.

    Raises:
        ValueError: Nothing of the kind is there, or it cannot be used; names file and line.
    """
    if is_table:
        source = _open_table(root, which, val_fraction, seed, class_names)
        return replace(source, pixels=pixels)
    folder, is_drawn = split_folder(root, which)
    least = 2 if class_names is None else 1
    paths, sets, found = _merged(*scan_classes(folder, pixels.extensions, keep_links=True, least=least))
    if class_names is not None:
        sets, found = _relabelled(folder, sets, found, class_names), class_names
    names = [path.relative_to(root).as_posix() for path in paths]
    source = _kept(root, names, sets, found, is_drawn and which, val_fraction, seed)
    return replace(source, pixels=pixels)


def draw_label_sets(
    label_sets: Sequence[Sequence[int]], num_classes: int, val_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Positions of "train" and "val" with about `val_fraction` of each class, the rarest classes first (after Sechidis
    et al., On the Stratification of Multi-Label Data, 2011); a class keeps an image for training if it has any.
    """
    order = np.random.default_rng(seed).permutation(len(label_sets)).tolist()
    own: list[list[int]] = [[] for _ in range(num_classes)]
    for number in order:
        for label in label_sets[number]:
            own[label].append(number)
    is_val: dict[int, bool] = {}
    for numbers in sorted(own, key=len):
        free = [number for number in numbers if number not in is_val]
        taken = sum(is_val.get(number, False) for number in numbers)
        count = max(1, round(len(numbers) * val_fraction)) - taken
        has_training = any(not is_val[number] for number in numbers if number in is_val)
        count = max(0, min(count, len(free) - (not has_training)))
        is_val |= {number: place < count for place, number in enumerate(free)}
    free = [number for number in order if number not in is_val]
    is_val |= {number: place < round(len(free) * val_fraction) for place, number in enumerate(free)}
    return {
        which: [number for number in range(len(label_sets)) if is_val[number] == (which == "val")]
        for which in ("train", "val")
    }


def _kept(
    root: Path,
    names: list[str],
    sets: list[list[int]],
    class_names: list[str],
    drawn: Which | bool,
    val_fraction: float,
    seed: int,
) -> LabelledImages:
    """The images of a split, which is drawn from all of them if `drawn` names one."""
    is_drawn = bool(drawn) and drawn != "test"
    if is_drawn:
        keep = draw_label_sets(sets, len(class_names), val_fraction, seed)[str(drawn)]
        names, sets = [names[place] for place in keep], [sets[place] for place in keep]
    listed = Names(names)
    return LabelledImages(
        Files(root, listed), [], class_names, listed.as_printable(), label_sets=sets, is_drawn=is_drawn
    )


def _relabelled(source: Path, sets: list[list[int]], found: list[str], wanted: list[str]) -> list[list[int]]:
    flat = relabel(source, [label for own in sets for label in own], found, wanted)
    numbers = iter(flat)
    return [[next(numbers) for _ in own] for own in sets]


def _merged(
    paths: list[Path], labels: list[int], class_names: list[str]
) -> tuple[list[Path], list[list[int]], list[str]]:
    """Each picture once, under its first path, with all its classes."""
    status = [os.stat(path) for path in paths]
    files: dict[tuple[int, int], int] = {}  # file -> its first path
    first = [files.setdefault((one.st_dev, one.st_ino), place) for place, one in enumerate(status)]
    sizes: dict[int, list[int]] = {}
    for place in files.values():
        sizes.setdefault(status[place].st_size, []).append(place)
    contents: dict[bytes, int] = {}
    same = {
        place: contents.setdefault(_digest(paths[place]), place) if len(alike) > 1 else place
        for alike in sizes.values()
        for place in alike
    }
    sets: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        own = sets.setdefault(same[first[place]], [])
        if label not in own:
            own.append(label)
    return [paths[place] for place in sets], [sorted(own) for own in sets.values()], class_names


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _open_table(
    root: Path, which: Which, val_fraction: float, seed: int, class_names: list[str] | None
) -> LabelledImages:
    read = {split: read_rows(file, _labels_of) for split, file in require_tables(root).items()}
    rows, keep = choose(read, which, root)
    wanted = class_names or _class_names(read, root)
    problems = rows.problems.lines()
    if problems:
        warnings.warn(f"{printable(str(rows.table.file))}: left out {'; '.join(problems)}", stacklevel=2)
    numbers = {name: number for number, name in enumerate(wanted)}
    sets: dict[str, set[int]] = {}
    for place in keep:
        own = json.loads(rows.labels[place])
        if strange := [name for name in own if name not in numbers]:
            raise ValueError(
                f"{rows.table.where(rows.rows[place])}: unknown class {strange[0]}; the training images have "
                f"{', '.join(wanted[:10])}"
            )
        sets.setdefault(rows.paths[place], set()).update(numbers[name] for name in own)
    is_drawn = None in read and rows.splits is None
    listed = [sorted(own) for own in sets.values()]
    return _kept(rows.folder, list(sets), listed, wanted, is_drawn and which, val_fraction, seed)


def _class_names(read: dict[Which | None, LabelledRows], root: Path) -> list[str]:
    """The columns of 0 and 1, or the labels of the training images, sorted; without a training split those of all."""
    try:
        rows, keep = choose(read, "train", root)
    except ValueError:
        rows, keep = choose(read, "val", root)
    columns = None if _list_column(rows.table) is not None else _class_columns(rows.table)
    found = {name for place in keep for name in json.loads(rows.labels[place])}
    names = columns or sorted(found, key=by_number)
    if len(names) < 2:
        listed = names[0] if names else "none"
        raise ValueError(f"{rows.table.file}: a single label ({listed}); at least two are needed")
    warn_of_case(rows.table.file, names)
    sizes = [len(json.loads(rows.labels[place])) for place in keep]
    if columns is None and max(sizes) < 2 and len({rows.paths[place] for place in keep}) == len(keep):
        warnings.warn(
            f"{rows.table.file}: no image has two labels; they are separated by {' '.join(SEPARATORS)}, as in "
            f"{names[0]};{names[1]}",
            Remark,
            stacklevel=3,
        )
    return names


def _labels_of(table: Table) -> list[str]:
    """The labels of each row as a JSON list.

    Raises:
        ValueError: There is neither a column of labels nor such columns of 0 and 1; or a cell is something else.
    """
    column = _list_column(table)
    if column is not None:
        cells = table.columns[column]
        plain = [cell for cell in cells if not _LIST.fullmatch(cell)]
        separator = next((one for one in SEPARATORS if any(one in cell for cell in plain)), ";")
        sets = [_listed(cell) if _LIST.fullmatch(cell) else cell.split(separator) for cell in cells]
        return [json.dumps([name.strip() for name in own if name.strip()]) for own in sets]
    names = _class_columns(table)
    wrong = [
        (row, name)
        for name in names
        for row, cell in enumerate(table.columns[name])
        if cell.lower() not in (*_TRUE, *_FALSE)
    ]
    if wrong:
        listed = "; ".join(
            f"{table.where(row)}: {name} is {table.columns[name][row]!r}" for row, name in wrong[:3]
        )
        raise ValueError(
            f"{table.file}: {len(wrong)} cells are neither 0 nor 1 ({listed}); write 0 or 1 into them, or remove the "
            "columns that are no classes"
        )
    columns = [[cell.lower() in _TRUE for cell in table.columns[name]] for name in names]
    return [
        json.dumps([name for name, has in zip(names, row, strict=True) if has])
        for row in zip(*columns, strict=True)
    ]


def _listed(cell: str) -> list[str]:
    """The texts or numbers in a list, as JSON, Python and numpy write it, quoted or not."""
    try:
        return [str(name) for name in json.loads(cell)]
    except ValueError:
        if quoted := _QUOTED.findall(cell):
            return [one or two for one, two in quoted]
    inner = cell[1:-1]
    numbers = inner.split()  # numpy writes no commas
    return numbers if all(map(str.isdecimal, numbers)) else inner.split(",")


def _list_column(table: Table) -> str | None:
    found = table.find((*LABEL_NAMES, "tags", "classes"))
    return found if found != table.path_column else None


def _class_columns(table: Table) -> list[str]:
    """The columns whose cells, but for empty ones, are mostly 0 and 1, or the -1 of labels that nobody knows."""
    taken = (table.path_column, table.find(SPLIT_NAMES))
    names = []
    for name, cells in table.columns.items():
        filled = [cell.lower() in (*_TRUE, *_FALSE, *_UNKNOWN) for cell in cells if cell]
        if name not in taken and sum(filled) * 2 > len(filled):
            names.append(name)
    if len(names) < 2:
        raise ValueError(
            f"{table.file}: no column `labels` (separated by {' '.join(SEPARATORS)}) and no columns of 0 and 1, one "
            f"per class: its columns are {', '.join(table.columns)}"
        )
    return names
