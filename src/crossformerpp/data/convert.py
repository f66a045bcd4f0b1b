"""Write a data set in another format: new files beside the old, all or nothing.

    objects (COCO, YOLO, Pascal VOC)    ->  coco, yolo, voc, or masks drawn from their outlines
    masks of colours or values          ->  masks: index PNG and classes.txt
    labelled images                     ->  folders (a folder per class) or table (labels.csv)

A set without splits is split as training would split it. YOLO's and Pascal VOC's files are written by `labelformat`.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from crossformerpp.data import labelled, objects
from crossformerpp.data.classification import LabelledImages
from crossformerpp.data.coco import CocoSet, Half
from crossformerpp.data.coco_images import CocoImage, CocoObject
from crossformerpp.data.drawn_masks import open_drawn
from crossformerpp.data.files import folder_named
from crossformerpp.data.mask_files import IGNORED, default_colors, index_picture
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.names import require_class_names, safe_name, write_class_names
from crossformerpp.data.pixels import PixelFormat
from crossformerpp.data.segmentation import MaskedImages, has_masks, open_splits, warn_of_values
from crossformerpp.data.split import Which, split_named
from crossformerpp.data.table_files import SPLIT_NAMES, TABLE_EXTENSIONS, read_table
from crossformerpp.data.tables import find_tables
from crossformerpp.data.writing import refuse_taken, replacing_folder, write_json

Target = Literal["coco", "yolo", "voc", "masks", "folders", "table"]
Track = Callable[[list[Any]], Iterable[Any]]
HALVES: tuple[Half, Half] = ("train", "val")
_IGNORE = 255  # of index masks
_PARTS = (".txt", ".json", *TABLE_EXTENSIONS)  # files that name the images of a split
_LISTED = PixelFormat(channels=1)  # files are copied, whatever they hold


@dataclass
class Converted:
    """What was written.

    Attributes:
        found: What the source was taken for.
        images: Their number by split.
        notes: What the new format cannot hold.
    """

    found: str
    images: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(
    source: Path,
    out: Path,
    to: Target,
    *,
    form: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    track: Track = iter,
) -> Converted:
    """Write a data set into a new folder.

    Args:
        form: The source's format, where it holds several.
        val_fraction, seed: How a set without splits is split.
        track: Wraps lists of images, for a progress bar.

    Raises:
        ValueError: The folder is taken, the source cannot be read, or it cannot become that.
    """
    refuse_taken(out, overwrite=False)
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out}: inside the data that are converted; choose another folder")
    kind = _kind(source, form, to)
    tests = _test_parts(source, kind)
    lot: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed}
    with replacing_folder(out) as draft:
        wanted: Any = form
        if kind == "objects" and to == "masks":
            splits = [(half, open_drawn(source, half, wanted=wanted, **lot)) for half in HALVES]
            done = _write_masks(draft, splits, track)
        elif kind == "objects":
            done = _write_objects(draft, source, to, wanted, lot, track)
        elif kind == "masks":
            masks = list(open_splits(source))
            warn_of_values(masks[0][1])
            done = _write_masks(draft, masks, track)
        else:
            done = _write_labelled(draft, source, to, form, lot, track)
    if tests:
        done.notes.append(f"the test split is not converted ({', '.join(tests)})")
    return done


def _test_parts(source: Path, kind: str) -> list[str]:
    """The folders and files of a split for tests beside one for validation, which alone is written."""
    root = source if source.is_dir() else source.parent
    is_of_folders = source.is_dir() or source.suffix in (".yaml", ".yml")
    inner = [folder_named(root, name) for name in ("images", "masks", "annotations")]
    found = []
    for folder in (root, *inner, root / "ImageSets/Main") if is_of_folders else ():
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        parts = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in _PARTS]
        by_split = {split_named(part.stem.removeprefix("instances_")): part for part in parts}
        if by_split.keys() >= {"val", "test"}:
            found.append(by_split["test"].relative_to(root).as_posix())
    for file in find_tables(source).values() if kind == "labels" else ():
        table = read_table(file)
        column = table.find(SPLIT_NAMES)
        counts = Counter(map(split_named, table.columns[column])) if column else Counter()
        if counts["val"] and counts["test"]:
            found.append(f"{counts['test']} rows of {file.name}")
    return found


def _kind(source: Path, form: str | None, to: Target) -> str:
    """ "objects", "masks" or "labels".

    Raises:
        ValueError: There is nothing, or it cannot become `to`.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such folder")
    if form in get_args(objects.Format) or (form is None and to != "masks" and objects.find_objects(source)):
        kind = "objects"
    elif form == "masks" or (form is None and source.is_dir() and has_masks(source)):
        kind = "masks"
    elif form is None and objects.find_objects(source):
        kind = "objects"
    elif form is not None or labelled.find_format(source) is not None:
        kind = "labels"
    else:
        raise ValueError(f"{objects.missing(source)}, nor masks, class folders or a table of images")
    possible = {
        "objects": ("coco", "yolo", "voc", "masks"),
        "masks": ("masks",),
        "labels": ("folders", "table"),
    }
    if to not in possible[kind]:
        what = {"objects": "objects in images", "masks": "label masks", "labels": "images with a label each"}[
            kind
        ]
        raise ValueError(f"--to {to}: {source} holds {what}, which become {' or '.join(possible[kind])}")
    return kind


