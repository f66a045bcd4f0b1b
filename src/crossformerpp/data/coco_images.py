"""The images that COCO's annotations name: entries as files have them, and where the image files are."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossformerpp.data.coco_values import whole
from crossformerpp.data.files import is_hidden
from crossformerpp.data.images import MAX_PIXELS
from crossformerpp.data.masks import Segmentation
from crossformerpp.data.names import path_inside, printable
from crossformerpp.data.problems import Problems

ID_TWICE = "image id used twice (all of its images are left out)"


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
class Entries:
    """The entries of images.

    Attributes:
        known: Sound ones by id.
        present: Ids of those whose file exists.
        ambiguous: Ids that several images claim: left out, for nobody knows whose their objects are.
        first_id: Id under which a file was listed before, by its later ids.
    """

    known: dict[int, CocoImage] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    ambiguous: set[int] = field(default_factory=set)
    first_id: dict[int, int] = field(default_factory=dict)


def read_images(entries: list[Any], folder: Path, problems: Problems) -> Entries:
    read, ids, finder = Entries(), dict[Path, int](), Finder(folder)
    for position, entry in enumerate(entries):
        image = _read_image(entry, position, finder, problems)
        if image is None:
            continue
        if image.id in read.ambiguous or read.known.get(image.id, image) != image:
            read.ambiguous.add(image.id)
            problems.add(ID_TWICE, str(image.id))
            read.known.pop(image.id, None)
            read.present.discard(image.id)
            continue
        first = ids.setdefault(image.path, image.id)
        if first != image.id:
            problems.add("image listed twice (its objects are put together)", printable(image.path.name))
            read.first_id[image.id] = first
            continue
        if image.id in read.known:
            continue
        read.known[image.id] = image
        if finder.is_there(image.path):
            read.present.add(image.id)
        else:
            problems.add("missing image", printable(entry["file_name"]))
    return read


def _read_image(entry: Any, position: int, finder: "Finder", problems: Problems) -> CocoImage | None:
    values = entry if isinstance(entry, dict) else {}
    number, width, height = (whole(values.get(key)) for key in ("id", "width", "height"))
    name = values.get("file_name")
    if number is None or width is None or height is None or not isinstance(name, str):
        problems.add("image without id, file_name, width or height", f"image no. {position}")
    elif min(width, height) < 1:
        problems.add("image of no size", printable(name))
    elif width * height > MAX_PIXELS:
        problems.add(f"image of more than {MAX_PIXELS:,} pixels", printable(name))
    else:
        try:
            return CocoImage(number, finder.find(name), width, height)
        except ValueError:
            problems.add("image outside its folder", printable(name))
    return None


class Finder:
    """Looks for the files that annotations name, with one look into each folder instead of one per file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> Path:
        """Where the file is, or should be. The name may begin with the folder's own path, on any machine.

        Raises:
            ValueError: The name leads out of the folder.
        """
        parts = name.replace("\\", "/").split("/")
        tails = ["/".join(parts[i + 1 :]) for i, part in enumerate(parts[:-1]) if part == self.folder.name]
        paths = []
        for text in (name, *tails):
            with suppress(ValueError):
                path = path_inside(self.folder, text)
                names = self._listing(path.parent)
                paths.append(
                    path.with_name(names.get(path.name) or names.get(printable(path.name), path.name))
                )
        if not paths:
            raise ValueError(f"{name!r} is not a path inside {self.folder}")
        return next(filter(self.is_there, paths), paths[0])

    def find_any(self, stem: str, extensions: Sequence[str]) -> Path | None:
        """The file of this name with one of the extensions, in lower or upper case; None: there is none."""
        for ending in extensions:
            for one in (ending, ending.upper()):
                with suppress(ValueError):  # it leads out of the folder
                    if self.is_there(path := self.find(f"{stem}{one}")):
                        return path
        return None

    def is_there(self, path: Path) -> bool:
        return self._listing(path.parent).get(path.name) == path.name

    def _listing(self, folder: Path) -> dict[str, str]:
        """Names in a folder by themselves, and by how they are written for people: annotations may differ in that."""
        if folder not in self.listings:
            entries = folder.iterdir() if folder.is_dir() else ()
            names = [entry.name for entry in entries if not is_hidden(entry.name)]
            self.listings[folder] = {printable(name): name for name in names} | {name: name for name in names}
        return self.listings[folder]
