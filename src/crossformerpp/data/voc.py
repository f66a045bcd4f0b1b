"""Read Pascal VOC's annotations, in memory, as COCO's page: an XML file per image.

    Annotations/a.xml, JPEGImages/a.jpg     and ImageSets/Main/{train,val}.txt, lists of names; or annotations, images
    train/a.xml, train/a.jpg, valid/…       as exports write it

Boxes of VOC's own files (`<annotation>PASCAL VOC2007</annotation>`) count pixels from 1, both ends included; others are
taken as they are. Objects marked difficult are not trained on and not counted as missed, as COCO's crowds.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from crossformerpp.data.coco import CocoSet, Half, read_page
from crossformerpp.data.coco_images import Finder
from crossformerpp.data.files import find_files, find_folders, is_hidden
from crossformerpp.data.images import IMAGE_EXTENSIONS, upright_size
from crossformerpp.data.names import alike, printable, read_class_names, read_text
from crossformerpp.data.problems import Problems
from crossformerpp.data.split import split_folders

_ANNOTATIONS, _IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images", "imgs")
UNKNOWN = (
    "object of a class that training images do not have: correct it, label training images so, or list all in"
)
_NOT_A_FILE = "annotation file that is no XML of an <annotation>"


@dataclass(frozen=True)
class VocSet:
    """Where a data set's parts are.

    Attributes:
        root: What all paths are relative to.
        pairs: (annotations, images) folders, by "train" and "val"; under "all" where lists or nobody tell splits.
        lists: The lines that name the images of each split, "test" among them.
    """

    root: Path
    pairs: dict[str, tuple[Path, Path]]
    lists: dict[str, list[str]]

    @property
    def source(self) -> Path:
        """The folder of annotations."""
        return next(iter(self.pairs.values()))[0]

    @property
    def is_split(self) -> bool:
        """Whether it has a validation split of its own."""
        splits = {*self.pairs, *self.lists}
        return "train" in splits and bool(splits & {"val", "test"})


def find_voc(root: Path) -> VocSet | None:
    """The data set in a folder, or in VOCdevkit/VOC2012 or the like below it.

    Raises:
        ValueError: There are several.
    """
    if not root.is_dir():
        return None
    below = [*root.glob("VOC*"), *root.glob("VOCdevkit/VOC*")]
    found = [
        one for folder in (root, *sorted(below)) if folder.is_dir() and (one := _look(folder)) is not None
    ]
    if len(found) > 1:
        listed = ", ".join(str(one.root.relative_to(root)) for one in found)
        raise ValueError(
            f"{root}: several data sets of Pascal VOC's format ({listed}); pass --data {found[0].root}"
        )
    return found[0] if found else None


def read_voc(
    found: VocSet, half: Half | None, *, class_names: Sequence[str] | None = None, with_masks: bool = False
) -> CocoSet:
    """The annotated images of a split; None: of all of them. The classes are those of classes.txt, else all that occur.

    Raises:
        ValueError: As `coco.read_coco`; or there is no such split.
    """
    problems, refused, notes = Problems(), Problems(), Problems()
    listed = found.root / "classes.txt"
    if class_names is None and listed.is_file():
        class_names = read_class_names(listed)
    images: list[dict[str, Any]] = []
    finders: dict[Path, Finder] = {}
    objects: list[dict[str, Any]] = []
    for file, below, folder in _files(found, half, problems, notes):
        where = printable(file.relative_to(found.root).as_posix())
        tree = _parse(file, where, problems)
        if tree is None:
            continue
        place = _Place(file, below, finders.setdefault(folder, Finder(folder)), found.root, where)
        entry = _image(tree, place, problems, notes)
        if entry is None:
            continue
        images.append({"id": len(images) + 1, **entry})
        objects += [{"image_id": len(images), **it} for it in _objects(tree, file, where, problems)]
    if not images:
        reason = str(problems) or (f"the list of {half} is empty" if half in found.lists else "no XML files")
        raise ValueError(f"{found.source}: no image can be used ({reason})")
    names = list(class_names) if class_names is not None else sorted({it["name"] for it in objects})
    if not names:
        raise ValueError(f"{found.source}: no objects in {len(images)} annotation files")
    for pair in alike(names):
        notes.add("two classes that differ only in case (are they one?)", pair)
    numbers = {name: number for number, name in enumerate(names)}
    for it in objects:
        it["category_id"] = numbers.get(it.pop("name"), None if class_names is None else -1)
        if it["category_id"] == -1:
            refused.add(f"{UNKNOWN} {listed}", f"{it['id']}: {it['shown']}")
    page = {
        "images": images,
        "annotations": [it for it in objects if it["category_id"] != -1],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    coco = read_page(page, found.source, found.root, with_masks=with_masks, problems=problems)
    coco.refused.found.update(refused.found)
    coco.notes.found.update(notes.found)
    return coco


def _look(root: Path) -> VocSet | None:
    annotations = next((root / name for name in _ANNOTATIONS if _holds_annotations(root / name)), None)
    if annotations is not None:
        images = next((root / name for name in _IMAGES if (root / name).is_dir()), annotations)
        return VocSet(root, {"all": (annotations, images)}, _lists(root))
    halves = split_folders(root) if any(map(_has_xml, find_folders(root, Problems()))) else {}
    pairs = {str(which): (folder, folder) for which, folder in halves.items() if _has_xml(folder)}
    if pairs:
        return VocSet(root, pairs, {})
    return VocSet(root, {"all": (root, root)}, {}) if _has_xml(root) else None


def _holds_annotations(folder: Path) -> bool:
    """Whether an XML file in a folder or below describes an image; beside a JSON file only the folder's own count."""
    if folder.is_dir() and any(folder.glob("*.json")):
        return _has_xml(folder)
    return any(map(_describes_image, _xml_files(folder, Problems())))


