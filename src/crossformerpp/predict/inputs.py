"""Which images are meant: files, folders, patterns, lists and tar shards, as one numbered sequence."""

import glob
import hashlib
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.data import tar_index
from crossformerpp.data.files import find_files, is_hidden, output_of, warn_left_out
from crossformerpp.data.images import IMAGE_EXTENSIONS, require_shape
from crossformerpp.data.names import printable, read_text
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat, Pixels
from crossformerpp.data.problems import Problems

_COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst")
_FILE = -1  # in the place of a tar file's number


class SourceLostError(ValueError):
    """A tar file that was there when the images were counted cannot be read any more."""


class Names(Sequence[str]):
    """File names in one piece of memory, so that processes that share them do not copy it bit by bit."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *map(len, parts)])
        self._bytes = np.frombuffer(b"".join(parts), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def digest(self) -> str:
        """A hash of all names in their order."""
        content = hashlib.sha256(self._bytes.tobytes())
        content.update(self._ends.tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Images:
    """Images by number.

    Attributes:
        names: The path of each; of one inside a tar file, the tar file's path and its name there.
        tars: The tar files that some of them are in.
        places: (N, 3) tar file, offset and size of each, the first −1 for a file of its own.
    """

    names: Names
    tars: Sequence[Path]
    places: np.ndarray

    @classmethod
    def of_files(cls, paths: Iterable[str | Path]) -> "Images":
        """Image files, whether they exist or not."""
        names = Names(map(str, paths))
        return cls(names, (), np.full((len(names), 3), _FILE))

    def __len__(self) -> int:
        return len(self.names)

    def first_in(self, folder: Path) -> str | None:
        """The name of an image file that lies in a folder itself; None: there is none."""
        if not folder.is_dir():
            return None
        own, known = folder.resolve(), dict[str, bool]()
        for number, name in enumerate(self.names):
            parent = os.path.dirname(name)
            if parent not in known:
                known[parent] = Path(parent).resolve() == own
            if known[parent] and self.places[number, 0] == _FILE:
                return printable(name)
        return None

    def stem(self, number: int) -> tuple[str, str]:
        """(folder's name, file's name without its extension)."""
        path = PurePath(self.names[number])
        is_sample = self.places[number, 0] != _FILE  # WebDataset's key ends at the first dot
        return path.parent.name, path.name.partition(".")[0] if is_sample else path.stem

    def open_photograph(self, number: int) -> Image.Image:
        """The RGB image.

        Raises:
            SourceLostError, ValueError: As `open`.
        """
        image = self.open(number)
        assert isinstance(image, Image.Image)
        return image

    def open(self, number: int, pixels: PixelFormat = PHOTOGRAPHS) -> Image.Image | Pixels:
        """The RGB image, or the values of another.

        Raises:
            SourceLostError: Its tar file is gone, or shorter than it was.
            ValueError: The image cannot be read or used.
        """
        name = printable(self.names[number])
        tar, offset, size = self.places[number].tolist()
        source: str | BytesIO
        source = self.names[number] if tar == _FILE else _read(self.tars[tar], offset, size)
        image = open_pixels(source, name, pixels)
        require_shape(image, name)
        return image


def open_images(inputs: Sequence[str | Path], extensions: Sequence[str] = IMAGE_EXTENSIONS) -> Images:
    """The images that files, folders, tar files, quoted patterns (`photos/**/*.jpg`) and `@LIST` name.

    Folders and patterns are sorted; other files in folders are counted and named in a warning. A list is a text file
    with an image or tar file a line, paths as seen from the current folder; `@-` reads it from standard input.

    Args:
        extensions: Of the files that folders are searched for.

    Raises:
        ValueError: There is no such file or folder, a folder or pattern holds no image, or a tar file is damaged.
    """
    names: list[str] = []
    tars: list[Path] = []
    places = array("q")
    for path in _files(inputs, tuple(extensions)):
        if not path.endswith(".tar"):
            names.append(path)
            places.extend((_FILE, _FILE, _FILE))
            continue
        found = _index(Path(path))
        names += [f"{path}/{name.decode('utf-8', 'surrogateescape')}" for name in found["names"]]
        numbers = np.full(len(found["names"]), len(tars))
        places.frombytes(np.stack([numbers, found["offsets"], found["sizes"]], axis=1).astype("q").tobytes())
        tars.append(Path(path))
    if not names:
        raise ValueError(f"{' '.join(map(str, inputs))}: no images")
    return Images(Names(names), tars, np.frombuffer(places, "q").reshape(-1, 3))


def _files(inputs: Sequence[str | Path], extensions: tuple[str, ...]) -> Iterator[str]:
    """Paths of images and tar files."""
    for given in inputs:
        path = Path(given)
        text = str(given)
        if not text:  # of a shell's variable that is not set; as a path it is the current folder
            raise ValueError("'': no such image or folder")
        if path.is_dir():
            yield from _search(path, extensions)
        elif path.exists():
            yield _taken(text)
        elif text.startswith("@"):
            yield from map(_taken, _listed(text[1:]))
        elif glob.has_magic(text):
            yield from _matching(text, extensions)
        else:
            raise ValueError(f"{text}: no such image or folder")


def _search(folder: Path, extensions: tuple[str, ...]) -> list[str]:
    left_out = Problems()
    inside = sorted(find_files(folder, (*extensions, ".tar"), left_out))
    if not inside:
        more = f"; left out {left_out}" if left_out.found else ""
        raise ValueError(f"{folder}: no images in this folder (looked for {' '.join(extensions)} .tar{more})")
    warn_left_out(folder, left_out)
    return list(map(str, inside))


def _matching(pattern: str, extensions: tuple[str, ...]) -> Iterator[str]:
    found = [path for path in sorted(glob.glob(pattern, recursive=True)) if not is_hidden(Path(path).name)]
    kept = [path for path in found if path.lower().endswith((*extensions, ".tar")) or os.path.isdir(path)]
    if "**" in pattern:  # may have been in folders that `predict` wrote
        parents = {path: os.path.dirname(path) or "." for path in kept}
        is_output = {parent: output_of(parent) is not None for parent in set(parents.values())}
        kept = [path for path in kept if not is_output[parents[path]]]
    if not kept:
        raise ValueError(f"{pattern}: no image matches this pattern")
    for path in kept:
        if os.path.isdir(path):
            yield from () if "**" in pattern else _search(Path(path), extensions)  # `**` has been in there
        else:
            yield path


def _listed(name: str) -> list[str]:
    if name == "-":
        content = sys.stdin.buffer.read()
    else:
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"@{name}: no such list of images")
        content = path.read_bytes()
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        lines = read_text(Path(name)).splitlines()
    else:
        lines = [os.fsdecode(line) for line in content.splitlines()]
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"@{name}: an empty list of images")
    return found


def _taken(path: str) -> str:
    if path.lower().endswith(_COMPRESSED):
        raise ValueError(f"{path}: compressed, so that images cannot be read in place; unpack it to a .tar")
    return path


def _index(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: no such tar file")
    found = tar_index.index(path, tar_index.images)
    if not len(found["names"]):
        raise ValueError(f"{path}: no images in this tar file")
    return found


def _read(tar: Path, offset: int, size: int) -> BytesIO:
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise SourceLostError(f"{tar}: {error.strerror or error}, though it was there at the start") from None
    if len(content) < size:
        raise SourceLostError(f"{tar}: shorter than it was at the start")
    return BytesIO(content)
