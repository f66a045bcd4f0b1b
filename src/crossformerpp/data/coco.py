"""Read COCO's object annotations: what can be used, and a count of everything that cannot.

An annotation file names images, categories (ids may have gaps) and annotations: a box [x, y, width, height]
in pixels, a category, and for masks polygons or run lengths (RLE). Labels are numbered 0, 1, … in the order
of the category ids.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from crossformerpp.data.masks import Segmentation

Half = Literal["train", "val"]

# Where annotations and images of a split lie in a folder: COCO's own names, plain ones, those of exports.
_LAYOUTS = (
    ("annotations/instances_{split}2017.json", ("{split}2017", "images/{split}2017", "images")),
    ("annotations/instances_{split}.json", ("images/{split}", "{split}", "images")),
    ("{split}/_annotations.coco.json", ("{split}",)),
)
_EXPORT_NAMES = {"train": "train", "val": "valid"}


@dataclass(frozen=True)
class CocoObject:
    """One annotated object.

    Attributes:
        label: Number of its class, from 0.
        box: (left, top, right, bottom) in pixels, as annotated: it may reach beyond the image.
        area: In pixels, of the mask if there is one; COCO sorts objects into sizes by it.
        is_crowd: A region of many objects: neither trained on nor counted as missed.
        segmentation: Polygons (lists of x, y in turn) or RLE; None: no mask.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool = False
    segmentation: Segmentation | None = None


@dataclass(frozen=True)
class CocoImage:
    """An image file and what is in it, possibly nothing."""

    id: int
    path: Path
    width: int
    height: int
    objects: tuple[CocoObject, ...] = ()


