"""The one way in which this package opens an image file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

# What a folder is searched for. Formats that run a program to be read (EPS) are left out on purpose.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
)  # fmt: skip
Image.init()  # else Pillow knows a few formats only
_FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF") if name in Image.OPEN
)
_LONGEST = 4  # times the short side, as far as a long image is enlarged
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own hard limit: 179 million, half a GB as RGB


class UnusableImageError(ValueError):
    """An image of a data set, or its mask, cannot be used; says which and why."""


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB, whatever it was.

    EXIF orientation is applied, CMYK and palettes are converted, 16-bit grey is scaled to 8 bits,
    transparency is laid on white, of an animation the first frame is taken.

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
            with Image.open(source, formats=_FORMATS) as image:
                image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: too large ({error}); the limit is {MAX_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise ValueError(f"{name}: no such image") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: a folder, not an image") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not an image of a known format ({', '.join(_FORMATS)})") from None
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{name}: unreadable image: {error}") from None
    return _to_rgb(ImageOps.exif_transpose(image), name)


def require_size(image: Image.Image, name: str, least: int = 32) -> None:
    """Refuse an image whose shorter side is below `least` pixels.

    Raises:
        ValueError: Names the image and its size.
    """
    if min(image.size) < least:
        raise ValueError(
            f"{name}: {image.width}x{image.height} pixels; the network needs at least {least}x{least}"
        )


def scaled_size(size: Sequence[int], short_side: int | None, factor: float = 1.0) -> list[int]:
    """[height, width] of an image whose short side becomes `short_side` (None: its own) times `factor`.

    The long side becomes at most four times `short_side` times `factor`, at the cost of the short one.
    """
    if short_side is not None:
        factor *= min(short_side / min(size), _LONGEST * short_side / max(size))
    return [max(1, int(length * factor + 0.5)) for length in size]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name}: 32-bit grey of unknown range; save it with 8 or 16 bits")
        # 257 maps 0…65535 onto 0…255; Pillow's own conversion would clip at 255
        image = Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
