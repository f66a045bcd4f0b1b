"""What is wrong with labelled images, found before an hour of training is lost."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossformerpp.data.balance import class_counts
from crossformerpp.data.check import LEAST_SIDE
from crossformerpp.data.classification import LabelledImages
from crossformerpp.data.images import require_shape
from crossformerpp.data.labelled import Format, open_labelled
from crossformerpp.data.pixel_statistics import (
    PixelStatistics,
    guess_channels,
    looked_for,
    read_for_statistics,
)
from crossformerpp.data.pixels import PixelFormat, Pixels
from crossformerpp.data.problems import Problems, Remark
from crossformerpp.data.split import Which


@dataclass(frozen=True)
class LabelReport:
    """What a split holds.

    Attributes:
        which: "train" or "val"; "all" for images that are yet to be split.
        counts: images, and those that cannot be read.
        images_per_class: By name, all classes.
        problems: A line per kind, with how often and the first places; empty if all is well.
        notes: What may be meant so.
        found: What the data set was taken for.
        data: What a recipe's `data` section needs of the images: mean, std, and of others than RGB photographs channels
            and max_value.
    """

    which: str
    counts: dict[str, int]
    images_per_class: dict[str, int]
    problems: list[str]
    notes: list[str]
    found: str
    data: dict[str, Any]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "split": self.which,
            "counts": self.counts,
            "images_per_class": self.images_per_class,
            "problems": self.problems,
            "notes": self.notes,
            "found": self.found,
            "data": self.data,
        }


def check_labels(
    root: Path,
    wanted: Format | None = None,
    track: Callable[[range], Iterable[int]] = iter,
    channels: int | None = None,
    multi_label: bool = False,
) -> Iterator[LabelReport]:
    """Open every image of a folder of class folders, or of a table, split by split.

    Args:
        wanted: What the folder holds, where it could be several.
        track: Wraps the sample numbers, for a progress bar.
        channels: Of the images; default: found out.
        multi_label: Images have any number of labels.

    Raises:
        ValueError: As `labelled.open_labelled`.
    """
    left_out: list[str] = []
    notes: list[str] = []
    opened = partial(open_labelled, root, wanted=wanted, multi_label=multi_label)
    listed = looked_for(root)
    train = _open(opened, "train", None, left_out, notes, listed)
    guess, note = guess_channels(train.images)
    channels = channels or guess
    notes += [note] if note and channels is None else []
    if train.is_drawn:
        everything = _open(opened, "test", train.class_names, [], [], listed)
        yield _check(everything, "all", left_out, track, channels, notes)
        return
    yield _check(train, "train", left_out, track, channels, notes)
    left_out, notes = [], []
    val = _open(opened, "val", train.class_names, left_out, notes, listed)
    yield _check(val, "val", left_out, track, channels, notes)


def _open(
    opened: Callable[..., LabelledImages],
    which: Which,
    class_names: list[str] | None,
    left_out: list[str],
    notes: list[str],
    pixels: PixelFormat,
) -> LabelledImages:
    """A split; what its reader warns of is a problem here, unless it is a mere remark."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = opened(which, class_names=class_names, pixels=pixels)
    for one in caught:
        if issubclass(one.category, UserWarning):
            (notes if issubclass(one.category, Remark) else left_out).append(str(one.message))
    return source


def _check(
    source: LabelledImages,
    which: str,
    left_out: list[str],
    track: Callable[[range], Iterable[int]],
    channels: int | None,
    more_notes: Sequence[str] = (),
) -> LabelReport:
    problems, notes, statistics = Problems(), Problems(), PixelStatistics(channels)
    for number in track(range(len(source))):
        try:
            image = read_for_statistics(source.images[number], source.names[number], channels)
            require_shape(Pixels(np.asarray(image)), source.names[number])
        except ValueError as error:
            problems.add("unreadable image", str(error))
            continue
        statistics.add(image)
        if min(np.asarray(image).shape[:2]) < LEAST_SIDE:
            notes.add(f"image below {LEAST_SIDE} pixels", source.names[number])
    sets = source.label_sets
    numbers = class_counts(source.labels if sets is None else sets, len(source.class_names))
    per_class = dict(zip(source.class_names, numbers.tolist(), strict=True))
    empty = [name for name, count in per_class.items() if not count]
    for name in empty:
        notes.add("class without images", name)
    counts = {
        "images": len(source),
        "unreadable images": len(problems.found.get("unreadable image", ())),
        "classes": len(per_class),
    }
    if sets is not None:
        counts |= {"labels": int(numbers.sum()), "images without a label": sum(not own for own in sets)}
    return LabelReport(
        which,
        counts,
        per_class,
        [*left_out, *problems.lines()],
        [*notes.lines(), *more_notes],
        source.found,
        statistics.recipe(),
    )