def _write_objects(
    draft: Path, source: Path, to: Target, wanted: Any, lot: dict[str, Any], track: Track
) -> Converted:
    sets: dict[Half, CocoSet] = {}
    found = None
    for half in HALVES:
        names = sets["train"].class_names if "train" in sets else None
        found, sets[half] = objects.open_objects(source, half, wanted=wanted, class_names=names, **lot)
    names = sets["train"].class_names
    if to == "voc":
        from crossformerpp.data.convert_labelformat import require_xml_names

        names = [name.strip() for name in names]
        require_xml_names(names, source)
    done = Converted(str(found))
    folder = {"coco": "images/{}", "yolo": "images/{}", "voc": "JPEGImages"}[to]
    written: dict[Half, list[tuple[str, CocoImage]]] = {}
    namer = _Names(by_stem=to != "coco")
    for half, coco in sets.items():
        where = draft / folder.format(half)
        where.mkdir(parents=True, exist_ok=True)
        written[half] = []
        for image in track(coco.images):
            name = namer.of(image.path, folder.format(half))
            shutil.copyfile(image.path, where / name)
            written[half].append((name, image))
        done.images[half] = len(coco.images)
    if to == "coco":
        (draft / "annotations").mkdir()
        for half, pairs in written.items():
            write_json(draft / f"annotations/instances_{half}.json", _coco_page(pairs, names))
        return done
    from crossformerpp.data.convert_labelformat import write_voc, write_yolo

    done.notes += (write_yolo if to == "yolo" else write_voc)(draft, written, names)
    return done


