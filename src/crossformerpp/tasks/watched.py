"""The samples of a training batch as its loss saw them, for `crossformer replay`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


@dataclass(frozen=True)
class WatchedBatch:
    """One entry per sample in each.

    Attributes:
        pictures: RGB, augmented and mixed, with what the labels draw.
        labels: In words.
        losses: Of each sample as if it were alone in its batch, with the answers that the network gave.
        partners: The number in the batch of the sample that each is mixed with; None: with none.
        numbers: Of the samples in their split, where they may be others than were drawn: an unreadable image is
            replaced.
    """

    pictures: Sequence[Image.Image]
    labels: Sequence[str]
    losses: Sequence[float]
    partners: Sequence[int | None]
    numbers: Sequence[int] | None = None


def pictured(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """Normalised images (B, C, H, W) as pictures."""
    shown = images.detach().float().cpu()
    values = shown * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    return [to_pil_image(as_bytes(image)) for image in values]


def as_bytes(image: Tensor) -> Tensor:
    """3 × H × W bytes of an image (C, H, W) of bytes, or of floats from 0 to 1: its first three channels, or grey."""
    image = image.cpu()
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
