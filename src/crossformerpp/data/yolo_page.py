"""What a data set of YOLO's format is made of: its data.yaml, or the folders images and labels and classes.txt."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossformerpp.data.coco_values import whole
from crossformerpp.data.files import find_loose_files, folder_named
from crossformerpp.data.images import IMAGE_EXTENSIONS
from crossformerpp.data.names import printable, read_class_names, read_text
from crossformerpp.data.split import split_folders

_NAMES_FILES = ("classes.txt", "labels/classes.txt", "obj.names", "data/obj.names")
_PAGES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NULL = ("", "~", "null")
_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class _Loader(yaml.BaseLoader):
    """YAML whose values are all text, for `no`, `010` and `1:30` are names of classes; no key may come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class YoloSet:
    """Where a data set's parts are.

    Attributes:
        root: What all paths are relative to.
        source: The file that describes it, or the folder of labels.
        splits: Folders, or lists of images, by "train", "val" and "test"; all under "all" where it has no splits.
        has_keypoints: Whether keypoints follow the box in each line.
    """

    root: Path
    source: Path
    class_names: list[str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False

    @property
    def is_split(self) -> bool:
        """Whether it has a validation split of its own."""
        return "train" in self.splits and ("val" in self.splits or "test" in self.splits)


def find_yolo(root: Path) -> Path | None:
    """The data.yaml in a folder, or the folder itself if it has images, labels and names; `root` may be the file."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    if not root.is_dir():
        return None
    for name in _PAGES:
        if (root / name).is_file():
            return root / name
    others = [
        path for path in sorted(root.glob("*.y*ml")) if path.suffix in (".yaml", ".yml") and _describes(path)
    ]
    if len(others) > 1:
        raise ValueError(
            f"{root}: several data sets ({', '.join(p.name for p in others)}); pass --data {others[0]}"
        )
    if others:
        return others[0]
    labels, images = folder_named(root, "labels"), folder_named(root, "images")
    has_labels = labels.is_dir() and images.is_dir() and next(labels.rglob("*.txt"), None) is not None
    return root if has_labels else None


def open_yolo(root: Path) -> YoloSet:
    """
    Raises:
        ValueError: The page is damaged, names no classes, or a folder that is not there.
    """
    source = find_yolo(root)
    if source is None:
        raise ValueError(f"{root}: no data.yaml of YOLO's format")
    if source.is_dir():
        return _without_page(source)
    page = _read_page(source)
    names = _names(page, source)
    folder = _root(page, source)
    splits = {}
    for split, keys in _SPLIT_KEYS.items():
        value = next((page[key] for key in keys if page.get(key)), None)
        if value is not None:
            splits[split] = [
                _place(one, folder, source) for one in (value if isinstance(value, list) else [value])
            ]
    if not splits:
        raise ValueError(f"{source}: names neither train nor val images")
    train = set(splits.get("train", ()))
    if shared := [place for place in splits.get("val", ()) if train & {place, *place.parents}]:
        warnings.warn(
            f"{source}: train holds the images of val, too ({printable(str(shared[0]))}), so that its metrics "
            "mean nothing",
            stacklevel=2,
        )
    if set(splits) == {"train"}:
        splits = {"all": splits["train"]}
    return YoloSet(folder, source, names, splits, has_keypoints="kpt_shape" in page)


def _without_page(root: Path) -> YoloSet:
    file = next((root / name for name in _NAMES_FILES if (root / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{root}: labels of YOLO's format without the names of the classes; write {root}/classes.txt, one a line "
            "from class 0 on, or data.yaml with names, train and val"
        )
    images = folder_named(root, "images")
    halves = split_folders(images)
    loose = find_loose_files(images, IMAGE_EXTENSIONS)
    splits = {str(which): [folder] for which, folder in halves.items()}
    if loose or not {"train", "val"} <= set(splits):
        splits = {"all": [images]}
    return YoloSet(root, folder_named(root, "labels"), read_class_names(file), splits)


def _describes(file: Path) -> bool:
    try:
        page = _read_page(file)
    except ValueError:
        return False
    return "names" in page and ("train" in page or "val" in page)


def _read_page(file: Path) -> dict[str, Any]:
    try:
        page = yaml.load(read_text(file), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "nested too deeply"
        raise ValueError(f"{file}{line}: not readable as YAML ({reason})") from None
    if not isinstance(page, dict):
        raise ValueError(f"{file}: expected keys such as train, val and names")
    return {key: value for key, value in page.items() if value not in _NULL}


def _names(page: dict[str, Any], file: Path) -> list[str]:
    names = page.get("names")
    if isinstance(names, dict):
        numbered = {whole(number): name for number, name in names.items()}
        if numbered.keys() != set(range(len(names))):
            raise ValueError(
                f"{file}: names must number the classes 0, 1, …, {len(names) - 1}, not {', '.join(list(names)[:9])}"
            )
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: no names of classes; write names: [cat, dog]")
    if "" in names:
        raise ValueError(f"{file}: class {names.index('')} has an empty name; write its name")
    count = page.get("nc")
    if count is not None and whole(count) != len(names):
        raise ValueError(f"{file}: nc is {count}, but there are {len(names)} names ({', '.join(names[:6])})")
    return [printable(name) for name in names]


def _root(page: dict[str, Any], file: Path) -> Path:
    """The folder that `path` names, if it is there: files move, and the page keeps the path of another machine."""
    given = file.parent / str(page.get("path") or ".")
    return given if given.is_dir() else file.parent


def _place(value: Any, root: Path, file: Path) -> Path:
    """
    Raises:
        ValueError: There is no such folder or list inside the data set.
    """
    text = str(value).replace("\\", "/")
    while text.startswith(("../", "./")):  # as Roboflow writes it
        text = text.partition("/")[2]
    tail = Path(text)
    tails = [tail] if not tail.is_absolute() else [Path(*tail.parts[i:]) for i in range(1, len(tail.parts))]
    place = next((root / one for one in tails if (root / one).exists()), None)
    if place is None or ".." in tail.parts:
        raise ValueError(
            f"{file}: {value}: no such folder or list of images in {root}; paths are relative to `path`"
        )
    return place
