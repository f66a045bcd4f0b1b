"""What crops leave of objects: those of which too little remains are removed.

A target holds, of N objects, `boxes` (N × 4: left, top, right, bottom), `labels` (N) and perhaps `masks` (N × H × W
bytes of 0 and 1).
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area, masks_to_boxes
from torchvision.transforms import v2

Target = dict[str, Any]
LEAST_BOX = 1.0  # pixels; what is smaller teaches nothing


class CropObjects(v2.RandomCrop):
    """A random crop of `side` × `side` pixels, padded where the image is smaller."""

    def __init__(self, side: int, min_visible: float, fill: tuple[float, ...]) -> None:
        """
        Args:
            min_visible: Least share of an object's box that must be left.
            fill: Colour of the padding.
        """
        super().__init__((side, side), pad_if_needed=True, fill={tv_tensors.Image: fill, "others": 0})
        self.min_visible = min_visible

    def forward(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        before = target["boxes"].as_subclass(Tensor)
        image, target = super().forward(image, target)
        return image, keep_visible(target, box_area(before), self.min_visible)


def keep_visible(target: Target, areas: Tensor, least: float) -> Target:
    """Remove objects whose box kept less than a share of its area; boxes that were cut become those of the masks.

    Args:
        target: After a crop, which cut boxes and masks.
        areas: (N,) of the boxes before it.
    """
    left = box_area(target["boxes"].as_subclass(Tensor))
    was_cut = left < areas * (1 - 1e-6)
    kept = (left >= least * areas) & (left > 0)
    if "masks" in target:
        kept &= target["masks"].as_subclass(Tensor).flatten(1).any(dim=1).bool()
    target, was_cut = select(target, kept), was_cut[kept]
    if "masks" in target and was_cut.any():
        boxes = target["boxes"].as_subclass(Tensor).clone()
        boxes[was_cut] = boxes_of(target["masks"].as_subclass(Tensor)[was_cut]).to(boxes.dtype)
        target["boxes"] = _like(boxes, target["boxes"])
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    return select(target, sides.amin(dim=1) >= LEAST_BOX)


def select(target: Target, kept: Tensor) -> Target:
    """The target of some of its objects, (N,) of Booleans."""
    own = {
        name: _like(target[name][kept], target[name])
        for name in ("boxes", "labels", "masks")
        if name in target
    }
    return target | own


def boxes_of(masks: Tensor) -> Tensor:
    """(N, 4) tight boxes of masks of at least a pixel, their right and bottom beyond the last one."""
    return masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def _like(value: Tensor, old: Tensor) -> Tensor:
    return tv_tensors.wrap(value, like=old) if isinstance(old, tv_tensors.TVTensor) else value
