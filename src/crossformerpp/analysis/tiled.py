"""Objects found tile by tile, put together: plain NumPy, for checkpoints and exported files alike.

A detection is a dictionary of `label`, `bbox` [x, y, width, height], `score` and perhaps `segmentation` (RLE).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import ObjectPrediction, Predictor
from crossformerpp.data.masks import decode, encode_mask
from crossformerpp.data.pixels import Pixels
from crossformerpp.data.tiles import Tile, tile_grid
from crossformerpp.recipes.tiles import TilesSection

Found = list[dict[str, Any]]
MERGE_IOU = 0.5  # from which two boxes show one object, within what both tiles see
_AT_ONCE = 4  # tiles that the network sees together
# a border cuts a box that it is nearer to than so many pixels, or than this share of the box's side
_NEAR_PIXELS, _NEAR_SHARE = 2.0, 0.1


def tiles_of(width: int, height: int, section: TilesSection) -> list[Tile]:
    """The tiles of an image that a detector looks at; the whole image, if asked for, is the last."""
    tiles = tile_grid(width, height, section.size, section.overlap)
    return [*tiles, Tile(0, 0, width, height)] if section.whole and len(tiles) > 1 else tiles


def merge_tiles(found: Sequence[Found], tiles: Sequence[Tile], width: int, height: int) -> Found:
    """The objects of an image from those of its tiles, best first.

    1. A box that an inner border of its tile cuts is dropped where another tile (not the whole image) sees all of it
       uncut: that tile also sees what is missing of the object.
    2. From the highest score down, a box is grouped with those of the same class from other tiles, at most one of
       each, that overlap a box of the group by an IoU of 0.5 within what both tiles see. Parts of an object that no
       tile sees whole meet there, as do two views of a whole one.
    3. A group becomes one object with its highest score, and with the box and mask of its best uncut view; with the
       union of all parts, if there is none.

    Args:
        found: Per tile, boxes and masks in the tile's own pixels.
    """
    things = [thing for part in found for thing in part]
    if not things:
        return []
    owner = np.repeat(np.arange(len(tiles)), [len(part) for part in found])
    frames = np.array(tiles, np.float64)
    boxes = np.array([thing["bbox"] for thing in things], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes += np.tile(frames[owner, :2], 2)
    image = np.array([0, 0, width, height], np.float64)
    is_cut = _cut(boxes, frames[owner], image)
    scores = np.array([thing["score"] for thing in things])
    labels = np.array([thing["label"] for thing in things])
    kept = np.flatnonzero(~(is_cut & _seen_better(boxes, owner, frames, image)))
    merged: Found = []
    for label in np.unique(labels[kept]):
        own = kept[labels[kept] == label]
        own = own[np.argsort(-scores[own], kind="stable")]
        for group in _groups(boxes[own], frames[owner[own]], owner[own]):
            members = own[group]
            whole = members[~is_cut[members]]
            shown = whole[:1] if len(whole) else members
            merged.append(
                _united(things, shown, boxes, [tiles[owner[number]] for number in shown], (height, width))
                | {"score": float(scores[members[0]])}
            )
    merged.sort(key=lambda thing: -thing["score"])
    return merged


class TiledPredictor(Predictor[ObjectPrediction]):
    """A detector that looks at an image tile by tile."""

    def __init__(self, inner: Predictor[ObjectPrediction], section: TilesSection) -> None:
        self.inner = inner
        self.class_names: list[str] = inner.class_names  # type: ignore[attr-defined]
        self.columns, self.workers, self.pixels = inner.columns, inner.workers, inner.pixels
        self.model = getattr(inner, "model", None)
        self.device = getattr(inner, "device", None)
        self.prepare = partial(_prepare_tiles, inner.prepare, section)

    def predict(
        self, prepared: Sequence[tuple[tuple[int, int], list[Tile], list[Any]]]
    ) -> list[ObjectPrediction]:
        found = []
        for (width, height), tiles, pieces in prepared:
            seen: list[ObjectPrediction] = []
            for start in range(0, len(pieces), _AT_ONCE):
                seen += self.inner.predict(pieces[start : start + _AT_ONCE])
            objects = merge_tiles([one.found for one in seen], tiles, width, height)
            found.append(ObjectPrediction(objects, self.class_names))
        return found


def _prepare_tiles(
    prepare: Callable[[Any], Any], section: TilesSection, image: Image.Image | Pixels
) -> tuple[tuple[int, int], list[Tile], list[Any]]:
    tiles = tiles_of(*image.size, section)
    return image.size, tiles, [prepare(image.crop(tile)) for tile in tiles]


def _cut(boxes: np.ndarray, frames: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Whether a border of its frame cuts a box, (N,); the image's own borders cut nothing."""
    sides = boxes[..., 2:] - boxes[..., :2]
    near = np.maximum(_NEAR_PIXELS, _NEAR_SHARE * sides)
    gaps = np.concatenate([boxes[..., :2] - frames[..., :2], frames[..., 2:] - boxes[..., 2:]], axis=-1)
    return ((gaps < np.concatenate([near, near], axis=-1)) & (frames != image)).any(axis=-1)