def _has_xml(folder: Path) -> bool:
    files = folder.iterdir() if folder.is_dir() else ()
    return any(
        path.suffix.lower() == ".xml" and not is_hidden(path.name) and _describes_image(path)
        for path in files
    )


def _describes_image(file: Path) -> bool:
    """Whether an XML file begins as one of Pascal VOC's does, in any encoding."""
    try:
        with file.open("rb") as content:
            return re.search(rb"<annotation[\s>]", content.read(4096).replace(b"\0", b"")) is not None
    except OSError:
        return True  # said when it is read


def _xml_files(folder: Path, left_out: Problems) -> list[Path]:
    """All below a folder; other files are of no interest, for images may lie beside them."""
    others = Problems()
    files = find_files(folder, (".xml",), others) if folder.is_dir() else []
    for kind, places in others.found.items():
        if not kind.startswith(".") and kind != "file without an extension":
            left_out.found[kind] += places
    return files


def _lists(root: Path) -> dict[str, list[str]]:
    lists = {}
    for split, names in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",))):
        files = [
            root / folder / f"{name}.txt" for folder in ("ImageSets/Main", "ImageSets") for name in names
        ]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            lists[split] = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    return lists


def _files(
    found: VocSet, half: Half | None, problems: Problems, notes: Problems
) -> list[tuple[Path, Path, Path]]:
    """(annotation file, folder of annotations, folder of images) of each image."""
    split = "test" if half == "val" and "val" not in found.lists and "test" in found.lists else half
    if split != half:
        warnings.warn(
            f"{found.source}: no val.txt; the images of test.txt are used for validation", stacklevel=4
        )
    if split is not None and split in found.lists:
        annotations, images = found.pairs["all"]
        known = _xml_files(annotations, problems)
        files = _listed(found.lists[split], known, annotations, problems)
        if split != "train" and "train" in found.lists:
            train = set(_listed(found.lists["train"], known, annotations, Problems()))
            for file in filter(train.__contains__, files):
                notes.add(
                    "image of training and validation, whose metrics will be too good", printable(file.stem)
                )
        return [(file, annotations, images) for file in files]
    if half is not None and "all" not in found.pairs and half not in found.pairs:
        raise ValueError(f"{found.root}: no {half} annotations beside {next(iter(found.pairs))}/")
    for name in found.lists:
        notes.add(
            "list in ImageSets without that of the other split: all annotated images are used", f"{name}.txt"
        )
    all_of_them = []
    for annotations, images in (
        pair for key, pair in found.pairs.items() if half is None or key in (half, "all")
    ):
        files = _xml_files(annotations, problems)
        all_of_them += [(file, annotations, images) for file in files]
        stems = {printable(file.stem) for file in files}
        for image in find_files(images, IMAGE_EXTENSIONS, Problems()):
            if printable(image.stem) not in stems:
                notes.add("image without an annotation file (it is left out)", printable(image.name))
    return all_of_them


def _listed(lines: list[str], files: list[Path], annotations: Path, problems: Problems) -> list[Path]:
    """The annotation files that lines of a list name: by path or name, with an extension or without."""
    known = {printable(file.stem): file for file in reversed(files)}
    known |= {printable(file.relative_to(annotations).with_suffix("").as_posix()): file for file in files}
    folded = {name.casefold(): file for name, file in known.items()}  # as Windows and macOS find files
    chosen: dict[Path, None] = {}
    for line in lines:
        first = line.split()[0]  # VOC's lists of a class go on with 1 or -1
        names = [name for text in (line, first) for name in _spellings(text)]
        found = (*map(known.get, names), *(folded.get(name.casefold()) for name in names))
        file = next(filter(None, found), None)
        if file is None:
            problems.add(f"name in ImageSets without {annotations.name}/NAME.xml", printable(line))
        else:
            chosen[file] = None
    return list(chosen)


