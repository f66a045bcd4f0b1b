"""What is wrong with a data set for detection, found before an hour of training is lost."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from crossformerpp.data.coco import CocoImage, CocoSet, Half, NoSuchSplitError, find_split, read_coco
from crossformerpp.data.images import read_image
from crossformerpp.data.masks import decode, encode

LEAST_SIDE = 32  # pixels; smaller images are mostly mistakes


@dataclass(frozen=True)
class SetReport:
    """One annotation file and its images.

    Attributes:
        counts: images, images without objects, objects, crowds, objects with masks, categories.
        objects_per_class: By name, all classes of the file.
        problems: A line per kind, with how often and the first places; empty if all is well.
    """

    annotations: Path
    images: Path
    counts: dict[str, int]
    objects_per_class: dict[str, int]
    problems: list[str]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "annotations": str(self.annotations),
            "images": str(self.images),
            "counts": self.counts,
            "objects_per_class": self.objects_per_class,
            "problems": self.problems,
        }


def check_coco(path: Path, images: Path | None = None) -> Iterator[SetReport]:
    """Check an annotation file, or all splits of a folder; every image is opened and every mask decoded.

    Args:
        images: The folder that a file's names are relative to; default: found beside the file, as training
            finds it.

    Raises:
        ValueError: There is nothing to check, or the file is not in COCO's format.
    """
    if path.is_dir():
        pairs: list[tuple[Path, Path]] = []
        splits: tuple[Half, Half] = ("train", "val")
        for split in splits:
            try:
                pairs.append(find_split(path, split))
            except NoSuchSplitError:
                if split == "val" and not pairs:
                    raise
    else:
        pairs = [(path, images or _folder_of(path))]
    for annotations, folder in pairs:
        yield _check(annotations, folder)


def _check(annotations: Path, folder: Path) -> SetReport:
    coco = read_coco(annotations, folder)
    for image in coco.images:
        _check_image(image, coco)
    objects = [thing for image in coco.images for thing in image.objects]
    found = Counter(coco.class_names[thing.label] for thing in objects if not thing.is_crowd)
    for name in coco.class_names:
        if not found[name]:
            coco.problems.add("category without objects", name)
    counts = {
        "images": len(coco.images),
        "images without objects": sum(not image.objects for image in coco.images),
        "objects": sum(not thing.is_crowd for thing in objects),
        "crowds": sum(thing.is_crowd for thing in objects),
        "objects with masks": sum(thing.segmentation is not None for thing in objects if not thing.is_crowd),
        "categories": len(coco.class_names),
    }
    per_class = {name: found[name] for name in coco.class_names}
    return SetReport(annotations, folder, counts, per_class, coco.problems.lines())


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
        left, top, right, bottom = thing.box
        if left < -1 or top < -1 or right > entry.width + 1 or bottom > entry.height + 1:
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
    splits: tuple[Half, Half] = ("train", "val")
    for root in annotations.parents[:2]:
        for split in splits:
            try:
                file, folder = find_split(root, split)
            except ValueError:
                continue
            if file == annotations:
                return folder
    return annotations.parent
