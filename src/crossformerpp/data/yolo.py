"""Read YOLO's labels, in memory, as COCO's page: a text file per image, a line per object.

    data.yaml       path (optional), train, val, test: folders or lists of images; names: the classes from 0 on
    images/…/a.jpg  and for it labels/…/a.txt, or a.txt beside it
    class x y width height             a box: its centre and size, as shares of the image from 0 to 1
    class x1 y1 x2 y2 x3 y3 …          a polygon, from which the box is taken

Without data.yaml the folders images and labels do, with the names in classes.txt. An image without a label file is one
without objects.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossformerpp.data.coco import CocoSet, Half, read_page
from crossformerpp.data.files import find_files, folder_named, is_hidden
from crossformerpp.data.images import IMAGE_EXTENSIONS, upright_size
from crossformerpp.data.names import printable, read_text
from crossformerpp.data.problems import Problems
from crossformerpp.data.yolo_page import YoloSet

NOT_SHARES = (
    "line whose coordinates are not shares of the image from 0 to 1: divide x and width by the image's width, y and "
    "height by its height"
)
NOT_CENTRES = (
    "line that looks like the corners x1 y1 x2 y2, as all boxes do: write the centre and the size, "
    "`class x y width height`"
)
WRONG_CLASS = "line with a class that has no name: number the classes from 0, or add it to the names"
WRONG_LINE = "line that is neither `class x y width height` nor `class` and a polygon"
_SLACK = 0.01  # by which rounding may carry a coordinate beyond the image


def read_yolo(
    found: YoloSet, half: Half | None, *, class_names: Sequence[str] | None = None, with_masks: bool = False
) -> CocoSet:
    """The labelled images of a split; None: of all of them.

    Raises:
        ValueError: As `coco.read_coco`; there is no such split, or the model knows other classes.
    """
    strange = [name for name in found.class_names if class_names is not None and name not in class_names]
    if strange:
        raise ValueError(
            f"{found.source}: unknown class {', '.join(strange)}; the model knows {', '.join(class_names or ())}"
        )
    page, problems = _Page(found, _LabelFiles(found.root)), Problems()
    for path in _images(found, half, problems):
        page.add(path, problems)
    images, annotations = page.images, page.annotations
    if images and not page.owners:
        raise ValueError(
            f"{found.source}: none of {len(images)} images has a label file; for {images[0]['file_name']} expected "
            f"{_wanted(found.root / images[0]['file_name'], found.root).relative_to(found.root)}"
        )
    for where in _corners(page.boxes):
        page.refused.add(NOT_CENTRES, where)
    for stray in page.labels.strays():
        problems.add("label file without an image", stray)
    categories = [{"id": number, "name": name} for number, name in enumerate(found.class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    options: dict[str, Any] = {"class_names": class_names, "with_masks": with_masks, "problems": problems}
    coco = read_page(content, found.source, found.root, **options)
    coco.refused.found.update(page.refused.found)
    coco.notes.found.update(page.notes.found)
    return coco


@dataclass
class _Page:
    """COCO's page, image by image.

    Attributes:
        owners: The first image of each label file.
        boxes: x, y, width, height of each line that has a box, by its file and number.
    """

    found: YoloSet
    labels: "_LabelFiles"
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    owners: dict[Path, str] = field(default_factory=dict)
    boxes: dict[str, list[float]] = field(default_factory=dict)
    refused: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)

    def add(self, path: Path, problems: Problems) -> None:
        """An image and its objects, if both can be read."""
        found, file = self.found, self.labels.of(path)
        name = path.relative_to(found.root).as_posix()
        try:
            size = upright_size(path)
        except ValueError as error:
            problems.add("unreadable image", f"{printable(name)}: {str(error).rpartition(': ')[2]}")
            return
        entry = {"id": len(self.images) + 1, "file_name": name, "width": size[0], "height": size[1]}
        if file is None:
            self.images.append(entry)
            kind = "image without a label file (it counts as one without objects)"
            self.notes.add(kind, printable(name))
            return
        if (other := self.owners.setdefault(file, name)) != name:
            kind = "images of one name and one label file (the same objects for each)"
            self.notes.add(kind, printable(f"{other}, {name}"))
        where = printable(file.relative_to(found.root).as_posix())
        reader = _Lines(
            where, len(found.class_names), size, found.has_keypoints, problems, self.refused, self.boxes
        )
        things = reader.read(file)
        if things is not None:
            self.images.append(entry)
            self.annotations += [{"image_id": entry["id"], **thing} for thing in things]


@dataclass(frozen=True)
class _Lines:
    """Reads label files of one image."""

    where: str
    num_classes: int
    size: tuple[int, int]
    has_keypoints: bool
    problems: Problems
    refused: Problems
    boxes: dict[str, list[float]]

    def read(self, file: Path) -> list[dict[str, Any]] | None:
        """What a file holds; None: it cannot be read."""
        try:
            lines = read_text(file).splitlines()
        except ValueError as error:
            self.problems.add("unreadable label file (its image is left out)", str(error))
            return None
        entries = [
            self._read(line.split(), f"{self.where}:{n}") for n, line in enumerate(lines, 1) if line.strip()
        ]
        return [entry for entry in entries if entry is not None]

    def _read(self, cells: list[str], where: str) -> dict[str, Any] | None:
        numbers = _numbers(cells)
        if self.has_keypoints and numbers is not None:
            numbers = numbers[:5]
        if numbers is None or not (len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2)):
            shown = " ".join(cells[:6]) + (" …" if len(cells) > 6 else "")
            self.problems.add(WRONG_LINE, f"{where}: {shown}")
            return None
        label, *values = numbers
        if label != int(label) or not 0 <= label < self.num_classes:
            self.refused.add(WRONG_CLASS, f"{where}: class {cells[0]} of {self.num_classes}")
            return None
        if min(values) < -_SLACK or max(values) > 1 + _SLACK:
            self.refused.add(NOT_SHARES, f"{where}: {' '.join(cells[1:5])}")
            return None
        entry = {"id": where, "category_id": int(label), "iscrowd": 0}
        width, height = self.size
        if len(values) == 4:
            x, y, w, h = values
            self.boxes[where] = values
            return entry | {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
        xs, ys = ([value * side for value in values[start::2]] for start, side in ((0, width), (1, height)))
        polygon = [value for point in zip(xs, ys, strict=True) for value in point]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        return entry | {"bbox": box, "segmentation": [polygon], "area": _area(xs, ys)}


def _corners(boxes: dict[str, list[float]]) -> list[str]:
    """Where boxes are that leave the image, if all would make sense as corners: lines of another format."""
    outside = [
        where
        for where, (x, y, w, h) in boxes.items()
        if min(x - w / 2, y - h / 2) < -_SLACK or max(x + w / 2, y + h / 2) > 1 + _SLACK
    ]
    are_corners = all(w > x and h > y for x, y, w, h in boxes.values())
    return outside if are_corners and 3 * len(outside) > len(boxes) > 2 else []


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _area(xs: list[float], ys: list[float]) -> float:
    """Of a polygon, by the shoelace formula."""
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def _images(found: YoloSet, half: Half | None, problems: Problems) -> list[Path]:
    if half is None:
        places = list(dict.fromkeys(place for places in found.splits.values() for place in places))
    else:
        split = half if half in found.splits or half == "train" else "test"
        if split not in found.splits:
            raise ValueError(f"{found.source}: no {half} images")
        if split != half:
            warnings.warn(
                f"{found.source}: no val images; those of test are used for validation", stacklevel=4
            )
        places = found.splits[split]
    paths: dict[Path, None] = {}
    for place in places:
        left_out = Problems()
        here = (
            _listed(place, found.root, problems)
            if place.is_file()
            else find_files(place, IMAGE_EXTENSIONS, left_out)
        )
        paths |= dict.fromkeys(here)
        for kind, names in left_out.found.items():
            if not kind.startswith((".txt", ".cache", ".yaml")):
                problems.found[kind] += names
    if not paths:
        raise ValueError(f"{found.source}: no images in {', '.join(map(str, places))}")
    return list(paths)


def _listed(file: Path, root: Path, problems: Problems) -> list[Path]:
    """The images that a text file lists, one a line, as seen from the root or from the file."""
    paths = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = line.strip()
        tails = [Path(name), *(Path(*Path(name).parts[i:]) for i in range(1, len(Path(name).parts)))]
        candidates = [
            folder / tail for tail in tails for folder in (root, file.parent) if not tail.is_absolute()
        ]
        inside = [path for path in candidates if path.resolve().is_relative_to(root.resolve())]
        path = next((path for path in inside if path.is_file()), None)
        if path is not None:
            paths.append(Path(root / path.resolve().relative_to(root.resolve())))
        elif name:
            problems.add("missing image", f"{file.name}:{number}: {printable(name)}")
    return paths


def _wanted(image: Path, root: Path) -> Path:
    """Where the labels of an image belong: labels/ in the place of the last images/ of its path, else beside it."""
    parts = list(image.relative_to(root).parts[:-1])
    for number in reversed(range(len(parts))):
        if parts[number].lower() == "images":
            parts[number] = folder_named(root.joinpath(*parts[:number]), "labels").name
            break
    return root.joinpath(*parts, f"{image.stem}.txt")


class _LabelFiles:
    """The label files in folders, by the stems of their names: in Unicode's composed form, for Macs may write the name
    of an image and that of its labels differently, and if there is none of that name, in any case.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listings: dict[Path, dict[str, Path]] = {}
        self.folders: dict[Path, Path] = {}  # folder of images -> folder of their labels

    def of(self, image: Path) -> Path | None:
        """The label file of an image, in the folder of labels or beside it."""
        folder = self.folders.get(image.parent)
        if folder is None:
            folder = self.folders[image.parent] = _wanted(image, self.root).parent
        stem = printable(image.stem)
        listings = [self._listing(place) for place in (folder, image.parent)]
        found = (listing.get(name) for listing in listings for name in (stem, stem.casefold()))
        return next(filter(None, found), None)

    def strays(self) -> list[str]:
        """Those where the images' are that belong to no image file."""
        stems: dict[Path, set[str]] = {}  # of the images of each folder of labels
        for pictures, labels in self.folders.items():
            stems.setdefault(labels, {"classes", "train", "val", "test", "readme"}).update(
                printable(one.stem).casefold()
                for one in pictures.iterdir()
                if one.suffix.lower() in IMAGE_EXTENSIONS
            )
        strays = [
            file
            for labels, own in stems.items()
            for file in dict.fromkeys(self._listing(labels).values())
            if printable(file.stem).casefold() not in own
        ]
        return [printable(file.relative_to(self.root).as_posix()) for file in strays]

    def _listing(self, folder: Path) -> dict[str, Path]:
        if folder not in self.listings:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            files = [file for file in files if file.suffix.lower() == ".txt" and not is_hidden(file.name)]
            self.listings[folder] = {printable(file.stem).casefold(): file for file in files} | {
                printable(file.stem): file for file in files
            }
        return self.listings[folder]
