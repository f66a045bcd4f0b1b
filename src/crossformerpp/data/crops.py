"""What a segmenter sees of masked images: random crops in training, whole images otherwise.

Legend: H W image; images are 3 × H × W, labels H × W with IGNORED where there is no class.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from crossformerpp.data.images import scaled_size
from crossformerpp.data.mask_files import IGNORED
from crossformerpp.data.pixel_tensors import to_tensor
from crossformerpp.data.segmentation import MaskedImages

_TRIES = 10  # to find a crop that is not nearly all one class


@dataclass(frozen=True)
class CropView:
    """A random scale, crop, flip and photometric distortion; an image of any size -> `size` × `size`.

    Attributes:
        size: Of the crop; a smaller image is padded at the right and below, with labels to ignore.
        short_side: The image's short side before the random scale; None for its own.
        scale: Range of the random scale.
        max_class_share: Of one class among the crop's labelled pixels, if ten tries find such a crop.
        flip: Probability.
        photometric: Whether brightness, contrast, saturation and hue vary, each in half of the crops.
        mean, std: Of the normalisation.
    """

    size: int
    short_side: int | None
    scale: tuple[float, float]
    max_class_share: float
    flip: float
    photometric: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes 3 × H × W, or floats C × H × W, and int64 H × W -> normalised floats and int64 size × size."""
        image, labels = self._rescale(image, labels)
        image, labels = self._crop(image, labels)
        if torch.rand(()) < self.flip:
            image, labels = image.flip(-1), labels.flip(-1)
        if self.photometric:
            image = v2.RandomPhotometricDistort()(image)
        image = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(self.mean), list(self.std))
        padding = (0, self.size - image.shape[-1], 0, self.size - image.shape[-2])
        return F.pad(image, padding), F.pad(labels, padding, value=IGNORED)

    def _rescale(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        size = scaled_size(image.shape[-2:], self.short_side, factor)
        image = TF.resize(image, size, antialias=True)
        labels = TF.resize(labels[None], size, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
        return image, labels

    def _crop(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = (min(length, self.size) for length in labels.shape)
        for _ in range(_TRIES):
            top = int(torch.randint(labels.shape[0] - height + 1, ()))
            left = int(torch.randint(labels.shape[1] - width + 1, ()))
            part = labels[top : top + height, left : left + width]
            counts = part[part != IGNORED].bincount()
            if len(counts) and counts.max() <= self.max_class_share * counts.sum():
                break
        return image[:, top : top + height, left : left + width], part


class TrainCrops(Dataset):
    """(image, labels) of each masked image, as `view` crops it at random."""

    def __init__(self, source: MaskedImages, view: CropView) -> None:
        self.source = source
        self.view = view

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.source.open(index)
        return self.view(to_tensor(image), torch.from_numpy(labels.astype(np.int64)))


class WholeImages(Dataset):
    """(image as bytes, or as floats of no photograph, labels, index) at the original resolution."""

    def __init__(self, source: MaskedImages) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, labels = self.source.open(index)
        return to_tensor(image), torch.from_numpy(labels), index
