"""Boxes and masks that are likely mistakes, and the parts of images that have a class."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from crossformerpp.data.doctor.findings import Box, Finding
from crossformerpp.data.doctor.subjects import Item, Subjects
from crossformerpp.data.mask_files import IGNORED

LEAST_SIDE = 8  # pixels of a part that can be judged by its looks
_HUGE, _THIN, _TINY, _SAME = 0.95, 20, 3, 0.9  # share of the image; ratio of the sides; pixels; IoU
_GREY = 124  # in the place of what is not of a segment
_MARGIN = 0.1  # of a box's sides, shown around it
_IGNORED = 0.5  # share of a mask
_FEW = 5  # images or objects of a class


def part(image: Image.Image, box: Box | None, shape: np.ndarray | None = None) -> Image.Image | None:
    """The image, or the part in a box; None where it is too small to be judged.

    Args:
        shape: The pixels of a segment in its box, which alone are kept; the others become grey.
    """
    if box is None:
        return image
    if shape is not None:
        if min(shape.shape) < LEAST_SIDE:
            return None
        pixels = np.asarray(image.crop(tuple(map(int, box))))  # type: ignore[arg-type]
        return Image.fromarray(np.where(shape[..., None], pixels, np.uint8(_GREY)))
    x, y = _MARGIN * (box[2] - box[0]), _MARGIN * (box[3] - box[1])
    left, top = max(0, round(box[0] - x)), max(0, round(box[1] - y))
    right, bottom = min(image.width, round(box[2] + x)), min(image.height, round(box[3] + y))
    if min(right - left, bottom - top) < LEAST_SIDE or min(box[2] - box[0], box[3] - box[1]) < LEAST_SIDE:
        return None
    return image.crop((left, top, right, bottom))


def odd_boxes(
    subjects: Subjects, number: int, items: Sequence[Item], size: tuple[int, int]
) -> Iterator[Finding]:
    """
    Args:
        number: Of the image.
        size: Its (width, height).
    """
    sample, boxes = subjects.samples[number], [item.box for item in items if item.box is not None]
    names = [subjects.class_names[item.label] for item in items]

    def finding(place: int, detail: str) -> Finding:
        return Finding(
            "odd box",
            sample.name,
            sample.split,
            label=names[place],
            detail=detail,
            box=boxes[place],
            samples=(number,),
        )

    for place, (left, top, right, bottom) in enumerate(boxes):
        short, long = sorted((right - left, bottom - top))
        if short * long > _HUGE * size[0] * size[1]:
            yield finding(place, "huge: covers the image")
        if short < _TINY:
            yield finding(place, f"tiny: {right - left:.1f}x{bottom - top:.1f} pixels")
        elif long > _THIN * short:
            yield finding(place, f"thin: {right - left:.1f}x{bottom - top:.1f} pixels")
    for one, two in _overlapping(boxes):
        other = "of the same class" if names[one] == names[two] else f"of class {names[one]}"
        yield finding(two, f"double: nearly the box of another object {other}")


def _overlapping(boxes: Sequence[Box]) -> Iterator[tuple[int, int]]:
    """Pairs whose intersection over union is at least _SAME."""
    if len(boxes) < 2:
        return
    array = np.asarray(boxes, float)
    areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    for one in range(len(array) - 1):
        rest = array[one + 1 :]
        sides = np.minimum(array[one, 2:], rest[:, 2:]) - np.maximum(array[one, :2], rest[:, :2])
        shared = sides.clip(min=0).prod(axis=1)
        union = areas[one] + areas[one + 1 :] - shared
        yield from ((one, one + 1 + int(two)) for two in np.flatnonzero(shared >= _SAME * union))


def segments(labels: np.ndarray, number: int) -> list[tuple[Item, np.ndarray]]:
    """The largest connected segment of each class in a mask, with its pixels in its box."""
    from scipy.ndimage import find_objects, label

    items = []
    for value in np.unique(labels[labels != IGNORED]).tolist():
        parts, count = label(labels == value)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        largest = int(sizes.argmax())
        rows, columns = find_objects(parts)[largest]
        box = (columns.start, rows.start, columns.stop, rows.stop)
        items.append((Item(number, int(value), box), parts[rows, columns] == largest + 1))
    return items


def odd_masks(subjects: Subjects, pixels: np.ndarray, ignored: np.ndarray) -> Iterator[Finding]:
    """
    Args:
        pixels: (N, K) of each class in each image.
        ignored: (N,) share of each mask; NaN where it could not be read.
    """
    several = np.mean((pixels > 0).sum(1) > 1) > 0.5
    for number, sample in enumerate(subjects.samples):
        seen = np.flatnonzero(pixels[number])
        if np.isnan(ignored[number]):
            continue
        details = []
        if ignored[number] > _IGNORED:
            details.append(f"ignored: {ignored[number]:.0%} of the pixels")
        if several and len(seen) == 1:
            details.append(f"one class: {subjects.class_names[seen[0]]}, most images have several")
        for detail in details:
            yield Finding("odd mask", sample.name, sample.split, detail=detail, samples=(number,))


def rare_classes(subjects: Subjects, items: Sequence[Item]) -> Iterator[Finding]:
    """Classes with few items, or in one split only.

    Args:
        items: Those of the data set; for segmentation one of each class in each image.
    """
    per_class: dict[int, Counter[str]] = defaultdict(Counter)
    for item in items:
        per_class[item.label][subjects.samples[item.sample].split] += 1
    splits = [split for split in subjects.splits if split != "test"]
    what = {"classification": "images", "detection": "objects", "segmentation": "images"}[subjects.task]
    for label, name in enumerate(subjects.class_names):
        counts = per_class[label]
        absent = [split for split in splits if not counts[split]]
        if not counts:
            yield Finding("rare class", label=name, detail=f"no {what}")
        elif len(absent) < len(splits) and absent:
            yield Finding("rare class", label=name, detail=f"none in {', '.join(absent)}")
        elif counts.total() < _FEW:
            yield Finding("rare class", label=name, detail=f"{counts.total()} {what}")
