"""Images with boxes, labels and masks, as a detector is trained and judged on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms import v2

from crossformerpp.data.coco import CocoImage, CocoObject, CocoSet
from crossformerpp.data.images import UnusableImageError
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixel_tensors import to_tensor
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat, Pixels
from crossformerpp.data.tiles import Tile, tile_grid, visible_share
from crossformerpp.data.visible import LEAST_BOX, CropObjects, Target, keep_visible

Sample = tuple[Tensor, Target]


def train_transform(
    short_sides: Sequence[int], long_side: int, flip: float, color_jitter: float
) -> Callable[..., Any]:
    """The published training view: a short side at random, the long side at most `long_side`, a flip."""
    size = v2.RandomShortestSize(list(short_sides), max_size=long_side, antialias=True)
    return _view([size], flip, color_jitter)


def jitter_transform(
    side: int,
    scale: tuple[float, float],
    min_visible: float,
    fill: tuple[float, ...],
    flip: float,
    color_jitter: float,
) -> Callable[..., Any]:
    """Large-scale jitter (Ghiasi et al. 2021): an image that fits a square of `side` pixels is scaled by a random
    factor, then cropped at random or padded to the square, and flipped.

    Args:
        min_visible, fill: As of `CropObjects`.
    """
    size = v2.ScaleJitter((side, side), scale, antialias=True)
    return _view([v2.ClampBoundingBoxes(), size, CropObjects(side, min_visible, fill)], flip, color_jitter)


def _view(steps: list[Any], flip: float, color_jitter: float) -> Callable[..., Any]:
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=LEAST_BOX)]
    return v2.Compose(steps)


@dataclass(frozen=True)
class TrainTile:
    """A part of an image to train on, and the objects of which it shows enough.

    Attributes:
        num_cut: Objects of which it shows something, but too little.
    """

    image: CocoImage
    tile: Tile
    objects: tuple[CocoObject, ...]
    num_cut: int = 0


def whole_tiles(images: Sequence[CocoImage]) -> list[TrainTile]:
    """Each image as one tile, crowds left out."""
    return [
        TrainTile(image, Tile(0, 0, image.width, image.height), _single(image.objects)) for image in images
    ]


def cut_tiles(
    images: Sequence[CocoImage], size: int, overlap: float, whole: bool, min_visible: float
) -> list[TrainTile]:
    """The tiles of all images.

    Args:
        size, overlap: As of `tile_grid`.
        whole: Each image as a whole, too.
        min_visible: Least share of an object's box inside its image that a tile must show.
    """
    found: list[TrainTile] = []
    for image in images:
        tiles = tile_grid(image.width, image.height, size, overlap)
        frame = Tile(0, 0, image.width, image.height)
        for tile in tiles:
            shares = [
                (visible_share(_inside(thing.box, frame), tile), thing) for thing in _single(image.objects)
            ]
            kept = tuple(thing for share, thing in shares if share > 0 and share >= min_visible)
            found.append(TrainTile(image, tile, kept, sum(0 < share < min_visible for share, _ in shares)))
        if whole and len(tiles) > 1:
            found += whole_tiles([image])
    return found


def _single(objects: Sequence[CocoObject]) -> tuple[CocoObject, ...]:
    return tuple(thing for thing in objects if not thing.is_crowd)


def _inside(box: tuple[float, float, float, float], tile: Tile) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return max(left, tile.left), max(top, tile.top), min(right, tile.right), min(bottom, tile.bottom)


class TrainImages(Dataset):
    """(image, target) for torchvision's detectors, transformed at random.

    The image is 3 × H × W bytes, or C × H × W floats of no photograph; the target holds `boxes` (N × 4: left, top,
    right, bottom), `labels` (N, from 0), if asked for `masks` (N × H × W bytes), and `removed`, the number of objects
    of which the view left nothing or too little.
    """

    def __init__(
        self,
        tiles: Sequence[TrainTile],
        transform: Callable[..., Any],
        with_masks: bool,
        pixels: PixelFormat = PHOTOGRAPHS,
    ) -> None:
        self.pixels = pixels
        self.tiles = tiles
        self.transform = transform
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Sample:
        part = self.tiles[index]
        entry, tile, things = part.image, part.tile, part.objects
        image = to_tensor(open_image(entry, self.pixels))
        is_whole = tile == (0, 0, entry.width, entry.height)
        if not is_whole:
            image = image[:, tile.top : tile.bottom, tile.left : tile.right]
        boxes = torch.tensor([thing.box for thing in things]).view(-1, 4).float() - torch.tensor(tile[:2] * 2)
        size = (image.shape[1], image.shape[2])
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
        }
        if self.with_masks:
            target["masks"] = tv_tensors.Mask(decode_masks(things, entry.height, entry.width, tile))
        if not is_whole:
            clamped = v2.functional.clamp_bounding_boxes(target["boxes"])
            target = keep_visible(target | {"boxes": clamped}, box_area(boxes), 0)
        pixels, target = self.transform(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        removed = len(things) - len(plain["labels"]) + part.num_cut
        return pixels.as_subclass(Tensor), plain | {"removed": torch.tensor(removed)}


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


def aspect_groups(tiles: Sequence[TrainTile]) -> list[int]:
    """1 for images or tiles wider than high, else 0: batches of one kind are padded less."""
    return [int(tile.right - tile.left > tile.bottom - tile.top) for tile in (part.tile for part in tiles)]


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


def decode_masks(things: Sequence[CocoObject], height: int, width: int, tile: Tile) -> Tensor:
    """N × h × w bytes of 0 and 1, of the part of an H × W image that a tile shows."""
    masks = np.zeros((len(things), tile.bottom - tile.top, tile.right - tile.left), np.uint8)
    for mask, thing in zip(masks, things, strict=True):
        assert thing.segmentation is not None
        whole = decode(encode(thing.segmentation, height, width))
        mask[:] = whole[tile.top : tile.bottom, tile.left : tile.right]
    return torch.from_numpy(masks)
