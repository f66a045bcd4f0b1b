"""Mean and standard deviation of a data set's images, as a recipe needs them, and what their values are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.data.images import IMAGE_EXTENSIONS, read_image
from crossformerpp.data.pixel_files import read_native, with_channels
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat

_LOOKED_AT = 24  # images that tell what all of them are
_ALPHA = (".png", ".webp", ".gif", ".avif")  # formats whose fourth channel is transparency
_DEPTHS = (8, 10, 12, 14, 16)


@dataclass
class PixelStatistics:
    """Sums over images, each of which counts once whatever its size, for the network sees them in one size.

    Attributes:
        channels: Of the images; None: they are RGB photographs.
        highest: The largest absolute value in files that are no photographs.
    """

    channels: int | None
    images: int = 0
    highest: float = 0.0
    is_float: bool = False
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, image: Image.Image | np.ndarray) -> None:
        """Count an RGB photograph, or the values of another image."""
        values = np.asarray(image)
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        if not self.images:
            self.means, self.squares = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
        self.images += 1
        self.means += flat.mean(axis=0)
        self.squares += np.square(flat).mean(axis=0)
        self.highest = max(self.highest, float(np.abs(flat).max()))
        self.is_float = self.is_float or values.dtype.kind == "f"

    @property
    def max_value(self) -> float:
        """The value that means 1: of whole numbers the most that their bits hold, of floating point 1."""
        if self.channels is None:
            return 255.0
        if self.is_float:
            return 1.0
        fits = (bits for bits in _DEPTHS if self.highest < 1 << bits)
        return float((1 << next(fits, int(self.highest).bit_length())) - 1)

    def recipe(self) -> dict[str, Any]:
        """What a recipe's `data` section needs; nothing without an image."""
        if not self.images:
            return {}
        mean = self.means / self.images
        std = np.sqrt(np.maximum(self.squares / self.images - mean**2, 0))
        std = np.where(
            std < 1e-9 * self.max_value, self.max_value, std
        )  # a constant channel stays what it is
        values: dict[str, Any] = {}
        if self.channels is not None:
            values = {"channels": self.channels, "max_value": _short(self.max_value)}
        scaled = {"mean": mean / self.max_value, "std": std / self.max_value}
        return values | {name: [_short(value) for value in numbers] for name, numbers in scaled.items()}


def read_for_statistics(source: Any, name: str, channels: int | None) -> Image.Image | np.ndarray:
    """An image as `PixelStatistics.add` takes it: an RGB photograph where `channels` is None, else its own values.

    Raises:
        ValueError: Unreadable, or of another number of channels.
    """
    if channels is None:
        return source if isinstance(source, Image.Image) else read_image(source, name)
    values = with_channels(read_native(source, name), channels, name)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: holds values that are no numbers (NaN or infinity)")
    return values


def looked_for(root: Path) -> PixelFormat:
    """What a folder is searched for: arrays only where it holds no other images."""
    names = (path.suffix.lower() for path in root.rglob("*")) if root.is_dir() else iter(())
    found = next((suffix for suffix in names if suffix in IMAGE_EXTENSIONS), None)
    return (
        PHOTOGRAPHS
        if found is not None or next(root.rglob("*.npy"), None) is None
        else PixelFormat(channels=1)
    )


def guess_channels(paths: Sequence[Any]) -> tuple[int | None, str | None]:
    """The channels of a data set's images, by some of them, None for RGB photographs; and what else could serve.

    Photographs are RGB, grey or with transparency, of 8 bits; where most images are something else, they are taken as
    they are.
    """
    photographs: Counter[int] = Counter()
    others: Counter[int] = Counter()
    for number in sorted(
        {number * len(paths) // _LOOKED_AT for number in range(_LOOKED_AT)} if paths else ()
    ):
        path = paths[number]
        if not isinstance(path, Path):
            return None, None  # inside a tar file, or in memory
        try:
            values = read_native(path, str(path))
        except ValueError:
            continue  # counted when it is its turn
        channels = values.shape[-1]
        is_colour = channels in (1, 3) or (channels in (2, 4) and path.suffix.lower() in _ALPHA)
        is_cmyk = channels == 4 and path.suffix.lower() in (".jpg", ".jpeg")
        is_photograph = values.dtype == np.uint8 and (is_colour or is_cmyk) and path.suffix != ".npy"
        (photographs if is_photograph else others)[channels] += 1
    if photographs.total() < others.total():
        return others.most_common(1)[0][0], None
    if set(photographs) == {1} and not others:
        return None, "every image is grey: --channels 1 shows what --set data.channels=1 needs"
    return None, None


def _short(value: float) -> float | int:
    """Five significant digits, whole numbers as such."""
    rounded = float(f"{value:.5g}") if abs(value) < 1e5 else value
    return int(rounded) if float(rounded).is_integer() and abs(rounded) > 1 else rounded
