"""Transforms of images that are no RGB photographs: values in, normalised tensors out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose, Normalize, v2
from torchvision.transforms.v2.functional import pil_to_tensor

from crossformerpp.data.pixel_files import read_pixels
from crossformerpp.data.pixels import PixelFormat, Pixels, PixelView


@dataclass(frozen=True)
class PixelTensor:
    """A view of an image, C × H × W of float32, not normalised; of a picture or array in memory, too."""

    pixels: PixelFormat
    view: PixelView

    def __call__(self, image: Pixels | Image.Image | np.ndarray) -> Tensor:
        values = image if isinstance(image, Pixels) else read_pixels(image, "an image", self.pixels)
        return torch.from_numpy(self.view(values))


def to_tensor(image: Pixels | Image.Image) -> Tensor:
    """C × H × W: of float32, of an RGB photograph the bytes."""
    if isinstance(image, Image.Image):
        return pil_to_tensor(image)
    return torch.from_numpy(np.ascontiguousarray(image.values.transpose(2, 0, 1)))


def tensor_picture(image: Tensor) -> np.ndarray:
    """3 × H × W bytes of what `to_tensor` gave, to be looked at."""
    values = image.cpu().numpy()
    if values.dtype == np.uint8:
        return values
    return np.asarray(Pixels(values.transpose(1, 2, 0)).preview()).transpose(2, 0, 1)


@dataclass(frozen=True)
class ReadTensor:
    """An image whole, as `to_tensor` gives it; of a picture or array in memory, too."""

    pixels: PixelFormat

    def __call__(self, image: Pixels | Image.Image | np.ndarray) -> Tensor:
        if isinstance(image, Pixels) or (isinstance(image, Image.Image) and self.pixels.is_photograph):
            return to_tensor(image)
        return to_tensor(read_pixels(image, "an image", self.pixels))


def pixel_train_transform(
    pixels: PixelFormat,
    size: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    erasing: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Compose:
    """A random crop, a flip and random erasing, which serve any number of channels."""
    method = v2.InterpolationMode(interpolation)
    steps = [
        to_tensor,
        v2.RandomResizedCrop(size, scale, ratio, interpolation=method, antialias=True),
        v2.RandomHorizontalFlip(flip),
        Normalize(mean, std),
    ]
    if erasing:
        steps.append(RandomErasing(erasing, mode="pixel", device="cpu"))
    return Compose(steps)
