"""What is wrong with a data set for detection, found before an hour of training is lost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossformerpp.data.coco import (
    CocoImage,
    CocoSet,
    Half,
    NoSuchSplitError,
    annotation_files,
    find_split,
    leaves,
    read_coco,
    suspicion,
)
from crossformerpp.data.images import exif_orientation, read_image
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.names import printable
from crossformerpp.data.problems import Problems

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
    """

    annotations: Path
    images: Path
    counts: dict[str, int]
    objects_per_class: dict[str, int]
    problems: list[str]
    notes: list[str]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "annotations": str(self.annotations),
            "images": str(self.images),
            "counts": self.counts,
            "objects_per_class": self.objects_per_class,
            "problems": self.problems,
            "notes": self.notes,
        }


def check_coco(path: Path, images: Path | None = None) -> Iterator[SetReport]:
    """Check an annotation file, or all splits of a folder; every image is opened and every mask decoded.

    Args:
        images: The folder that a file's names are relative to; default: found beside the file, as training
            finds it.

    Raises:
        ValueError: There is nothing to check, or the file is not in COCO's format.
    """
    if not path.is_dir():
        yield _check(path, images or folder_of(path))
        return
    pairs: list[tuple[Path, Path]] = []
    missing: list[str] = []
    for split in _SPLITS:
        try:
            pairs.append(find_split(path, split))
        except NoSuchSplitError as error:
            missing.append(f"{error}: training needs both splits")
    if not pairs:
        raise ValueError(
            f"{path}: neither annotations in COCO's format (looked for {annotation_files('train')}, "
            f"{annotation_files('val')}) nor the folders images and masks, each with train/ and val/ or with files"
        )
    for annotations, folder in pairs:
        yield _check(annotations, folder, missing)


def _check(annotations: Path, folder: Path, missing: Sequence[str] = ()) -> SetReport:
    coco, notes = read_coco(annotations, folder), Problems()
    for image in coco.images:
        _check_image(image, coco, notes)
    objects = [thing for image in coco.images for thing in image.objects]
    found = Counter(coco.class_names[thing.label] for thing in objects if not thing.is_crowd)
    for name in coco.class_names:
        if not found[name]:
            notes.add("category without objects", name)
    counts = {
        "images": len(coco.images),
        "images without objects": sum(not image.objects for image in coco.images),
        "objects": sum(not thing.is_crowd for thing in objects),
        "crowds": sum(thing.is_crowd for thing in objects),
        "objects with masks": sum(thing.segmentation is not None for thing in objects if not thing.is_crowd),
        "categories": len(coco.class_names),
    }
    problems = [*missing, *coco.problems.lines()]
    if (problem := suspicion(coco)) is not None:
        problems.insert(0, problem)
    lines = notes.lines()
    if counts["objects"] and not counts["objects with masks"]:
        lines.append("no masks: train with --set detector.name=retinanet")
    per_class = {name: found[name] for name in coco.class_names}
    return SetReport(annotations, folder, counts, per_class, problems, lines)


def _check_image(entry: CocoImage, coco: CocoSet, notes: Problems) -> None:
    name = printable(entry.path.name)
    try:
        image = read_image(entry.path)
    except ValueError as error:
        coco.problems.add("unreadable image", f"{name}: {str(error).removeprefix(f'{entry.path}: ')}")
        return
    orientation = exif_orientation(entry.path)
    if image.size != (entry.width, entry.height):
        coco.problems.add(
            "image of another size than annotated",
            f"{name} is {image.width}x{image.height}, not {entry.width}x{entry.height}"
            + (" (turned by its EXIF orientation)" if orientation > 4 else ""),
        )
    elif orientation > 1:
        notes.add(
            "image turned or mirrored by EXIF (boxes must fit the upright image; where its size stays, nothing "
            "shows it)",
            name,
        )
    if min(image.size) < LEAST_SIDE:
        coco.problems.add(f"image below {LEAST_SIDE} pixels", f"{name} is {image.width}x{image.height}")
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


def folder_of(annotations: Path) -> Path:
    """The image folder of an annotation file in one of the usual layouts; otherwise where the file lies."""
    for root in annotations.parents[:2]:
        for split in _SPLITS:
            try:
                file, folder = find_split(root, split)
            except ValueError:
                continue
            if file == annotations:
                return folder
    return annotations.parent
