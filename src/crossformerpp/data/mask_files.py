"""Read label masks: index masks, or masks of colours with a palette.

In memory a mask is H × W of int16: the label of each pixel, from 0, or IGNORED.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossformerpp.data.names import printable, read_text

IGNORED = -1  # what a pixel without a class reads as; it counts nowhere
MASK_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".gif")  # formats that lose nothing
MAX_CLASSES = np.iinfo(np.int16).max
_FORMATS = ("PNG", "BMP", "TIFF", "GIF")
_PALETTES, _GREYS = ("P", "PA"), ("L", "LA", "1")  # modes that RGB holds without loss
IGNORE_NAMES = ("ignore", "void", "unlabelled", "unlabeled")  # rows of a palette that are no class
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Colours of the classes, and of pixels to ignore."""

    names: list[str]
    colors: list[Color]
    ignored: list[Color]


@dataclass(frozen=True)
class MaskCode:
    """How the values in mask files mean labels.

    Attributes:
        num_classes: K; labels are 0 … K − 1.
        ignore_value: The value of pixels to ignore in index masks.
        palette: For masks of colours.
        values: The value of each label in index masks; None: 0, 1, …, K − 1. ADE20K's are 1 … 150, with 0 to
            ignore. What is a label's value is not ignored.
        grey_is_color: With a palette, whether masks of one channel hold colours, too: programs save masks of colours so
            where all of their colours are grey.
    """

    num_classes: int
    ignore_value: int = 255
    palette: Palette | None = None
    values: tuple[int, ...] | None = None
    grey_is_color: bool = True

    def read(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """The labels in a mask file, H × W of int16.

        Args:
            size: (width, height) that the mask must have, its image's.

        Raises:
            ValueError: Unreadable, of another size, colours without a palette or not in it, or a value that
                is no label; names the file and the value.
        """
        mask = open_mask(path)
        if size is not None and mask.size != size:
            raise ValueError(
                f"{path}: the mask has {mask.width}x{mask.height} pixels, its image {size[0]}x{size[1]}"
            )
        with_palette = _PALETTES + _GREYS * self.grey_is_color if self.palette is not None else ()
        if mask.mode in ("RGB", "RGBA", *with_palette):
            return self._from_colors(np.asarray(mask.convert("RGB")), path)
        if mask.mode in ("LA", "La", "PA"):  # grey or palette with transparency, which means nothing here
            mask = mask.getchannel(0)
        if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
            raise ValueError(f"{path}: a mask of mode {mask.mode}; save it as an 8-bit PNG of labels")
        return self._from_values(np.asarray(mask).astype(np.int64), path)

    def _from_values(self, values: np.ndarray, path: Path) -> np.ndarray:
        own = np.arange(self.num_classes) if self.values is None else np.asarray(self.values)
        known = np.append(own, self.ignore_value)
        labels = np.append(np.arange(self.num_classes), IGNORED)
        order = np.argsort(known, kind="stable")  # of equal ones the label comes first
        known, labels = known[order], labels[order]
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        wrong = known[place] != values
        if wrong.any():
            found = ", ".join(map(str, np.unique(values[wrong])[:5]))
            meant = f"{own[0]} to {own[-1]}" if (np.diff(own) == 1).all() else ", ".join(map(str, own[:20]))
            raise ValueError(
                f"{path}: value {found} is no label; with {self.num_classes} classes labels are {meant}, and "
                f"{self.ignore_value} is ignored"
            )
        return labels[place].astype(np.int16)

    def _from_colors(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        if self.palette is None:
            if (pixels == pixels[..., :1]).all():
                raise ValueError(
                    f"{path}: an index mask saved as colours, all three channels are equal; make it one channel "
                    "(Pillow: mask.convert('L').save(…))"
                )
            raise ValueError(
                f"{path}: a mask of colours needs a palette: pass --set data.palette=FILE.csv, or --palette FILE.csv "
                "to `data check`"
            )
        colors = [*self.palette.colors, *self.palette.ignored]
        labels = [*range(len(self.palette.colors)), *[IGNORED] * len(self.palette.ignored)]
        codes = _codes(np.asarray(colors))
        order = np.argsort(codes)
        found = _codes(pixels)
        place = np.searchsorted(codes[order], found).clip(max=len(codes) - 1)
        unknown = codes[order][place] != found
        if unknown.any():
            y, x = np.argwhere(unknown)[0]
            color = tuple(pixels[y, x].tolist())
            raise ValueError(
                f"{path}: colour {color} at x {x}, y {y} is not in the palette (add it, as `ignore` if it is "
                "no class)"
            )
        return np.asarray(labels, np.int16)[order][place]


def read_palette(path: Path) -> Palette:
    """A table `name,r,g,b` with a heading, one row per class in the order of the labels.

    Rows named ignore, void or unlabelled are colours to ignore.

    Raises:
        ValueError: No such file, no such table, a colour or name twice, or fewer than two classes.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such palette")
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [{k.strip().lower(): v for k, v in row.items() if k} for row in table]
    except csv.Error as error:
        raise ValueError(f"{path}: unreadable palette: {error}") from None
    palette = Palette([], [], [])
    for number, row in enumerate(rows, 2):
        try:
            name = printable(row["name"].strip())
            red, green, blue = (int(row[channel]) for channel in "rgb")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path}, line {number}: expected a table with the heading name,r,g,b") from None
        color = (red, green, blue)
        if not all(0 <= value <= 255 for value in color):
            raise ValueError(f"{path}, line {number}: colour {color} is not within 0 to 255")
        if not name:
            raise ValueError(f"{path}, line {number}: colour {color} has no name")
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


def default_colors(num_classes: int) -> list[Color]:
    """Colours told from the label bit by bit, as Pascal VOC's are; label 0 is black."""
    return [
        tuple(  # type: ignore[misc]
            sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)
        )
        for label in range(num_classes)
    ]


def index_picture(labels: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """A mask as a PNG can hold it: bytes with a palette up to 256 classes, 16-bit values beyond.

    Args:
        labels: H × W; all are classes.
    """
    if len(colors) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([value for color in colors for value in color])
    return picture


def open_mask(path: Path) -> Image.Image:
    """The picture in a mask file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with Image.open(path, formats=_FORMATS) as mask:
            mask.load()
            return mask
    except FileNotFoundError:
        raise ValueError(f"{path}: no such mask") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path}: not a mask in a format that keeps labels ({', '.join(_FORMATS)})"
        ) from None
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{path}: unreadable mask: {error}") from None


def _codes(colors: np.ndarray) -> np.ndarray:
    """(…, 3) of 0 … 255 -> (…) one number per colour."""
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