def _coco_page(pairs: list[tuple[str, CocoImage]], names: list[str]) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": name, "width": image.width, "height": image.height}
        for number, (name, image) in enumerate(pairs, 1)
    ]
    things = [(number, thing) for number, (_, image) in enumerate(pairs, 1) for thing in image.objects]
    annotations = [
        {"id": i, "image_id": number, **_coco_object(it)} for i, (number, it) in enumerate(things, 1)
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_object(thing: CocoObject) -> dict[str, Any]:
    left, top, right, bottom = thing.box
    described = {
        "category_id": thing.label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": thing.area,
        "iscrowd": int(thing.is_crowd),
    }
    return described if thing.segmentation is None else described | {"segmentation": thing.segmentation}


def _write_masks(draft: Path, splits: Sequence[tuple[Which, MaskedImages]], track: Track) -> Converted:
    names = [name.strip() for name in splits[0][1].class_names]
    require_class_names(names, draft)
    if len(names) > _IGNORE:
        raise ValueError(f"{len(names)} classes: more than index masks of 8 bits hold")
    done = Converted(splits[0][1].found)
    colors = splits[0][1].code.palette.colors if splits[0][1].code.palette else default_colors(len(names))
    for which, source in splits:
        folders = [draft / name / ("" if which == "test" else which) for name in ("images", "masks")]
        namer = _Names(by_stem=True)
        for folder in folders:
            folder.mkdir(parents=True)
        for number in track(list(range(len(source)))):
            path = source.images[number]
            name = namer.of(path, which)
            _, labels = source.open(number)
            shutil.copyfile(path, folders[0] / name)
            picture = index_picture(np.where(labels == IGNORED, _IGNORE, labels), colors)
            picture.save(folders[1] / f"{Path(name).stem}.png")
        done.images["all" if which == "test" else which] = len(source)
    write_class_names(draft / "classes.txt", names)
    return done


def _write_labelled(
    draft: Path, source: Path, to: Target, form: str | None, lot: dict[str, Any], track: Track
) -> Converted:
    done = Converted("")
    rows: list[list[str]] = []
    names: list[str] | None = None
    namer = _Names()
    for half in HALVES:
        wanted: Any = form
        images = labelled.open_labelled(source, half, wanted=wanted, class_names=names, pixels=_LISTED, **lot)
        names, done.found = images.class_names, images.found
        for number in track(list(range(len(images)))):
            label = images.class_names[images.labels[number]]
            folder = Path(half, safe_name(label)) if to == "folders" else Path("images")
            (draft / folder).mkdir(parents=True, exist_ok=True)
            name = (folder / namer.of(Path(images.names[number]), folder.as_posix())).as_posix()
            _copy(images, number, draft / name)
            rows.append([name, label, half])
        done.images[half] = len(images)
    folders = {safe_name(name) for name in names or ()}
    if to == "folders" and len(folders) < len(names or ()):
        raise ValueError(
            f"{source}: two classes would share a folder, for their names differ only in / or the like"
        )
    if to == "table":
        with (draft / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["path", "label", "split"], *rows])
    return done


def _copy(images: LabelledImages, number: int, path: Path) -> None:
    image = images.images[number]
    if isinstance(image, Image.Image):
        image.save(path)
    elif isinstance(image, BytesIO):
        path.write_bytes(image.getvalue())
    else:
        shutil.copyfile(image, path)


class _Names:
    """A new name for each file in a folder: its own, with a number where that is taken."""

    def __init__(self, by_stem: bool = False) -> None:
        self.by_stem = by_stem
        self.taken: dict[tuple[str, str], int] = {}  # and the last number that was tried beside it

    def of(self, path: Path, folder: str) -> str:
        own = name = safe_name(path.name)
        while (key := self._key(name, folder)) in self.taken:
            first = self._key(own, folder)
            self.taken[first] += 1
            name = f"{Path(own).stem}-{self.taken[first]}{path.suffix}"
        self.taken[key] = 1
        return name

    def _key(self, name: str, folder: str) -> tuple[str, str]:
        return folder, (Path(name).stem if self.by_stem else name).lower()


def outline(thing: CocoObject, image: CocoImage) -> list[list[float]]:
    """The polygons (x, y in turn) of an object's mask; run lengths are traced along pixels' edges, holes are filled."""
    if isinstance(thing.segmentation, list):
        return thing.segmentation
    if thing.segmentation is None:
        return []
    from skimage.measure import find_contours

    mask = decode(encode(thing.segmentation, image.height, image.width))
    traced = find_contours(np.pad(mask, 1).astype(float), 0.5, positive_orientation="high")
    rings = [contour[:-1, ::-1] - 0.5 for contour in traced if len(contour) > 3]
    outer = [ring for ring in rings if _turn(ring) < 0]  # holes turn the other way
    return [ring.reshape(-1).tolist() for ring in outer]


def _turn(ring: np.ndarray) -> float:
    """Twice the signed area of a ring of (x, y)."""
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())
