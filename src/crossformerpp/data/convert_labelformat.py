"""Write YOLO's and Pascal VOC's label files, by the library `labelformat`."""

import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

try:
    from labelformat.formats.pascalvoc import PascalVOCObjectDetectionOutput
    from labelformat.formats.yolov8 import YOLOv8InstanceSegmentationOutput, YOLOv8ObjectDetectionOutput
    from labelformat.model.bounding_box import BoundingBox
    from labelformat.model.category import Category
    from labelformat.model.image import Image
    from labelformat.model.instance_segmentation import (
        ImageInstanceSegmentation,
        InstanceSegmentationInput,
        SingleInstanceSegmentation,
    )
    from labelformat.model.multipolygon import MultiPolygon
    from labelformat.model.object_detection import (
        ImageObjectDetection,
        ObjectDetectionInput,
        SingleObjectDetection,
    )
except ImportError:
    raise ValueError(
        "writing this format needs labelformat: pip install '.[formats]' in a checkout of crossformerpp"
    ) from None

from crossformerpp.data.coco import Half
from crossformerpp.data.coco_images import CocoImage, CocoObject
from crossformerpp.data.convert import outline
from crossformerpp.data.names import require_class_names, write_class_names

_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
Written = dict[Half, list[tuple[str, CocoImage]]]  # the images of each split under their new names


def write_yolo(draft: Path, written: Written, class_names: list[str]) -> list[str]:
    """labels/ beside images/, and data.yaml; polygons if every object has an outline, else boxes.

    Returns:
        What YOLO's format cannot hold.
    """
    things = [thing for pairs in written.values() for _, image in pairs for thing in image.objects]
    outlined = sum(thing.segmentation is not None for thing in things)
    notes = _crowds(things)
    if 0 < outlined < len(things):
        notes.append(f"{outlined} of {len(things)} objects have an outline; boxes are written for all")
    empty = 0
    for half, pairs in written.items():
        named = [(f"{half}/{name}", image) for name, image in pairs]
        if things and outlined == len(things):
            outlines = _Outlines(named, class_names)
            YOLOv8InstanceSegmentationOutput(draft / "data.yaml", half).save(label_input=outlines)
            empty += outlines.empty
        else:
            boxes = _Boxes(named, class_names)
            YOLOv8ObjectDetectionOutput(draft / "data.yaml", half).save(label_input=boxes)
    if empty:
        notes.append(f"{empty} objects with an empty mask are left out")
    # labelformat's page has one split
    page = {half: f"images/{half}" for half in written} | {"names": dict(enumerate(class_names))}
    text = yaml.safe_dump(page, sort_keys=False, allow_unicode=True)
    (draft / "data.yaml").write_text(text, encoding="utf-8")
    return notes


def require_xml_names(names: Sequence[str], source: Path) -> None:
    """
    Raises:
        ValueError: A name cannot be written into XML or as a line of classes.txt.
    """
    if unwritable := [name for name in names if _NO_XML.search(name)]:
        raise ValueError(
            f"{source}: the class {unwritable[0]!r} holds control characters, which XML cannot; rename it"
        )
    require_class_names(names, source)


def write_voc(draft: Path, written: Written, class_names: list[str]) -> list[str]:
    """Annotations/, ImageSets/Main/ and classes.txt, which keeps the order of the classes.

    Returns:
        What Pascal VOC's format cannot hold.
    """
    things = [thing for pairs in written.values() for _, image in pairs for thing in image.objects]
    notes = _crowds(things)
    if outlined := sum(thing.segmentation is not None for thing in things):
        notes.append(f"{outlined} outlines are not written, for Pascal VOC's annotations hold boxes")
    lists = draft / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for half, pairs in written.items():
        PascalVOCObjectDetectionOutput(draft / "Annotations").save(label_input=_Boxes(pairs, class_names))
        names = "".join(f"{Path(name).stem}\n" for name, _ in pairs)
        (lists / f"{half}.txt").write_text(names, encoding="utf-8")
    write_class_names(draft / "classes.txt", class_names)
    return notes


def _crowds(things: list[CocoObject]) -> list[str]:
    count = sum(thing.is_crowd for thing in things)
    return [f"{count} crowds are left out, which this format has not"] if count else []


class _Labels:
    """What labelformat asks of every input."""

    def __init__(self, pairs: list[tuple[str, CocoImage]], class_names: list[str]) -> None:
        self.pairs = pairs
        self.categories = [Category(label, name) for label, name in enumerate(class_names)]

    @staticmethod
    def add_cli_arguments(parser: ArgumentParser) -> None:
        """Nothing: this input is made in memory."""

    def get_categories(self) -> Iterable[Category]:
        return self.categories

    def get_images(self) -> Iterable[Image]:
        for number, (name, image) in enumerate(self.pairs):
            yield Image(number, name, image.width, image.height)


class _Boxes(_Labels, ObjectDetectionInput):
    """Boxes, cut off where their image ends."""

    def get_labels(self) -> Iterable[ImageObjectDetection]:
        for described, (_, image) in zip(self.get_images(), self.pairs, strict=True):
            things = [thing for thing in image.objects if not thing.is_crowd]
            boxes = [
                SingleObjectDetection(self.categories[thing.label], BoundingBox(*_inside(thing.box, image)))
                for thing in things
            ]
            yield ImageObjectDetection(described, boxes)


class _Outlines(_Labels, InstanceSegmentationInput):
    """Polygons, cut off where their image ends.

    Attributes:
        empty: Objects without one, for their mask is empty.
    """

    empty = 0

    def get_labels(self) -> Iterable[ImageInstanceSegmentation]:
        for described, (_, image) in zip(self.get_images(), self.pairs, strict=True):
            things = [thing for thing in image.objects if not thing.is_crowd]
            outlines = [(thing, _points(thing, image)) for thing in things]
            self.empty += sum(not polygons for _, polygons in outlines)
            found = [
                SingleInstanceSegmentation(self.categories[thing.label], MultiPolygon(polygons))
                for thing, polygons in outlines
                if polygons
            ]
            yield ImageInstanceSegmentation(described, found)


def _points(thing: CocoObject, image: CocoImage) -> list[list[tuple[float, float]]]:
    across, down = _within(image.width), _within(image.height)
    return [
        [(across(x), down(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        for polygon in outline(thing, image)
    ]


def _inside(box: tuple[float, ...], image: CocoImage) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    across, down = _within(image.width), _within(image.height)
    return across(left), down(top), across(right), down(bottom)


def _within(side: int) -> Callable[[float], float]:
    return lambda value: float(min(max(value, 0), side))
