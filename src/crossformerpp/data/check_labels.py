"""What is wrong with labelled images, found before an hour of training is lost."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crossformerpp.data.balance import class_counts
from crossformerpp.data.check import LEAST_SIDE
from crossformerpp.data.classification import LabelledImages
from crossformerpp.data.labelled import Format, open_labelled
from crossformerpp.data.problems import Problems
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
    """

    which: str
    counts: dict[str, int]
    images_per_class: dict[str, int]
    problems: list[str]
    notes: list[str]
    found: str

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "split": self.which,
            "counts": self.counts,
            "images_per_class": self.images_per_class,
            "problems": self.problems,
            "notes": self.notes,
            "found": self.found,
        }


def check_labels(
    root: Path,
    wanted: Format | None = None,
    track: Callable[[range], Iterable[int]] = iter,
    multi_label: bool = False,
) -> Iterator[LabelReport]:
    """Open every image of a folder of class folders, or of a table, split by split.

    Args:
        wanted: What the folder holds, where it could be several.
        track: Wraps the sample numbers, for a progress bar.
        multi_label: Images have any number of labels.

    Raises:
        ValueError: As `labelled.open_labelled`.
    """
    left_out: list[str] = []
    opened = partial(open_labelled, root, wanted=wanted, multi_label=multi_label)
    train = _open(opened, "train", None, left_out)
    if train.is_drawn:
        yield _check(_open(opened, "test", train.class_names, []), "all", left_out, track)
        return
    yield _check(train, "train", left_out, track)
    left_out = []
    yield _check(_open(opened, "val", train.class_names, left_out), "val", left_out, track)


def _open(
    opened: Callable[..., LabelledImages], which: Which, class_names: list[str] | None, left_out: list[str]
) -> LabelledImages:
    """A split; what its reader warns of is a problem here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = opened(which, class_names=class_names)
    left_out += [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return source


def _check(
    source: LabelledImages, which: str, left_out: list[str], track: Callable[[range], Iterable[int]]
) -> LabelReport:
    problems, notes = Problems(), Problems()
    for number in track(range(len(source))):
        try:
            image = source.open(number)
        except ValueError as error:
            problems.add("unreadable image", str(error))
            continue
        if min(image.size) < LEAST_SIDE:
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
    return LabelReport(which, counts, per_class, [*left_out, *problems.lines()], notes.lines(), source.found)
