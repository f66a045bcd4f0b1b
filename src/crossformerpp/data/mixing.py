"""Training samples put together from several: copy-paste of instances and mosaic.

The other images, and everything else, are drawn from torch's global generator, which is seeded for each sample.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_area

from crossformerpp.data.visible import boxes_of, keep_visible, select

Target = dict[str, Any]
Sample = tuple[Tensor, Target]
_CENTRE = (0.3, 0.7)  # where the four images of a mosaic meet, as shares of its side


class MixedImages(Dataset):
    """Views of a data set, mixed with others of it.

    Attributes:
        copy_paste: Probability that objects of another view are laid on a sample; needs masks.
        mosaic: Probability that a sample is put together from four views; needs views of one size.
        min_visible: Least share of an object that must be left; others are removed.
    """

    def __init__(self, views: Dataset, copy_paste: float, mosaic: float, min_visible: float) -> None:
        self.views = views
        self.copy_paste, self.mosaic, self.min_visible = copy_paste, mosaic, min_visible

    def __len__(self) -> int:
        return len(self.views)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.views[index]
        if self.mosaic and torch.rand(()) < self.mosaic:
            sample = mosaic([sample, *(self._other() for _ in range(3))], self.min_visible)
        if self.copy_paste and torch.rand(()) < self.copy_paste:
            sample = copy_paste(sample, self._other(), self.min_visible)
        return sample

    def _other(self) -> Sample:
        return self.views[int(torch.randint(len(self), ()))]


def copy_paste(sample: Sample, source: Sample, min_visible: float) -> Sample:
    """Lay a random half of another image's objects on an image, at their own places (Ghiasi et al. 2021).

    Objects of the image are covered where the new ones lie; of those cut off by its border and those covered, the ones
    of which less than `min_visible` is left are removed.
    """
    image, target = sample
    height, width = image.shape[1:]
    chosen = torch.rand(len(source[1]["labels"])) < 0.5
    other, pasted = _fitted(source[0], select(source[1], chosen), height, width, min_visible)
    cover = pasted["masks"].bool().any(dim=0)  # H W
    if not cover.any():
        return sample
    masks = target["masks"] * ~cover
    before, after = target["masks"].sum(dim=(1, 2)), masks.sum(dim=(1, 2))
    boxes = target["boxes"].clone()
    partly = (after < before) & (after > 0)
    boxes[partly] = boxes_of(masks[partly]).to(boxes.dtype)
    kept = (after >= min_visible * before) & (after > 0)
    own = select(target | {"boxes": boxes, "masks": masks}, kept)
    joined = {name: torch.cat([own[name], pasted[name]]) for name in ("boxes", "labels", "masks")}
    removed = target["removed"] + (~kept).sum()
    return torch.where(cover, other, image), target | joined | {"removed": removed}


def _fitted(image: Tensor, target: Target, height: int, width: int, min_visible: float) -> Sample:
    """The upper left H × W of a view, with zeros where it is smaller."""
    rows, columns = min(height, image.shape[1]), min(width, image.shape[2])
    canvas = image.new_zeros((len(image), height, width))
    canvas[:, :rows, :columns] = image[:, :rows, :columns]
    masks = target["masks"].new_zeros((len(target["masks"]), height, width))
    masks[:, :rows, :columns] = target["masks"][:, :rows, :columns]
    boxes = target["boxes"].clamp(max=torch.tensor([columns, rows, columns, rows]))
    areas = box_area(target["boxes"])
    return canvas, keep_visible(target | {"boxes": boxes, "masks": masks}, areas, min_visible)


def mosaic(samples: list[Sample], min_visible: float) -> Sample:
    """Four views of one size -> one of the same size: a random piece of each around a random centre."""
    height, width = samples[0][0].shape[1:]
    low, high = _CENTRE
    x, y = (int(side * (low + (high - low) * torch.rand(()))) for side in (width, height))
    places = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    canvas = torch.empty_like(samples[0][0])
    parts = []
    for (image, target), (left, top, right, bottom) in zip(samples, places, strict=True):
        columns, rows = right - left, bottom - top
        dx = int(torch.randint(width - columns + 1, ()))
        dy = int(torch.randint(height - rows + 1, ()))
        canvas[:, top:bottom, left:right] = image[:, dy : dy + rows, dx : dx + columns]
        areas = box_area(target["boxes"])
        cut = target | {"boxes": _cut(target["boxes"], dx, dy, columns, rows)}
        if "masks" in target:
            cut["masks"] = target["masks"][:, dy : dy + rows, dx : dx + columns]
        kept = keep_visible(cut, areas, min_visible)
        kept["removed"] = target["removed"] + len(areas) - len(kept["labels"])
        parts.append(_placed(kept, left, top, height, width))
    names = [name for name in ("boxes", "labels", "masks") if name in parts[0]]
    joined = {name: torch.cat([part[name] for part in parts]) for name in names}
    return canvas, samples[0][1] | joined | {"removed": sum(part["removed"] for part in parts)}


def _cut(boxes: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    moved = boxes - torch.tensor([left, top, left, top])
    return moved.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))


def _placed(target: Target, left: int, top: int, height: int, width: int) -> Target:
    placed = target | {"boxes": target["boxes"] + torch.tensor([left, top, left, top])}
    if "masks" in target:
        masks = target["masks"]
        placed["masks"] = masks.new_zeros((len(masks), height, width))
        placed["masks"][:, top : top + masks.shape[1], left : left + masks.shape[2]] = masks
    return placed
