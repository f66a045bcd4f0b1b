"""Sets of objects in images, whatever their format: COCO, YOLO or Pascal VOC, found by what lies in the folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crossformerpp.data import coco as coco_format
from crossformerpp.data.coco import CocoSet, Half, annotation_files, find_split, find_whole, read_coco, usable
from crossformerpp.data.coco_images import CocoImage
from crossformerpp.data.names import printable
from crossformerpp.data.voc import find_voc, read_voc
from crossformerpp.data.yolo import read_yolo
from crossformerpp.data.yolo_page import find_yolo, open_yolo

Format = Literal["coco", "yolo", "voc"]
NAMES: dict[Format, str] = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}


@dataclass(frozen=True)
class ObjectSet:
    """A data set that was found.

    Attributes:
        source: What tells: an annotation file, data.yaml, or the folder of annotations.
        opened: What the format's reader needs; None: it looks into `root` itself.
        is_split: Whether it has a validation split of its own.
    """

    root: Path
    format: Format
    source: Path
    opened: Any
    is_split: bool

    def __str__(self) -> str:
        """As people are told."""
        place = self.source.relative_to(self.root) if self.source != self.root else Path(self.root.name)
        return f"{NAMES[self.format]} detection set, {printable(str(place))}"

    def read(
        self, half: Half | None, *, class_names: Sequence[str] | None = None, with_masks: bool = False
    ) -> CocoSet:
        """A split, or, under None, all of a set without splits; nothing is refused yet.

        Raises:
            ValueError: It cannot be read.
        """
        options: dict[str, Any] = {"class_names": class_names, "with_masks": with_masks}
        if self.format == "yolo":
            return read_yolo(self.opened, half, **options)
        if self.format == "voc":
            return read_voc(self.opened, half, **options)
        return read_coco(*(self.opened if half is None else find_split(self.root, half)), **options)

    def images_of(self, half: Half | None) -> Path:
        """The folder that images' names are relative to."""
        if self.format != "coco":
            return self.opened.root
        return (self.opened if half is None else find_split(self.root, half))[1]


def find_objects(root: Path, wanted: Format | None = None) -> ObjectSet | None:
    """The data set in a folder, or the one that an annotation file (.json) or data.yaml describes.

    Args:
        wanted: Its format, where a folder holds several.

    Raises:
        ValueError: No such folder, several formats in it, or one that is damaged.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such folder")
    looks = {"coco": _coco, "yolo": _yolo, "voc": _voc}
    found = [
        one for name, look in looks.items() if wanted in (None, name) and (one := look(root)) is not None
    ]
    if len(found) > 1:
        listed = ", ".join(f"{NAMES[one.format]} ({one.source.relative_to(one.root)})" for one in found)
        raise ValueError(
            f"{root}: labels in several formats: {listed}; pass --set data.format={found[0].format} (`data check` and "
            f"`data convert`: --format {found[0].format}) or {found[1].format}, or move one away"
        )
    return found[0] if found else None


def open_objects(
    root: Path,
    half: Half,
    *,
    wanted: Format | None = None,
    class_names: Sequence[str] | None = None,
    with_masks: bool = False,
    val_fraction: float = 0.2,
    seed: int = 0,
    is_whole: bool = False,
) -> tuple[ObjectSet, CocoSet]:
    """A split for training or evaluation; sets without a validation split are split at random, the same way for a seed.

    Args:
        is_whole: Take all images of a set without splits, to judge a model on them.

    Raises:
        ValueError: As `find_objects` and `coco.open_coco`; or there is nothing.
    """
    found = find_objects(root, wanted)
    if found is None:
        raise ValueError(missing(root, half))
    options: dict[str, Any] = {"class_names": class_names, "with_masks": with_masks}
    if found.is_split:
        return found, usable(found.read(half, **options), found.root)
    coco = usable(found.read(None, **options), found.root)
    return found, coco if is_whole else draw(coco, half, val_fraction, seed)


def missing(root: Path, half: Half = "train") -> str:
    """What a folder without annotations is told."""
    return (
        f"{root}: no {half} annotations in COCO's format (looked for {annotation_files(half)}), YOLO's (data.yaml, or "
        "images, labels and classes.txt) or Pascal VOC's (Annotations/*.xml)"
    )


def draw(coco: CocoSet, half: Half, val_fraction: float, seed: int) -> CocoSet:
    """A random share of the images, at least one for either split.

    Raises:
        ValueError: There are too few, or none of its images has an object.
    """
    order = np.random.default_rng(seed).permutation(len(coco.images))
    num_val = max(1, round(len(order) * val_fraction))
    if num_val >= len(order):
        raise ValueError(f"{coco.source}: {len(order)} image(s) cannot be split into train and val")
    chosen = order[:num_val] if half == "val" else order[num_val:]
    images = [coco.images[number] for number in sorted(chosen)]
    if not any(map(_has_objects, images)) and any(map(_has_objects, coco.images)):
        raise ValueError(
            f"{coco.source}: none of the {len(images)} images drawn for {half} has an object; change data.val_fraction "
            "or trainer.seed, or label more images"
        )
    return replace(coco, images=images, is_drawn=True)


def _has_objects(image: CocoImage) -> bool:
    return any(not thing.is_crowd for thing in image.objects)


def _coco(root: Path) -> ObjectSet | None:
    if root.is_file():
        if root.suffix != ".json":
            return None
        return ObjectSet(root.parent, "coco", root, (root, coco_format.folder_of(root)), is_split=False)
    halves = {}
    halves_of: tuple[Half, Half] = ("train", "val")
    for half in halves_of:
        try:
            halves[half] = find_split(root, half)
        except coco_format.NoSuchSplitError:
            continue
    if halves:  # one without the other is an error of its own, which names where it was looked for
        return ObjectSet(root, "coco", next(iter(halves.values()))[0], None, is_split=True)
    whole = find_whole(root)
    return None if whole is None else ObjectSet(root, "coco", whole[0], whole, is_split=False)


def _yolo(root: Path) -> ObjectSet | None:
    if find_yolo(root) is None:
        return None
    found = open_yolo(root)
    return ObjectSet(root if root.is_dir() else root.parent, "yolo", found.source, found, found.is_split)


def _voc(root: Path) -> ObjectSet | None:
    found = find_voc(root)
    return None if found is None else ObjectSet(root, "voc", found.source, found, found.is_split)
