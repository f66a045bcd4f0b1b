"""Open a data set of any task for the doctor: its images, and the labelled things in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from crossformerpp.data.classification import Files, LabelledImages, open_folder
from crossformerpp.data.coco import CocoImage, CocoSet, Half, NoSuchSplitError, read_coco, suspicion
from crossformerpp.data.doctor.findings import Box, Finding
from crossformerpp.data.files import find_folders
from crossformerpp.data.images import read_image, require_shape
from crossformerpp.data.labelled import find_format, open_labelled
from crossformerpp.data.names import printable
from crossformerpp.data.objects import find_objects, missing
from crossformerpp.data.pixels import as_picture
from crossformerpp.data.problems import Problems
from crossformerpp.data.segmentation import MaskedImages, has_masks, open_splits
from crossformerpp.data.split import every_split_folder

TaskName = Literal["classification", "detection", "segmentation"]
Opened = tuple[Image.Image, np.ndarray | None]


@dataclass(frozen=True)
class Sample:
    """An image.

    Attributes:
        open: Gives the RGB image, and for segmentation its labels H × W.
        path: Its file; None inside tar files.
        label: Its class, if the image has one as a whole.
    """

    name: str
    split: str
    open: Callable[[], Opened]
    path: Path | None = None
    label: int | None = None


@dataclass(frozen=True)
class Item:
    """Something with a class: an image, an object or a segment.

    Attributes:
        sample: Number of its image.
        box: Where it is (left, top, right, bottom); None: the whole image.
    """

    sample: int
    label: int
    box: Box | None = None


@dataclass
class Subjects:
    """A data set.

    Attributes:
        items: Of classification and detection; those of segmentation are found in the masks.
        findings: What was wrong before an image was opened.
    """

    task: TaskName
    class_names: list[str]
    samples: list[Sample] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        """In the order in which they were opened."""
        return list(dict.fromkeys(sample.split for sample in self.samples))

    def items_of(self) -> list[list[Item]]:
        """The items by image."""
        found: list[list[Item]] = [[] for _ in self.samples]
        for item in self.items:
            found[item.sample].append(item)
        return found


def open_subjects(
    path: Path,
    task: TaskName | None = None,
    *,
    images: Path | None = None,
    palette: Path | None = None,
    ignore_label: int = 255,
    mask_values: list[int] | None = None,
) -> Subjects:
    """Open all splits of a data set.

    Args:
        path: A folder as training takes it, an annotation file, data.yaml, or a table of images and labels.
        task: Default: detection where objects are annotated, segmentation where there are masks, else classification.
        images: The folder that the names in an annotation file are relative to; default: found beside it.

    Raises:
        ValueError: There is no such data.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such folder or annotation file")
    task = task or _task_of(path)
    if task == "detection":
        return _open_objects(path, images)
    if task == "segmentation":
        return _open_masks(list(open_splits(path, palette, ignore_label, mask_values)))
    return _open_classes(path)


def _task_of(path: Path) -> TaskName:
    if find_objects(path) is not None:
        return "detection"
    return "segmentation" if has_masks(path) else "classification"


def _open_classes(root: Path) -> Subjects:
    splits = dict(_labelled(root))
    names = list(dict.fromkeys(name for source in splits.values() for name in source.class_names))
    numbers = {name: number for number, name in enumerate(names)}
    subjects = Subjects("classification", names)
    for split, source in splits.items():
        for index, own in enumerate(source.labels):
            label = numbers[source.class_names[own]]
            path = source.images[index] if isinstance(source.images, Files) else None
            name = f"{split}/{source.names[index]}" if len(splits) > 1 else source.names[index]
            subjects.items.append(Item(len(subjects.samples), label))
            subjects.samples.append(Sample(name, split, partial(_open_labelled, source, index), path, label))
    return subjects


def _labelled(root: Path) -> Iterator[tuple[str, LabelledImages]]:
    """All images of each split; those of data without splits under "all"."""
    if find_format(root) not in ("folders", None):
        train = open_labelled(root, "train")
        if train.is_drawn:
            yield "all", open_labelled(root, "test")
        else:
            yield from (("train", train), ("val", open_labelled(root, "val")))
    elif folders := every_split_folder(root):
        found = {
            printable(one.name) for folder in folders.values() for one in find_folders(folder, Problems())
        }
        names = sorted(found) if len(found) > 1 else None  # one split may lack some
        yield from ((split, open_folder(folder, "test", 0.2, 0, names)) for split, folder in folders.items())
    else:
        yield "all", open_folder(root, "test", 0.2, 0)


def _open_labelled(source: LabelledImages, index: int) -> Opened:
    return source.open(index), None


def _open_objects(path: Path, images: Path | None) -> Subjects:
    splits = list(_annotated(path, images))
    names = list(dict.fromkeys(name for _, coco in splits for name in coco.class_names))
    subjects = Subjects("detection", names)
    for split, coco in splits:
        _add_coco(subjects, split, coco)
    return subjects


def _annotated(path: Path, images: Path | None) -> Iterator[tuple[str, CocoSet]]:
    if images is not None:
        yield path.stem, read_coco(path, images)
        return
    found = find_objects(path)
    if found is None:
        raise ValueError(missing(path))
    if not found.is_split:
        yield path.stem if path.is_file() else "all", found.read(None)
        return
    halves: tuple[Half, Half] = ("train", "val")
    for half in halves:
        try:
            yield half, found.read(half)
        except NoSuchSplitError:
            continue


def _add_coco(subjects: Subjects, split: str, coco: CocoSet) -> None:
    labels = [subjects.class_names.index(name) for name in coco.class_names]
    for problems in (coco.refused, coco.problems):
        for kind, places in problems.found.items():
            subjects.findings += [
                Finding("annotation problem", image=place, split=split, detail=kind) for place in places
            ]
    if (problem := suspicion(coco)) is not None:
        subjects.findings.append(Finding("annotation problem", split=split, detail=problem))
    for image in coco.images:
        number = len(subjects.samples)
        subjects.items += [
            Item(number, labels[thing.label], thing.box) for thing in image.objects if not thing.is_crowd
        ]
        name = f"{split}/{printable(image.path.name)}"
        subjects.samples.append(Sample(name, split, partial(_open_coco_image, image), image.path))


def _open_coco_image(entry: CocoImage) -> Opened:
    image = _open_file(entry.path)
    if image.size != (entry.width, entry.height):
        raise ValueError(
            f"{entry.path}: {image.width}x{image.height} pixels, annotated as {entry.width}x{entry.height}"
        )
    return image, None


def _open_file(path: Path) -> Image.Image:
    image = read_image(path)
    require_shape(image, str(path))
    return image


def _open_masked(source: MaskedImages, index: int) -> Opened:
    image, labels = source.open(index)
    return as_picture(image), labels


def _open_masks(splits: list[tuple[Literal["train", "val", "test"], MaskedImages]]) -> Subjects:
    subjects = Subjects("segmentation", splits[0][1].class_names)
    for which, source in splits:
        split = which if len(splits) > 1 else "all"
        subjects.findings += [
            Finding("unreadable", printable(path.name), split, detail="no mask")
            for path in source.without_mask
        ]
        subjects.findings += [
            Finding("unreadable", printable(path.name), split, detail="a mask without an image")
            for path in source.without_image
        ]
        for index, name in enumerate(source.names):
            shown = f"{split}/{name}" if len(splits) > 1 else name
            subjects.samples.append(
                Sample(shown, split, partial(_open_masked, source, index), source.images[index])
            )
    return subjects
