"""Transforms of images that are no RGB photographs: values in, normalised tensors out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose, Normalize, v2

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


def to_tensor(image: Pixels) -> Tensor:
    """C × H × W of float32."""
    return torch.from_numpy(np.ascontiguousarray(image.values.transpose(2, 0, 1)))


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
