"""What is wrong with a data set for detection, found before an hour of training is lost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossformerpp.data.coco import CocoImage, CocoSet, Half, NoSuchSplitError, leaves, read_coco, suspicion
from crossformerpp.data.files import find_files
from crossformerpp.data.images import IMAGE_EXTENSIONS, exif_orientation
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.names import printable
from crossformerpp.data.objects import Format, ObjectSet, find_objects, missing
from crossformerpp.data.pixel_statistics import PixelStatistics, guess_channels, read_for_statistics
from crossformerpp.data.problems import Problems
from crossformerpp.data.tables import unusable_table

_SPLITS: tuple[Half, Half] = ("train", "val")
LEAST_SIDE = 32  # pixels; smaller images are mostly mistakes


@dataclass(frozen=True)
class SetReport:
    """One annotation file and its images.

    Attributes:
        counts: images, images without objects, objects, crowds, objects with masks, categories.
        objects_per_class: By name, all classes of the file.
        problems: A line per kind, with how often and the first places; empty if all is well.
        notes: What may be meant so.
        found: What the data set was taken for.
        data: What a recipe's `data` section needs of the images, see `pixel_statistics`.
    """

    annotations: Path
    images: Path
    counts: dict[str, int]
    objects_per_class: dict[str, int]
    problems: list[str]
    notes: list[str]
    found: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "annotations": str(self.annotations),
            "images": str(self.images),
            "counts": self.counts,
            "objects_per_class": self.objects_per_class,
            "problems": self.problems,
            "notes": self.notes,
            "found": self.found,
            "data": self.data,
        }


def check_objects(
    path: Path, images: Path | None = None, wanted: Format | None = None, channels: int | None = None
) -> Iterator[SetReport]:
    """Check an annotation file, data.yaml, or all splits of a folder; every image is opened, every mask decoded.

    Args:
        images: The folder that an annotation file's names are relative to; default: found beside the file, as training
            finds it.
        wanted: The format, where the folder has several.
        channels: Of the images; default: found out.

    Raises:
        ValueError: There is nothing to check, or it cannot be read.
    """
    if images is not None:
        yield _check(read_coco(path, images), images, channels)
        return
    found = find_objects(path, wanted)
    if found is None and (problem := unusable_table(path)) is not None:
        raise ValueError(f"{problem}; and nothing else to check in {path}")
    if found is None:
        raise ValueError(
            f"{missing(path)}; nor the folders images and masks, each with train/ and val/ or with files, nor class "
            "folders or a table of images and labels"
        )
    if not found.is_split:
        whole = found.read(None)
        _note_unnamed(found, None, whole, [whole])
        yield _check(whole, found.images_of(None), channels, found=str(found))
        return
    absent: list[str] = []
    read: dict[Half, tuple[CocoSet, list[str]]] = {}
    for half in _SPLITS:
        try:
            read[half] = _read(found, half, read.get("train"))
        except NoSuchSplitError as error:
            absent.append(f"{error}: training needs both splits")
    for half, (coco, problems) in read.items():
        _note_unnamed(found, half, coco, [one for one, _ in read.values()])
        yield _check(coco, found.images_of(half), channels, [*absent, *problems], str(found))


def _note_unnamed(found: ObjectSet, half: Half | None, coco: CocoSet, splits: Sequence[CocoSet]) -> None:
    """Note the images in the folder of a COCO file that neither it nor that of another split names."""
    if found.format == "coco":
        folder = found.images_of(half)
        named = {image.path for one in splits for image in one.images}
        for path in find_files(folder, IMAGE_EXTENSIONS, Problems()):
            if path not in named:
                name = printable(path.relative_to(folder).as_posix())
                coco.notes.add("image without a usable entry in the annotations (it is left out)", name)


def _read(found: ObjectSet, half: Half, train: tuple[CocoSet, list[str]] | None) -> tuple[CocoSet, list[str]]:
    """A split and how its classes differ from those of training, which is one more problem."""
    if train is None:
        return found.read(half), []
    try:
        return found.read(half, class_names=train[0].class_names), []
    except NoSuchSplitError:
        raise
    except ValueError as error:
        return found.read(half), [str(error).replace("the model knows", "train has")]


def _check(
    coco: CocoSet, folder: Path, channels: int | None, absent: Sequence[str] = (), found: str = ""
) -> SetReport:
    notes = coco.notes
    statistics = PixelStatistics(channels or guess_channels([image.path for image in coco.images])[0])
    for image in coco.images:
        _check_image(image, coco, notes, statistics)
    objects = [thing for image in coco.images for thing in image.objects]
    per_class = Counter(coco.class_names[thing.label] for thing in objects if not thing.is_crowd)
    for name in coco.class_names:
        if not per_class[name]:
            notes.add("category without objects", name)
    counts = {
        "images": len(coco.images),
        "images without objects": sum(not image.objects for image in coco.images),
        "objects": sum(not thing.is_crowd for thing in objects),
        "crowds": sum(thing.is_crowd for thing in objects),
        "objects with masks": sum(thing.segmentation is not None for thing in objects if not thing.is_crowd),
        "categories": len(coco.class_names),
    }
    problems = [*absent, *coco.refused.lines(), *coco.problems.lines()]
    if (problem := suspicion(coco)) is not None:
        problems.insert(0, problem)
    if not counts["objects"]:
        problems.append("no objects to train on or to evaluate" + " but crowds" * bool(counts["crowds"]))
    lines = notes.lines()
    if counts["objects"] and not counts["objects with masks"]:
        lines.append("no masks: train with --set detector.name=retinanet")
    counted = {name: per_class[name] for name in coco.class_names}
    return SetReport(coco.source, folder, counts, counted, problems, lines, found, statistics.recipe())


def _check_image(entry: CocoImage, coco: CocoSet, notes: Problems, statistics: PixelStatistics) -> None:
    name = printable(entry.path.name)
    try:
        image = np.asarray(read_for_statistics(entry.path, str(entry.path), statistics.channels))
    except ValueError as error:
        coco.problems.add("unreadable image", f"{name}: {str(error).removeprefix(f'{entry.path}: ')}")
        return
    statistics.add(image)
    orientation = exif_orientation(entry.path)
    height, width = image.shape[:2]
    if (width, height) != (entry.width, entry.height):
        coco.problems.add(
            "image of another size than annotated",
            f"{name} is {width}x{height}, not {entry.width}x{entry.height}"
            + (" (turned by its EXIF orientation)" if orientation > 4 else ""),
        )
    elif orientation > 1:
        notes.add(
            "image turned or mirrored by EXIF (boxes must fit the upright image; where its size stays, nothing "
            "shows it)",
            name,
        )
    if min(width, height) < LEAST_SIDE:
        coco.problems.add(f"image below {LEAST_SIDE} pixels", f"{name} is {width}x{height}")
    boxes = Counter((thing.label, thing.box) for thing in entry.objects)
    for (label, _), count in boxes.items():
        if count > 1:
            notes.add("box annotated more than once", f"{coco.class_names[label]} in {name}")
    for thing in entry.objects:
        if leaves(thing.box, entry):
            coco.problems.add("box that reaches beyond its image (it is cut off)", name)
        if thing.segmentation is not None:
            mask = decode(encode(thing.segmentation, entry.height, entry.width))
            if not mask.any():
                coco.problems.add("empty mask", name)
