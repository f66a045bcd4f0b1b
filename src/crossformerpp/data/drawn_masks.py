"""Label masks drawn from annotated outlines: COCO's polygons and run lengths, YOLO's polygons."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from crossformerpp.data.coco import Half
from crossformerpp.data.coco_images import CocoImage
from crossformerpp.data.detection import open_image
from crossformerpp.data.mask_files import IGNORED, MaskCode
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.names import printable
from crossformerpp.data.objects import Format, ObjectSet, open_objects
from crossformerpp.data.pixels import Pixels
from crossformerpp.data.segmentation import MaskedImages
from crossformerpp.data.split import Which

BACKGROUND = "background"


@dataclass(frozen=True)
class DrawnMasks(MaskedImages):
    """Images whose masks are drawn when they are opened; `masks` are the files of the annotations.

    Attributes:
        entries: Of the images.
        labels: Label of each of the annotations' classes.
        background: Label of what no object covers, or IGNORED where a trained model knows no such class.
    """

    entries: list[CocoImage] = field(default_factory=list)
    labels: tuple[int, ...] = ()
    background: int = 0

    def open(self, index: int) -> tuple[Image.Image | Pixels, np.ndarray]:
        entry = self.entries[index]
        return open_image(entry, self.pixels), draw(entry, self.labels, self.background)


def open_drawn(
    root: Path,
    which: Which,
    *,
    wanted: Format | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    trained: list[str] | None = None,
) -> DrawnMasks:
    """A split of a set of outlined objects; what no object covers is "background", label 0.

    Args:
        wanted: The format, where the folder holds several.
        trained: Names that a trained model knows.

    Raises:
        ValueError: As `objects.open_objects`; or there are boxes only.
    """
    half: Half = "train" if which == "train" else "val"
    found, coco = open_objects(
        root,
        half,
        wanted=wanted,
        class_names=trained,
        val_fraction=val_fraction,
        seed=seed,
        is_whole=which == "test",
    )
    things = [thing for image in coco.images for thing in image.objects]
    if not any(thing.segmentation is not None for thing in things):
        raise ValueError(
            f"{coco.source}: {len(things)} boxes and no outline of an object, so that no mask can be drawn; "
            "segmentation needs polygons, or masks in masks/"
        )
    names = trained or [BACKGROUND, *(name for name in coco.class_names if name != BACKGROUND)]
    return DrawnMasks(
        images=[image.path for image in coco.images],
        masks=[coco.source] * len(coco.images),
        names=[_name(image.path, found) for image in coco.images],
        class_names=names,
        code=MaskCode(len(names)),
        without_mask=[],
        without_image=[],
        left_out=coco.problems,
        is_drawn=coco.is_drawn,
        found=str(found).replace("detection set", "outlines"),
        entries=coco.images,
        labels=tuple(names.index(name) for name in coco.class_names),
        background=names.index(BACKGROUND) if BACKGROUND in names else IGNORED,
    )


def draw(entry: CocoImage, labels: Sequence[int], background: int = 0) -> np.ndarray:
    """H × W of int16: small objects over large ones; a box without an outline is ignored where nothing is drawn.

    Args:
        labels: Label of each class.
    """
    mask = np.full((entry.height, entry.width), background, np.int16)
    for thing in entry.objects:
        if thing.segmentation is None:
            left, top, right, bottom = thing.box
            rows = slice(max(0, int(top)), max(0, int(np.ceil(bottom))))
            mask[rows, max(0, int(left)) : max(0, int(np.ceil(right)))] = IGNORED
    for thing in sorted(entry.objects, key=lambda it: -it.area):
        if thing.segmentation is not None:
            inside = decode(encode(thing.segmentation, entry.height, entry.width)).astype(bool)
            mask[inside] = labels[thing.label]
    return mask


def _name(path: Path, found: ObjectSet) -> str:
    inside = path.relative_to(found.root) if path.is_relative_to(found.root) else Path(path.name)
    return printable(inside.as_posix())
