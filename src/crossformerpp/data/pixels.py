"""Images that are no photographs: of any number of channels, and of 16 bits or floating point. Needs no PyTorch."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from crossformerpp.data.images import IMAGE_EXTENSIONS

PIXEL_EXTENSIONS = (*IMAGE_EXTENSIONS, ".npy")


@dataclass(frozen=True)
class PixelFormat:
    """How many channels the images of a data set have, and which value means 1.

    Attributes:
        max_value: None: 255 of 8 bits; of 16 bits what each image's own depth (10, 12, 14 or 16 bits) holds; 1 of
            floating point.
    """

    channels: int = 3
    max_value: float | None = None

    @property
    def is_photograph(self) -> bool:
        """Whether images are read as RGB of 8 bits, whatever they were."""
        return self.channels == 3 and self.max_value is None

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of the files that are looked for."""
        return IMAGE_EXTENSIONS if self.is_photograph else PIXEL_EXTENSIONS

    def blank(self) -> "Image.Image | Pixels":
        """Nothing, in the place of an image that cannot be read."""
        if self.is_photograph:
            return Image.new("RGB", (64, 64))
        return Pixels(np.zeros((64, 64, self.channels), np.float32))


PHOTOGRAPHS = PixelFormat()


@dataclass(frozen=True)
class Pixels:
    """An image as H × W × C of float32, from 0 to 1 as a rule."""

    values: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.values.shape[1], self.values.shape[0]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def height(self) -> int:
        return self.values.shape[0]

    def crop(self, box: tuple[int, int, int, int]) -> "Pixels":
        """The part between left, top, right and bottom, as Pillow has them."""
        left, top, right, bottom = box
        return Pixels(self.values[top:bottom, left:right])

    def preview(self) -> Image.Image:
        """An RGB picture of its first three channels, or of a single one in grey, stretched to what they hold."""
        shown = self.values[..., :3] if self.values.shape[-1] >= 3 else self.values[..., :1].repeat(3, -1)
        low, high = float(shown.min()), float(shown.max())
        if low < 0 or high > 1 or high < 0.25:
            shown = (shown - low) / max(high - low, 1e-12)
        return Image.fromarray((shown.clip(0, 1) * 255).round().astype(np.uint8))


def as_picture(image: Image.Image | Pixels) -> Image.Image:
    """An image as people can look at it."""
    return image.preview() if isinstance(image, Pixels) else image


@dataclass(frozen=True)
class PixelView:
    """What a classifier sees of an image: its short side resized, then the centre. Alike with and without PyTorch."""

    short_side: int
    crop: tuple[int, int]
    interpolation: str

    def __call__(self, image: Pixels) -> np.ndarray:
        """H × W × C -> C × height × width of float32."""
        height, width = image.values.shape[:2]
        short = min(height, width)
        values = resize(
            image.values,
            self.short_side * height // short,
            self.short_side * width // short,
            self.interpolation,
        )
        top, left = (
            round((side - wanted) / 2) for side, wanted in zip(values.shape[:2], self.crop, strict=True)
        )
        part = values[top : top + self.crop[0], left : left + self.crop[1]]
        return np.ascontiguousarray(part.transpose(2, 0, 1))


def resize(values: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """H × W × C of float32 at another size, with antialiasing, unrounded."""
    if values.shape[:2] == (height, width):
        return values
    method = Image.Resampling[interpolation.upper()]
    bands = [Image.fromarray(np.ascontiguousarray(values[..., i])) for i in range(values.shape[-1])]
    return np.stack([np.asarray(band.resize((width, height), method)) for band in bands], axis=-1)
