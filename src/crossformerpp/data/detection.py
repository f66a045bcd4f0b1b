"""Images with boxes, labels and masks, as a detector is trained and judged on them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from crossformerpp.data.coco import CocoImage, CocoObject, CocoSet
from crossformerpp.data.images import UnusableImageError
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixel_tensors import to_tensor
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat, Pixels

Target = dict[str, Any]
Sample = tuple[Tensor, Target]
_LEAST_BOX = 1.0  # pixels; what is smaller after resizing teaches nothing


def train_transform(
    short_sides: Sequence[int], long_side: int, flip: float, color_jitter: float
) -> Callable[..., Any]:
    """The published training view: a short side at random, the long side at most `long_side`, a flip."""
    steps: list[Any] = [v2.RandomShortestSize(list(short_sides), max_size=long_side, antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=_LEAST_BOX)]
    return v2.Compose(steps)


class TrainImages(Dataset):
    """(image, target) for torchvision's detectors, transformed at random.

    The image is 3 × H × W bytes, or C × H × W floats of no photograph; the target holds `boxes` (N × 4: left, top,
    right, bottom), `labels` (N, from 0) and, if asked for, `masks` (N × H × W bytes). Crowds are left out.
    """

    def __init__(self, coco: CocoSet, transform: Callable[..., Any], with_masks: bool) -> None:
        self.coco = coco
        self.transform = transform
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, index: int) -> Sample:
        entry = self.coco.images[index]
        image = to_tensor(open_image(entry, self.coco.pixels))
        things = [thing for thing in entry.objects if not thing.is_crowd]
        size = (entry.height, entry.width)
        boxes = torch.tensor([thing.box for thing in things]).view(-1, 4)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
        }
        if self.with_masks:
            target["masks"] = tv_tensors.Mask(decode_masks(things, *size))
        image, target = self.transform(tv_tensors.Image(image), target)
        return image.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in target.items()}


class EvalImages(Dataset):
    """(image, truth): the whole image, 3 × H × W bytes, and what is in it in COCO's terms."""

    def __init__(self, coco: CocoSet, with_masks: bool) -> None:
        self.coco = coco
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, index: int) -> Sample:
        entry = self.coco.images[index]
        return to_tensor(open_image(entry, self.coco.pixels)), truth(entry, self.with_masks)


def truth(entry: CocoImage, with_masks: bool) -> Target:
    """What evaluation compares detections with, crowds included, as plain data."""
    objects = []
    for thing in entry.objects:
        left, top, right, bottom = thing.box
        described = {
            "label": thing.label,
            "bbox": [left, top, right - left, bottom - top],
            "area": thing.area,
            "iscrowd": int(thing.is_crowd),
        }
        if with_masks:
            assert thing.segmentation is not None
            described["segmentation"] = encode(thing.segmentation, entry.height, entry.width)
        objects.append(described)
    return {"image_id": entry.id, "height": entry.height, "width": entry.width, "objects": objects}


def collate(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    """Lists, for images differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]


def aspect_groups(images: Sequence[CocoImage]) -> list[int]:
    """1 for images wider than high, else 0: batches of one kind are padded less."""
    return [int(image.width > image.height) for image in images]


def open_image(entry: CocoImage, pixels: PixelFormat = PHOTOGRAPHS) -> Image.Image | Pixels:
    """The image of an entry.

    Raises:
        UnusableImageError: Unreadable, or of another size than the annotations say.
    """
    try:
        image = open_pixels(entry.path, str(entry.path), pixels)
    except ValueError as error:
        raise UnusableImageError(str(error)) from None
    if image.size != (entry.width, entry.height):
        raise UnusableImageError(
            f"{entry.path}: {image.size[0]}x{image.size[1]} pixels, but its annotations are for "
            f"{entry.width}x{entry.height}"
        )
    return image


def decode_masks(things: Sequence[CocoObject], height: int, width: int) -> Tensor:
    """N × H × W bytes of 0 and 1."""
    masks = np.zeros((len(things), height, width), np.uint8)
    for mask, thing in zip(masks, things, strict=True):
        assert thing.segmentation is not None
        mask[:] = decode(encode(thing.segmentation, height, width))
    return torch.from_numpy(masks)
