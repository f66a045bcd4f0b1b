"""Read COCO's object annotations: what can be used, and a count of everything that cannot.

An annotation file names images, categories (ids may have gaps) and annotations: a box [x, y, width, height]
in pixels, a category, and for masks polygons or run lengths (RLE). Labels are numbered 0, 1, … in the order
of the category ids.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from crossformerpp.data.coco_images import ID_TWICE, CocoImage, CocoObject, read_images
from crossformerpp.data.coco_values import read_area, read_box, read_segmentation, whole
from crossformerpp.data.names import printable, read_json
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat
from crossformerpp.data.problems import Problems

Half = Literal["train", "val"]

# Where annotations and images of a split lie in a folder: COCO's own names, plain ones, those of exports.
_LAYOUTS = (
    ("annotations/instances_{split}2017.json", ("{split}2017", "images/{split}2017", "images")),
    ("annotations/instances_{split}.json", ("images/{split}", "{split}", "images")),
    ("{split}/_annotations.coco.json", ("{split}",)),
)
# The annotations of all images, which have no splits yet: of labelling programs, mostly.
_WHOLE_LAYOUTS = (
    ("annotations/instances_default.json", ("images/default", "images")),
    ("_annotations.coco.json", (".",)),
    ("result.json", (".",)),
    ("annotations.json", ("images", ".")),
)
_EXPORT_NAMES = {"train": "train", "val": "valid"}


@dataclass(frozen=True)
class CocoSet:
    """A readable data set.

    Attributes:
        images: Those whose file exists, once each.
        class_names: By label.
        category_ids: By label; COCO's results are written with them.
        problems: What was left out.
        source: The file or folder that the annotations come from.
        refused: What must be fixed before anything is trained or judged.
        notes: What may be meant so.
        is_drawn: Whether the split was drawn from the whole set.
        pixels: How the images are read.
    """

    images: list[CocoImage]
    class_names: list[str]
    category_ids: list[int]
    problems: Problems
    source: Path = Path()
    refused: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)
    is_drawn: bool = False
    pixels: PixelFormat = PHOTOGRAPHS


class NoSuchSplitError(ValueError):
    """A folder has no annotations of a split."""


def find_split(root: Path, split: Half) -> tuple[Path, Path]:
    """Annotation file and image folder of a split under `root`, in any of the usual layouts.

    Raises:
        NoSuchSplitError: There is none; says where it was looked for.
        ValueError: The annotations are there, but no folder of images.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    for annotations, folders in _LAYOUTS:
        for name in dict.fromkeys((split, _EXPORT_NAMES[split])):
            file = root / annotations.format(split=name)
            if not file.is_file():
                continue
            for folder in folders:
                if (root / folder.format(split=name)).is_dir():
                    return file, root / folder.format(split=name)
            missing = ", ".join(folder.format(split=name) for folder in folders)
            raise ValueError(
                f"{file}: none of {missing} in {root}; name the folder of its images: --set "
                f"data.{split}_annotations={file.relative_to(root)} --set data.{split}_images=…, or for `data "
                f"check` {file} --images …"
            )
    raise NoSuchSplitError(
        f"{root}: no {split} annotations in COCO's format (looked for {annotation_files(split)})"
    )


