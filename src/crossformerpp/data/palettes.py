"""Which colour of a mask means which class: found in the folder's own tables, or in the masks themselves."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crossformerpp.data.files import find_files, folder_named
from crossformerpp.data.mask_files import (
    IGNORE_NAMES,
    MASK_EXTENSIONS,
    Color,
    Palette,
    open_mask,
    read_palette,
)
from crossformerpp.data.names import printable, read_text
from crossformerpp.data.problems import Problems
from crossformerpp.data.split import split_folders

_TABLES = ("palette.csv", "class_dict.csv", "classes.csv", "colors.csv", "colours.csv")
_LABEL_MAP = "labelmap.txt"  # CVAT's
_MOST_COLORS = 256
_LOOKED_AT = 64  # masks of one channel, of which others could be in colour
_NAME = re.compile(r"#[0-9a-f]{6}")


def find_palette(root: Path, trained: Sequence[str] | None = None) -> Palette | None:
    """The classes of colour masks in root/masks; None: they are index masks, or other names are given for them.

    A table in the folder tells (`palette.csv`, `class_dict.csv` and the like: name,r,g,b; or CVAT's labelmap.txt).
    Without one each colour that occurs in training masks is a class, which is called by it, #ff0000, black first.

    Args:
        trained: Names that a trained model knows.

    Raises:
        ValueError: The table is damaged, or the masks have more colours than classes could be.
    """
    in_color = _in_color(root)
    first = next(in_color, None)
    table = next((root / name for name in (*_TABLES, _LABEL_MAP) if (root / name).is_file()), None)
    if table is not None and first is not None:
        return _read_label_map(table) if table.name == _LABEL_MAP else read_palette(table)
    if trained is not None:
        return Palette(list(trained), colors_of(trained), []) if are_colors(trained) else None
    if first is None or (root / "classes.txt").is_file():
        return None  # of names without colours: reading the first mask in colour says what is missing
    if not (_has_colors(first) or any(map(_has_colors, in_color))):
        return None
    colors = _colors_in(root)
    return Palette([f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colors], colors, [])


def are_colors(names: Sequence[str]) -> bool:
    """Whether classes are called by their colours."""
    return all(_NAME.fullmatch(name) for name in names)


def colors_of(names: Sequence[str]) -> list[Color]:
    """The colours that classes are called by."""
    return [(int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)) for name in names]


def has_color_masks(root: Path) -> bool:
    """Whether a mask in root/masks is saved in colours, though perhaps grey ones."""
    return next(_in_color(root), None) is not None


def _in_color(root: Path) -> Iterator[Path]:
    return (path for path in _sample(_masks(root)) if _mode(path) in ("RGB", "RGBA"))


def _masks(root: Path) -> list[Path]:
    """The masks of training, or all where there are no splits."""
    folder = folder_named(root, "masks")
    if not folder.is_dir():
        return []
    return find_files(split_folders(folder).get("train", folder), MASK_EXTENSIONS, Problems())


def _sample(masks: list[Path]) -> list[Path]:
    """All masks if the first is in RGB, though perhaps black; else some, for programs save black masks with one
    channel where the others have three.
    """
    if not masks or _mode(masks[0]) in ("RGB", "RGBA"):
        return masks
    return masks[:: -(-len(masks) // _LOOKED_AT)]


def _mode(mask: Path) -> str:
    try:
        with Image.open(mask) as image:
            return image.mode
    except Exception:  # said when it is read
        return ""


def _has_colors(mask: Path) -> bool:
    try:
        pixels = np.asarray(open_mask(mask))
    except ValueError:
        return False  # said when it is read
    return not (pixels[..., :3] == pixels[..., :1]).all()


def _colors_in(root: Path) -> list[Color]:
    """All colours in the masks of training, black first."""
    found: set[Color] = set()
    masks = _masks(root)
    for number, path in enumerate(masks):
        image = open_mask(path).convert("RGB")
        counted = image.getcolors(_MOST_COLORS)
        found |= {color for _, color in counted or ()}  # type: ignore[misc]
        if counted is None or len(found) > _MOST_COLORS:
            raise ValueError(
                f"{path}: more than {_MOST_COLORS} colours in {number + 1} of {len(masks)} masks: they were smoothed, "
                f"resized or compressed, so that colours are no classes; write {root / _TABLES[0]} with name,r,g,b, "
                "or save them unsmoothed"
            )
    return sorted(found, key=lambda color: (color != (0, 0, 0), color))


def _read_label_map(path: Path) -> Palette:
    """CVAT's table: name:r,g,b:parts:actions, a line per class.

    Raises:
        ValueError: A line is not that; or as `read_palette`.
    """
    palette = Palette([], [], [])
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(:|$)", line)
        if match is None or max(int(match[channel]) for channel in (2, 3, 4)) > 255:
            raise ValueError(f"{path}, line {number}: expected name:r,g,b:parts:actions, as CVAT writes it")
        name, color = printable(match[1].strip()), (int(match[2]), int(match[3]), int(match[4]))
        if color in palette.colors + palette.ignored or name in palette.names:
            raise ValueError(f"{path}, line {number}: {name} {color} comes twice")
        if name.lower() in IGNORE_NAMES:
            palette.ignored.append(color)
        else:
            palette.names.append(name)
            palette.colors.append(color)
    if len(palette.names) < 2:
        raise ValueError(f"{path}: {len(palette.names)} classes; at least two are needed")
    return palette