@dataclass
class Problems:
    """What is wrong with a data set: kind → where, in the order found."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: str) -> None:
        self.found[kind].append(where)

    def lines(self, examples: int = 3) -> list[str]:
        """One line per kind: how often, and the first places."""
        lines = []
        for kind, places in self.found.items():
            more = ", …" if len(places) > examples else ""
            lines.append(f"{len(places)} × {kind} ({', '.join(places[:examples])}{more})")
        return lines


@dataclass(frozen=True)
class CocoSet:
    """A readable data set.

    Attributes:
        images: Those whose file exists.
        class_names: By label.
        category_ids: By label; COCO's results are written with them.
        problems: What was left out.
    """

    images: list[CocoImage]
    class_names: list[str]
    category_ids: list[int]
    problems: Problems


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


def annotation_files(split: Half) -> str:
    """Where the annotations of a split are looked for."""
    *ours, exported = [annotations for annotations, _ in _LAYOUTS]
    names = [*(name.format(split=split) for name in ours), exported.format(split=_EXPORT_NAMES[split])]
    return ", ".join(names)


def open_coco(
    annotations: Path, images: Path, *, class_names: Sequence[str] | None = None, with_masks: bool = False
) -> CocoSet:
    """`read_coco` for training and evaluation: problems are logged, and a set of nothing is refused.

    Raises:
        ValueError: As `read_coco`; or no image has its file, or no annotation can be used.
    """
    coco = read_coco(annotations, images, class_names=class_names, with_masks=with_masks)
    if coco.problems.found:
        logging.getLogger(__name__).warning(
            "%s: left out %s", annotations, "; ".join(coco.problems.lines(examples=2))
        )
    if not coco.images:
        raise ValueError(f"{annotations}: none of its images is in {images}")
    if not any(thing for image in coco.images for thing in image.objects if not thing.is_crowd):
        left_out = "; ".join(coco.problems.lines()) or "it has none"
        raise ValueError(f"{annotations}: no annotation can be used ({left_out})")
    return coco


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
    page = _read_page(annotations)
    problems = Problems()
    labels, names, ids = _read_categories(page["categories"], class_names, annotations)
    known, present = _read_images(page["images"], images, problems)
    objects: dict[int, list[CocoObject]] = {number: [] for number in present}
    num_masks = 0
    for position, entry in enumerate(page["annotations"]):
        where = (
            f"annotation {entry['id'] if isinstance(entry, dict) and 'id' in entry else f'no. {position}'}"
        )
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(number, int) or number not in known:
            problems.add("annotation of an unknown image", where)
            continue
        thing = _read_object(entry, known[number], labels, problems, where)
        if thing is None or number not in present:  # a missing image was counted already
            continue
        num_masks += thing.segmentation is not None
        if with_masks and thing.segmentation is None:
            problems.add("object without a mask", where)
            continue
        objects[number].append(thing)
    if with_masks and any(page["annotations"]) and not num_masks:
        raise ValueError(
            f"{annotations}: has no masks, which Mask R-CNN needs; train a RetinaNet, which needs boxes only: "
            "--set detector.name=retinanet"
        )
    ready = [replace(known[number], objects=tuple(found)) for number, found in objects.items()]
    return CocoSet(ready, names, ids, problems)


def _read_page(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
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
    try:
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in entries)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: a category without a whole id or a name") from None
    ids, names = [number for number, _ in categories], [name for _, name in categories]
    if len(set(ids)) < len(ids) or len(set(names)) < len(names):
        raise ValueError(f"{path}: two categories have the same id or name")
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


def _read_images(
    entries: list[Any], folder: Path, problems: Problems
) -> tuple[dict[int, CocoImage], set[int]]:
    """Sound entries by id, and the ids of those whose file exists."""
    known: dict[int, CocoImage] = {}
    present: set[int] = set()
    listings: dict[Path, set[str]] = {}  # one look into a folder instead of one per file
    for position, entry in enumerate(entries):
        try:
            image = CocoImage(
                int(entry["id"]), folder / entry["file_name"], int(entry["width"]), int(entry["height"])
            )
        except (KeyError, TypeError, ValueError):
            problems.add("image without id, file_name, width or height", f"image no. {position}")
            continue
        if min(image.width, image.height) < 1:
            problems.add("image of no size", str(entry["file_name"]))
        elif image.id in known:
            problems.add("image id used twice", str(image.id))
        else:
            known[image.id] = image
            parent = image.path.parent
            if parent not in listings:
                listings[parent] = {file.name for file in parent.iterdir()} if parent.is_dir() else set()
            if image.path.name in listings[parent]:
                present.add(image.id)
            else:
                problems.add("missing image", str(entry["file_name"]))
    return known, present


def _read_object(
    entry: dict[str, Any], image: CocoImage, labels: dict[int, int], problems: Problems, where: str
) -> CocoObject | None:
    label = labels.get(entry["category_id"]) if isinstance(entry.get("category_id"), int) else None
    if label is None:
        problems.add("unknown category", where)
        return None
    try:
        x, y, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError):
        problems.add("box that is not [x, y, width, height]", where)
        return None
    if not all(map(math.isfinite, (x, y, width, height))):
        problems.add("box that is not [x, y, width, height]", where)
        return None
    if width <= 0 or height <= 0:
        problems.add("degenerate box", where)
        return None
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        problems.add("box outside its image", where)
        return None
    area = entry.get("area")
    return CocoObject(
        label,
        (x, y, x + width, y + height),
        float(area) if isinstance(area, int | float) and math.isfinite(area) and area > 0 else width * height,
        bool(entry.get("iscrowd", 0)),
        _read_segmentation(entry.get("segmentation"), image, problems, where),
    )


def _read_segmentation(value: Any, image: CocoImage, problems: Problems, where: str) -> Segmentation | None:
    """What can be used of a mask; None where nothing can."""
    if not value:
        return None
    if isinstance(value, dict):
        if list(value.get("size", ())) != [image.height, image.width] or not value.get("counts"):
            problems.add("mask of another size than its image", where)
            return None
        if isinstance(value["counts"], list) and sum(value["counts"]) != image.height * image.width:
            problems.add("run lengths that do not add up to the image", where)
            return None
        return value
    polygons = [p for p in value if isinstance(p, list)] if isinstance(value, list) else []
    sound = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0 and all(map(_is_number, p))]
    if len(sound) < len(value):
        problems.add("polygon of fewer than 3 points", where)
    return sound or None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