def _seen_better(boxes: np.ndarray, owner: np.ndarray, frames: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Whether another tile, not the whole image, has a box wholly inside and uncut, (N,)."""
    seen = np.zeros(len(boxes), bool)
    for number, frame in enumerate(frames):
        if (frame == image).all():
            continue
        inside = ((boxes[:, :2] >= frame[:2]) & (boxes[:, 2:] <= frame[2:])).all(axis=1)
        seen |= inside & (owner != number) & ~_cut(boxes, np.broadcast_to(frame, boxes.shape), image)
    return seen


def _groups(boxes: np.ndarray, frames: np.ndarray, owner: np.ndarray) -> list[list[int]]:
    """Numbers of boxes of one class that show one object, each group and the groups by falling score."""
    left = np.ones(len(boxes), bool)
    groups = []
    for first in range(len(boxes)):
        if not left[first]:
            continue
        left[first] = False
        group, newest = [first], first
        meets = np.zeros(len(boxes), bool)
        is_free = left.copy()  # neither taken nor of a tile that the group has a box of
        while True:
            is_free &= left & (owner != owner[newest])
            meets |= _alike(boxes[newest], frames[newest], boxes, frames)
            candidates = np.flatnonzero(is_free & meets)
            if not len(candidates):
                break
            newest = int(candidates[0])  # the highest score
            left[newest] = False
            group.append(newest)
        groups.append(sorted(group))
    return groups


def _alike(box: np.ndarray, frame: np.ndarray, boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Whether boxes overlap one box by `MERGE_IOU` within what its frame and theirs share, (N,)."""
    low, high = np.maximum(frame[:2], frames[:, :2]), np.minimum(frame[2:], frames[:, 2:])
    ours = (np.maximum(box[:2], low), np.minimum(box[2:], high))
    theirs = (np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high))
    shared = _area(np.maximum(ours[0], theirs[0]), np.minimum(ours[1], theirs[1]))
    union = _area(*ours) + _area(*theirs) - shared
    return (shared > 0) & (shared >= MERGE_IOU * union)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (high - low).clip(min=0).prod(axis=1)


def _united(
    things: Found, shown: np.ndarray, boxes: np.ndarray, tiles: Sequence[Tile], size: tuple[int, int]
) -> dict[str, Any]:
    """One object of the whole image from views of it."""
    low, high = boxes[shown, :2].min(axis=0), boxes[shown, 2:].max(axis=0)
    thing = {"label": things[shown[0]]["label"], "bbox": [*low.tolist(), *(high - low).tolist()]}
    if "segmentation" in things[shown[0]]:
        mask = np.zeros(size, np.uint8)
        for number, tile in zip(shown, tiles, strict=True):
            mask[tile.top : tile.bottom, tile.left : tile.right] |= decode(things[number]["segmentation"])
        thing["segmentation"] = encode_mask(mask)
    return thing
