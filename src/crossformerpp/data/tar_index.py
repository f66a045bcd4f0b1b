"""Where the files inside tar files lie, so that each can be read without unpacking or reading what is before it."""

import hashlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from crossformerpp.data.files import is_hidden
from crossformerpp.data.images import IMAGE_EXTENSIONS
from crossformerpp.data.names import printable
from crossformerpp.data.writing import cache_folder, replacing

END_BLOCK = 512  # of zeros, at least one at the end of a tar file
Found = tuple[str, int, int, str]  # name, offset, size, label text


@dataclass(frozen=True)
class Members(Sequence[BytesIO]):
    """Files inside tar files.

    Attributes:
        tars: The tar files.
        tar: (M,) position in `tars` of each file.
        offsets, sizes: (M,) where its bytes lie.
    """

    tars: list[Path]
    tar: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        with self.tars[self.tar[index]].open("rb") as file:
            file.seek(int(self.offsets[index]))
            return BytesIO(file.read(int(self.sizes[index])))


def index(path: Path, search: Callable[[Path], Iterator[Found]]) -> dict[str, np.ndarray]:
    """What the tar file holds, kept in the user's cache: ImageNet's headers take minutes to read.

    Returns:
        `names` and `labels` as encoded text, `offsets` and `sizes`, an entry per file that `search` found.

    Raises:
        ValueError: The tar file is damaged or ends early.
    """
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {search.__name__}"
    folder = cache_folder()
    cached = folder / f"tar-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    try:
        with np.load(cached, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or damaged: search again
    try:
        found = list(search(path))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: ends early or is damaged ({error})") from None
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    content = {
        "names": np.array([name.encode("utf-8", "surrogateescape") for name in columns[0]], dtype=bytes),
        "offsets": np.array(columns[1], dtype=np.int64),
        "sizes": np.array(columns[2], dtype=np.int64),
        "labels": np.array([printable(label).encode() for label in columns[3]], dtype=bytes),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as file:
            np.savez(file, **content)  # type: ignore[arg-type]
    except OSError:
        pass  # a home that cannot be written: search again next time
    return content


def members(tar: Any, size: int) -> Iterator[tarfile.TarInfo]:
    """The files of a tar file of `size` bytes, but those of systems, as macOS packs them beside each of its own."""
    while (member := tar.next()) is not None:
        if member.isfile() and not any(map(is_hidden, PurePosixPath(member.name).parts)):
            yield member
        tar.members.clear()  # a million of them would fill the memory
    if size < tar.offset + END_BLOCK:
        raise tarfile.ReadError("no end mark")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def images(path: Path) -> Iterator[Found]:
    """The images of a tar file under their whole names, in the file's order."""
    with tarfile.open(path, "r:") as tar:
        for member in members(tar, path.stat().st_size):
            if is_image(member.name):
                yield member.name, member.offset_data, member.size, ""
