"""What is wrong with a data set for segmentation, found before an hour of training is lost."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossformerpp.data.images import exif_orientation
from crossformerpp.data.mask_files import IGNORED
from crossformerpp.data.pixel_statistics import PixelStatistics, guess_channels, read_for_statistics
from crossformerpp.data.segmentation import MaskedImages, count_labels, lost_class
from crossformerpp.data.split import Which

_SHOWN = 5  # examples of each kind of problem


@dataclass(frozen=True)
class MaskReport:
    """What a split holds.

    Attributes:
        counts: images with a mask, images without one, masks without an image, images without any labelled
            pixel.
        pixels: Share of the labelled pixels, by class name, all classes.
        problems: A line per kind, with how often and the first places; empty if all is well.
        notes: What may be meant so.
        data: What a recipe's `data` section needs of the images, see `pixel_statistics`.
    """

    which: str
    counts: dict[str, int]
    pixels: dict[str, float]
    problems: list[str]
    notes: list[str]
    data: dict[str, Any]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "split": self.which,
            "counts": self.counts,
            "pixels": self.pixels,
            "problems": self.problems,
            "notes": self.notes,
            "data": self.data,
        }


def check_masks(
    source: MaskedImages,
    which: Which,
    track: Callable[[range], Iterable[int]] = iter,
    channels: int | None = None,
) -> MaskReport:
    """Open every image and mask of a split.

    Args:
        track: Wraps the sample numbers, for a progress bar.
        channels: Of the images; default: found out.
    """
    pixels, ignored = np.zeros(len(source.class_names), np.int64), 0
    unusable: list[str] = []
    turned: list[str] = []
    unlabelled: list[Path] = []
    statistics = PixelStatistics(channels or guess_channels(source.images)[0])
    for number in track(range(len(source))):
        try:
            labels = _read(source, number, statistics)
        except ValueError as error:
            unusable.append(str(error))
            continue
        own = count_labels(labels, len(pixels))
        pixels += own
        ignored += int((labels == IGNORED).sum())
        if not own.any():
            unlabelled.append(source.masks[number])
        if exif_orientation(source.images[number]) in (2, 3, 4):
            turned.append(source.names[number])
    counts = {
        "images": len(source),
        "images without a mask": len(source.without_mask),
        "masks without an image": len(source.without_image),
        "images without a labelled pixel": len(unlabelled),
    }
    problems = [
        *_some("cannot be used", unusable),
        *_some("have no mask", map(str, source.without_mask)),
        *_some("are masks of no image", map(str, source.without_image)),
        *_some("have no labelled pixel", map(str, unlabelled)),
    ]
    if (problem := lost_class(source, pixels, ignored)) is not None:
        problems.insert(0, problem)
    unseen = [name for name, count in zip(source.class_names, pixels, strict=True) if not count]
    notes = [
        *_some(
            "images are turned by 180° or mirrored by EXIF (the masks must fit the upright image; their size "
            "cannot tell)",
            turned,
        ),
        *(f"left out {line}" for line in source.left_out.lines()),
    ]
    if unseen:
        notes.append(f"{len(unseen)} of {len(pixels)} classes are never seen: {', '.join(unseen[:20])}")
    shares = (pixels / max(1, pixels.sum())).tolist()
    per_class = dict(zip(source.class_names, shares, strict=True))
    return MaskReport(which, counts, per_class, problems, notes, statistics.recipe())


def _read(source: MaskedImages, number: int, statistics: PixelStatistics) -> np.ndarray:
    """The labels of a sample, whose image is counted."""
    path = source.images[number]
    image = read_for_statistics(path, str(path), statistics.channels)
    height, width = np.asarray(image).shape[:2]
    labels = source.code.read(source.masks[number], (width, height))
    statistics.add(image)
    return labels


def _some(what: str, places: Iterable[str]) -> list[str]:
    places = list(places)
    more = "; …" if len(places) > _SHOWN else ""
    return [f"{len(places)} {what}: {'; '.join(places[:_SHOWN])}{more}"] if places else []
