"""What is wrong with a data set for detection, found before an hour of training is lost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from crossformerpp.data.coco import (
    CocoImage,
    CocoSet,
    Half,
    NoSuchSplitError,
    Problems,
    annotation_files,
    find_split,
    read_coco,
)
from crossformerpp.data.images import read_image
from crossformerpp.data.masks import decode, encode

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
        yield _check(path, images or _folder_of(path))
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
        _check_image(image, coco)
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
    if _look_like_corners(coco):
        problems.insert(0, "the boxes look like corners [x1, y1, x2, y2]; COCO's are [x, y, width, height]")
    lines = notes.lines()
    if counts["objects"] and not counts["objects with masks"]:
        lines.append("no masks: train with --set detector.name=retinanet")
    per_class = {name: found[name] for name in coco.class_names}
    return SetReport(annotations, folder, counts, per_class, problems, lines)


def _look_like_corners(coco: CocoSet) -> bool:
    """Whether all boxes make sense as [x1, y1, x2, y2], but many not as [x, y, width, height].

    Read as sizes, corners leave the image unless the object's centre is both left of and above the image's.
    """
    pairs = [(thing.box, image) for image in coco.images for thing in image.objects]
    outside = sum(_leaves(box, image) for box, image in pairs)
    return 3 * outside > len(pairs) and not any(
        right - left <= left or bottom - top <= top or _leaves((left, top, right - left, bottom - top), image)
        for (left, top, right, bottom), image in pairs
    )


def _leaves(box: tuple[float, float, float, float], image: CocoImage) -> bool:
    """Whether a box reaches beyond its image by more than a pixel."""
    left, top, right, bottom = box
    return left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1


def _check_image(entry: CocoImage, coco: CocoSet) -> None:
    name = entry.path.name
    try:
        image = read_image(entry.path)
    except ValueError as error:
        coco.problems.add("unreadable image", f"{name}: {str(error).removeprefix(f'{entry.path}: ')}")
        return
    if image.size != (entry.width, entry.height):
        coco.problems.add(
            "image of another size than annotated",
            f"{name} is {image.width}x{image.height}, not {entry.width}x{entry.height}{_turned(entry.path)}",
        )
    if min(image.size) < LEAST_SIDE:
        coco.problems.add(f"image below {LEAST_SIDE} pixels", f"{name} is {image.width}x{image.height}")
    for thing in entry.objects:
        if _leaves(thing.box, entry):
            coco.problems.add("box that reaches beyond its image (it is cut off)", name)
        if thing.segmentation is not None:
            mask = decode(encode(thing.segmentation, entry.height, entry.width))
            if not mask.any():
                coco.problems.add("empty mask", name)


def _turned(path: Path) -> str:
    """Whether the file says that it is to be shown turned, which annotations often ignore."""
    with Image.open(path) as image:
        return " (turned by its EXIF orientation)" if image.getexif().get(0x0112, 1) > 4 else ""


def _folder_of(annotations: Path) -> Path:
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
