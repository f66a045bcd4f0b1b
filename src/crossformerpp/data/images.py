"""The one way in which this package opens an image file."""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, features

try:
    from pillow_heif import register_heif_opener
except ImportError:
    _HEIC: tuple[str, ...] = ()
else:
    register_heif_opener()
    _HEIC = (".heic", ".heif")

with warnings.catch_warnings(action="ignore"):  # older Pillows do not know what that is
    _HAS_AVIF = features.check("avif")

# What a folder is searched for. Formats that run a program to be read (EPS) are left out on purpose.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    *((".avif",) if _HAS_AVIF else ()), *_HEIC,
)  # fmt: skip
Image.init()  # else Pillow knows a few formats only
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
    if name in Image.OPEN
)
_LONGEST = 4  # times the short side, as far as a long image is enlarged
_MAX_RATIO = 1000  # of the sides of an image whose short side is enlarged
_AT_MOST_16_BITS = ("PNG", "PPM")  # formats whose grey Pillow opens with 32 bits where the file has 16
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners fill of 16
_ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own hard limit: 179 million, half a GB as RGB


class UnusableImageError(ValueError):
    """An image of a data set, or its mask, cannot be used; says which and why."""


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB, whatever it was.

    EXIF orientation is applied, CMYK and palettes are converted, transparency is laid on white, of an animation the
    first frame is taken. 16-bit grey is scaled to 8 bits by the depth that its values fill (8, 10, 12, 14 or 16 bits).

    Args:
        source: A path, or an open binary file.
        name: What to call it in an error; default: the path.

    Raises:
        ValueError: No such file, unreadable, truncated, too large, or of unknown range (32-bit grey).
    """
    name = name or str(source)
    try:
        with warnings.catch_warnings():
            # our limit is twice the size at which Pillow begins to warn
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                is_cut = is_cut_to_eight_bits(image)
                image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: too large ({error}); the limit is {MAX_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise ValueError(f"{name}: no such image") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: a folder, not an image") from None
    except Image.UnidentifiedImageError:
        if isinstance(source, str | Path) and not Path(source).stat().st_size:
            raise ValueError(f"{name}: an empty file") from None
        hint = "" if _HEIC else "; pip install pillow-heif for HEIC"
        raise ValueError(f"{name}: not an image of a known format ({', '.join(FORMATS)}){hint}") from None
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{name}: unreadable image: {error}") from None
    try:
        if image.mode == "F" or (image.mode == "I" and image.format not in _AT_MOST_16_BITS):
            raise ValueError("32-bit grey of unknown range; save it with 8 or 16 bits")
        rgb = _to_rgb(upright(image))
    except (ValueError, OSError, SyntaxError, KeyError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}: {text} (image mode {image.mode})") from None
    if is_cut and np.asarray(rgb).max() < 16:
        raise ValueError(
            f"{name}: 16 bits a colour of which at most 12 are used; save it with 8 bits a colour"
        )
    return rgb


class _Sized(Protocol):
    @property
    def size(self) -> tuple[int, int]: ...


def require_shape(image: _Sized, name: str) -> None:
    """Refuse an image so long that enlarging its short side would fill the memory.

    Raises:
        ValueError: Names the image and its size.
    """
    if max(image.size) > _MAX_RATIO * min(image.size):
        raise ValueError(
            f"{name}: {image.size[0]}x{image.size[1]} pixels; one side is more than {_MAX_RATIO} times the other"
        )


def scaled_size(size: Sequence[int], short_side: int | None, factor: float = 1.0) -> list[int]:
    """[height, width] of an image whose short side becomes `short_side` (None: its own) times `factor`.

    The long side becomes at most four times `short_side` times `factor`, at the cost of the short one.
    """
    if short_side is not None:
        factor *= min(short_side / min(size), _LONGEST * short_side / max(size))
    return [max(1, int(length * factor + 0.5)) for length in size]


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it, from the beginning of its file.

    Raises:
        ValueError: It is no image, or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if image.format == "TIFF":  # of which Pillow turns the size, but not yet the pixels
                    width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
                is_turned = _orientation(image) > 4
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{path}: unreadable image: {error}") from None
    return (height, width) if is_turned else (width, height)


def exif_orientation(path: Path) -> int:
    """How a file says that it is to be turned and mirrored: 1 is not at all; 2, 3 and 4 keep width and height."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _orientation(image)
    except Exception:  # Pillow's decoders answer broken files with errors of almost any type
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says. Unlike Pillow's own function this leaves the EXIF data as they are, which
    cannot be written again where they are damaged.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, as it is, where nobody says or the EXIF data are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as of broken files
        return 1
    return int(value) if value in _TURNS else 1


def is_cut_to_eight_bits(image: Image.Image) -> bool:
    """Whether Pillow keeps only the upper 8 of 16 bits of each colour of this file."""
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """16 bits of grey -> 8, by the depth that the values fill: 12-bit data in 16 bits would else be nearly black."""
    depth = depth_of(int(values.max()))
    return (values.astype(np.uint32) * 255 // ((1 << depth) - 1)).astype(np.uint8)


def depth_of(highest: int) -> int:
    """How many of 16 bits are filled, by the highest value; says so where it is not all or 8."""
    depth = next(depth for depth in _DEPTHS if highest < 1 << depth)
    if depth not in (8, 16):
        _warn_of_depth(depth)
    return depth


@cache
def _warn_of_depth(depth: int) -> None:
    warnings.warn(
        f"16-bit images without a value above {(1 << depth) - 1} are read as {depth}-bit data; where that is wrong, "
        "save them with 8 bits",
        stacklevel=2,
    )