def _spellings(text: str) -> list[str]:
    path = PurePosixPath(printable(text).replace("\\", "/"))
    whole = [path, path.with_suffix("")] if path.suffix.lower() in (".xml", *IMAGE_EXTENSIONS) else [path]
    return [str(one) for one in whole] + [one.name for one in whole]


def _parse(file: Path, where: str, problems: Problems) -> ElementTree.Element | None:
    try:
        content = file.read_bytes()
        if b"<!ENTITY" in content:
            raise ValueError("it defines entities")
        tree = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        problems.add(_NOT_A_FILE, f"{where}:{error.position[0]}: {str(error).partition(':')[0]}")
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.add(_NOT_A_FILE, f"{where}: {error}")
        return None
    if tree.tag != "annotation":
        problems.add(_NOT_A_FILE, f"{where}: <{tree.tag}>")
        return None
    return tree


@dataclass(frozen=True)
class _Place:
    """An annotation file, the folder that it lies below, and where its image is looked for."""

    file: Path
    below: Path
    finder: Finder
    root: Path
    where: str


def _image(
    tree: ElementTree.Element, place: _Place, problems: Problems, notes: Problems
) -> dict[str, Any] | None:
    """file_name, width and height of the image of the file's own name, or else of the name in it."""
    given = Path((tree.findtext("filename") or "").replace("\\", "/")).name
    own, inside = place.file.stem, place.file.parent.relative_to(place.below)
    if printable(Path(given).stem) == printable(own):  # perhaps of several images of this stem
        path = _find(place.finder, [str(inside / given), str(inside / own), given, own])
    else:
        path = _find(place.finder, [str(inside / own), own])
        other = _find(place.finder, [str(inside / given), given] if given else [])
        if path is not None and other not in (None, path):
            notes.add(
                "annotation file with another image's <filename> (the image of its own name is used)",
                f"{place.where}: {printable(given)}",
            )
        path = path or other
    if path is None:
        problems.add("missing image", f"{place.where}: {printable(given or own)}")
        return None
    width, height = (_whole(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    if not width or not height:
        try:
            width, height = upright_size(path)
        except ValueError as error:
            problems.add("unreadable image", f"{place.where}: {str(error).rpartition(': ')[2]}")
            return None
    return {"file_name": path.relative_to(place.root).as_posix(), "width": width, "height": height}


def _find(finder: Finder, names: list[str]) -> Path | None:
    """The first image of one of these names, with its extension or with any."""
    for name in filter(None, names):
        stem, ending = Path(name).with_suffix(""), Path(name).suffix
        is_image = ending.lower() in IMAGE_EXTENSIONS
        endings = dict.fromkeys([ending, *IMAGE_EXTENSIONS]) if is_image else IMAGE_EXTENSIONS
        if (path := finder.find_any(str(stem) if is_image else name, list(endings))) is not None:
            return path
    return None


def _objects(tree: ElementTree.Element, file: Path, where: str, problems: Problems) -> list[dict[str, Any]]:
    lines = _lines_of_objects(file)
    # the challenge's own files count from 1, their box ends with its last pixel
    first = 1 if (tree.findtext("source/annotation") or "").startswith("PASCAL VOC") else 0
    found = []
    for number, element in enumerate(tree.iter("object")):
        place = f"{where}:{lines[number]}" if number < len(lines) else where
        name = printable((element.findtext("name") or "").strip())
        sides = [_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = sides
        if not name or left is None or top is None or right is None or bottom is None:
            problems.add("object without a name or a box of xmin, ymin, xmax, ymax", place)
            continue
        box = [left - first, top - first, right - left + first, bottom - top + first]
        crowd = int((element.findtext("difficult") or "").strip() == "1")
        found.append({"id": place, "name": name, "shown": name, "bbox": box, "iscrowd": crowd})
    return found


def _lines_of_objects(file: Path) -> list[int]:
    """The lines at which objects begin."""
    text = re.sub(
        rb"<!--.*?-->", lambda match: b"\n" * match[0].count(b"\n"), file.read_bytes(), flags=re.DOTALL
    )
    return [text.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<object\b", text)]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _whole(text: str | None) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value.is_integer() and value > 0 else None
