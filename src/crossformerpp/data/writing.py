"""Write results so that nothing is ever half there and nothing is lost unasked."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image

UNFINISHED = ".{name}.{pid}.unfinished"  # beside what it will replace


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` at once, when complete and on the disk.

    Raises:
        OSError: The disk is full or the folder cannot be written; `path` is as it was.
    """
    with replacing_path(path) as unfinished, unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A temporary path, for writers that open files themselves; what they wrote takes the place of `path` at once.

    Raises:
        OSError: As `replacing`.
    """
    unfinished = _unfinished(path, path.parent)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files take their places in `folder` when all of them are complete.

    A new folder appears at once. In one that exists, files of the same name are replaced one by one.

    Raises:
        OSError: As `replacing`; `folder` is as it was.
    """
    is_new = not folder.exists()
    if is_new:
        folder.parent.mkdir(parents=True, exist_ok=True)
    draft = _unfinished(folder, folder.parent if is_new else folder)
    try:
        draft.mkdir()
        yield draft
        if is_new:
            draft.replace(folder)
        else:
            _move_files(draft, folder)
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written anywhere in a folder that nobody else writes to."""
    for unfinished in list(folder.rglob(UNFINISHED.format(name="*", pid="*"))):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


class JsonLines:
    """A log of plain data, a line each, on the disk when `append` returns; what a kill cut off is removed.

    Attributes:
        entries: What it holds.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ValueError: A line is no JSON; names it.
        """
        self.path = path
        self.entries: list[Any] = []
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.entries.append(json.loads(line))
            except ValueError:
                raise ValueError(f"{path}: line {number} is damaged; delete it, or the file") from None
        if whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, entry: Any) -> None:
        """Add an entry."""
        with self.path.open("ab") as file:
            file.write(json.dumps(_with_null(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON; see `to_json`."""
    with replacing(path) as file:
        file.write(f"{to_json(content)}\n".encode("utf-8", "backslashreplace"))


def to_json(content: Any, ascii_only: bool = False, indent: int | None = 2) -> str:
    """Plain data as JSON, indented or in one line. JSON has no NaN and no infinity: they become null.

    A file name that is no UTF-8 is text with lone surrogates, of which `backslashreplace` makes JSON's own escapes.
    """
    return json.dumps(_with_null(content), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as JPEG if its name ends so, else as PNG."""
    with replacing(path) as file:
        if path.suffix == ".jpg":
            picture.save(file, "JPEG", quality=90)
        else:
            picture.save(file, "PNG")


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk behind another one: torch's writers report a full disk as errors of their own."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error


def claim_folder(folder: Path, overwrite: bool) -> Path:
    """Make a folder for results.

    Raises:
        ValueError: It holds something already, and `overwrite` does not allow to replace files in it.
    """
    refuse_taken(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_taken(folder: Path, overwrite: bool) -> None:
    """
    Raises:
        ValueError: As `claim_folder`.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} exists; choose another --out, or pass --overwrite")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")


def cache_folder() -> Path:
    """Where what can be made again is kept, in the user's cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossformerpp"


def fresh_folder(base: Path) -> Path:
    """`base`, or the first of base-2, base-3, … that does not exist."""
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _unfinished(path: Path, folder: Path) -> Path:
    return folder / UNFINISHED.format(name=path.name, pid=os.getpid())


def _move_files(source: Path, destination: Path) -> None:
    for path in sorted(source.iterdir()):
        target = destination / path.name
        if path.is_dir():
            target.mkdir(exist_ok=True)
            _move_files(path, target)
        else:
            path.replace(target)


def _with_null(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_null(value) for value in content]
    return content