def find_whole(root: Path) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a set without splits."""
    for annotations, folders in _WHOLE_LAYOUTS:
        if (root / annotations).is_file():
            folder = next((root / name for name in folders if (root / name).is_dir()), None)
            return None if folder is None else (root / annotations, folder)
    return None


def folder_of(annotations: Path) -> Path:
    """The image folder of an annotation file in one of the usual layouts; otherwise where the file lies."""
    for root in annotations.parents[:2]:
        pairs = [find_whole(root)]
        halves: tuple[Half, Half] = ("train", "val")
        for split in halves:
            with suppress(ValueError):
                pairs.append(find_split(root, split))
        for pair in pairs:
            if pair is not None and pair[0] == annotations:
                return pair[1]
    return annotations.parent


def annotation_files(split: Half) -> str:
    """Where the annotations of a split are looked for."""
    *ours, exported = [annotations for annotations, _ in _LAYOUTS]
    names = [*(name.format(split=split) for name in ours), exported.format(split=_EXPORT_NAMES[split])]
    return ", ".join(names)


def open_coco(
    annotations: Path, images: Path, *, class_names: Sequence[str] | None = None, with_masks: bool = False
) -> CocoSet:
    """`read_coco` for training and evaluation: what is left out is said, and a set of nothing is refused.

    Raises:
        ValueError: As `read_coco`; or no image has its file, no annotation can be used, or several images have the same
            id.
    """
    return usable(read_coco(annotations, images, class_names=class_names, with_masks=with_masks), images)


def usable(coco: CocoSet, images: Path) -> CocoSet:
    """The set itself, if training and evaluation can use it; what is left out of it is said in a warning.

    Args:
        images: Where its images were looked for.

    Raises:
        ValueError: As `open_coco`; or something in it must be fixed first.
    """
    annotations = coco.source
    if coco.refused.found:
        raise ValueError(f"{annotations}: {'; '.join(coco.refused.lines())}")
    if twice := coco.problems.found.get(ID_TWICE):
        raise ValueError(
            f"{annotations}: several images have the id {', '.join(twice[:5])}, so that nobody knows whose its objects "
            "are; give each image an id of its own, or remove the others"
        )
    if coco.problems.found:
        lines = "; ".join(coco.problems.lines(examples=2))
        warnings.warn(f"{printable(str(annotations))}: left out {lines}", stacklevel=3)
    if coco.notes.found:
        warnings.warn(
            f"{printable(str(annotations))}: {'; '.join(coco.notes.lines(examples=2))}", stacklevel=3
        )
    if not coco.images:
        raise ValueError(f"{annotations}: none of its images is in {images}")
    if not any(thing for image in coco.images for thing in image.objects if not thing.is_crowd):
        has_crowds = any(image.objects for image in coco.images)
        rest = "it has none but crowds" if has_crowds else "it has none"
        left_out = "; ".join(coco.problems.lines()) or rest
        raise ValueError(f"{annotations}: no annotation can be used ({left_out})")
    if (problem := suspicion(coco)) is not None:
        if all(max(_sides(thing)) <= 1.5 for image in coco.images for thing in image.objects):
            raise ValueError(f"{annotations}: {problem}")  # no box would survive
        warnings.warn(f"{printable(str(annotations))}: {problem}", stacklevel=3)
    return coco


def _sides(thing: CocoObject) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return right - left, bottom - top


def read_coco(
    annotations: Path, images: Path, *, class_names: Sequence[str] | None = None, with_masks: bool = False
) -> CocoSet:
    """Read an annotation file.

    Args:
        images: The folder that the file names are relative to.
        class_names: What a trained model knows; labels follow its order.
        with_masks: Leave out objects without a usable mask.

    Raises:
        ValueError: No COCO file, categories that the model does not know, or not a single mask where masks
            are needed.
    """
    return read_page(
        _read_file(annotations), annotations, images, class_names=class_names, with_masks=with_masks
    )


def read_page(
    page: dict[str, Any],
    annotations: Path,
    images: Path,
    *,
    class_names: Sequence[str] | None = None,
    with_masks: bool = False,
    problems: Problems | None = None,
) -> CocoSet:
    """`read_coco` of a page in memory, which readers of other formats make.

    Args:
        annotations: What to call the page in errors.
        problems: What was left out already.
    """
    problems = problems or Problems()
    labels, names, ids = _read_categories(page["categories"], class_names, annotations)
    entries = read_images(page["images"], images, problems)
    objects: dict[int, list[CocoObject]] = {number: [] for number in entries.present}
    num_masks = 0
    for position, entry in enumerate(page["annotations"]):
        where = f"annotation {_named(entry, position)}"
        number = whole(entry.get("image_id")) if isinstance(entry, dict) else None
        if number in entries.ambiguous:
            problems.add("annotation of an image id that is used twice", where)
            continue
        number = None if number is None else entries.first_id.get(number, number)
        if number is None or number not in entries.known:
            problems.add("annotation of an unknown image", where)
            continue
        thing = _read_object(entry, entries.known[number], labels, problems, where)
        if thing is None or number not in objects:  # a missing image was counted already
            continue
        num_masks += thing.segmentation is not None
        if with_masks and thing.segmentation is None:
            problems.add("object without a mask", where)
            continue
        objects[number].append(thing)
    if with_masks and any(page["annotations"]) and not num_masks:
        left_out = f" ({problems})" if problems.found else ""
        raise ValueError(
            f"{annotations}: has no usable masks, which Mask R-CNN needs{left_out}; train a RetinaNet, which needs "
            "boxes only: --set detector.name=retinanet"
        )
    ready = [replace(entries.known[number], objects=tuple(found)) for number, found in objects.items()]
    return CocoSet(ready, names, ids, problems, annotations)


def suspicion(coco: CocoSet) -> str | None:
    """What makes the boxes look like something other than [x, y, width, height] in pixels; None: nothing."""
    pairs = [(thing.box, image) for image in coco.images for thing in image.objects]
    if not pairs:
        return None
    if all(right <= 1.5 and bottom <= 1.5 and image.width > 2 for (_, _, right, bottom), image in pairs):
        return (
            "the boxes look like shares of the image, from 0 to 1; they are in pixels: multiply x and width by the "
            "image's width, y and height by its height"
        )
    outside = sum(leaves(box, image) for box, image in pairs)
    # as corners all make sense, and as sizes many do not: corners read as sizes leave the image unless the object's
    # centre is both left of and above the image's
    if 3 * outside > len(pairs) and not any(
        right - left <= left or bottom - top <= top or leaves((left, top, right - left, bottom - top), image)
        for (left, top, right, bottom), image in pairs
    ):
        return "the boxes look like corners [x1, y1, x2, y2]; COCO's are [x, y, width, height]"
    return None


def leaves(box: tuple[float, float, float, float], image: CocoImage) -> bool:
    """Whether a box reaches beyond its image by more than a pixel."""
    left, top, right, bottom = box
    return left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1


def _named(entry: Any, position: int) -> str:
    return printable(str(entry["id"])) if isinstance(entry, dict) and "id" in entry else f"no. {position}"


def _read_file(path: Path) -> dict[str, Any]:
    page = read_json(path)
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(page, dict) or not isinstance(page.get(key), list)
    ]
    if missing:
        raise ValueError(f"{path}: not in COCO's format, for it has no list of {', '.join(missing)}")
    return page


def _read_categories(
    entries: list[Any], class_names: Sequence[str] | None, path: Path
) -> tuple[dict[int, int], list[str], list[int]]:
    """Category id → label, names by label, ids by label."""
    categories = []
    for entry in entries:
        number = whole(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str | int) or not str(entry["name"]).strip():
            raise ValueError(f"{path}: a category without a whole id or a name: {str(entry)[:100]}")
        categories.append((number, printable(str(entry["name"]))))
    categories.sort()
    ids, names = [number for number, _ in categories], [name for _, name in categories]
    for kind, values in (("id", ids), ("name", names)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: two categories have the same id or name: {kind} {twice[0]}")
    if not ids:
        raise ValueError(f"{path}: no categories")
    if class_names is None:
        return {number: label for label, number in enumerate(ids)}, names, ids
    strange = [name for name in names if name not in class_names]
    if strange:
        raise ValueError(
            f"{path}: unknown category {', '.join(strange)}; the model knows {', '.join(class_names)}"
        )
    by_name = dict(zip(names, ids, strict=True))
    unused = iter(range(max(ids) + 1, max(ids) + 1 + len(class_names)))
    own = [by_name[name] if name in by_name else next(unused) for name in class_names]
    return {number: label for label, number in enumerate(own)}, list(class_names), own


def _read_object(
    entry: dict[str, Any], image: CocoImage, labels: dict[int, int], problems: Problems, where: str
) -> CocoObject | None:
    number = whole(entry.get("category_id"))
    label = None if number is None else labels.get(number)
    if label is None:
        problems.add("unknown category", where)
        return None
    box = read_box(entry.get("bbox"))
    if box is None:
        problems.add("box that is not [x, y, width, height]", where)
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        problems.add("degenerate box", where)
        return None
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        problems.add("box outside its image", where)
        return None
    return CocoObject(
        label,
        (x, y, x + width, y + height),
        read_area(entry.get("area")) or width * height,
        entry.get("iscrowd") is True or whole(entry.get("iscrowd")) == 1,
        read_segmentation(entry.get("segmentation"), (image.height, image.width), problems, where),
    )
