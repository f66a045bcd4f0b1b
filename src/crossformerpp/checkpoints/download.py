"""The authors' ImageNet weights by a model's name: from a folder, from the cache, or from Google Drive.

A released file is read without executing anything in it, compared with the variant key by key, and kept converted,
as `convert` does it. What the authors' servers answer was not tried; the tests imitate Google Drive as gdown knows it.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from crossformerpp.checkpoints import convert, find_variant, read_checkpoint, recorded

FOLDER = "CROSSFORMERPP_WEIGHTS"  # names a folder of weights, for machines without network
_CONNECT, _READ = 20.0, 60.0  # seconds to wait for the server
_RETRIES = 3


@dataclass(frozen=True)
class Release:
    """Where the weights of a model are.

    Attributes:
        drive: Id of the file on Google Drive; None: it is not there.
        baidu, key: Of its page on Baidu.
        top1: ImageNet accuracy in percent, as the authors report it.
        files: Names without extension that the file may have in a folder, besides the model's.
    """

    baidu: str
    key: str
    top1: float
    files: tuple[str, ...]
    drive: str | None = None

    @property
    def by_hand(self) -> str:
        """The page for a browser."""
        if self.drive is not None:
            return f"https://drive.google.com/file/d/{self.drive}/view"
        return f"https://pan.baidu.com/s/{self.baidu} (key {self.key})"


@cache
def releases() -> dict[str, Release]:
    """Of each model."""
    page: dict[str, dict[str, Any]] = yaml.safe_load(
        (files("crossformerpp.checkpoints") / "weights.yaml").read_text("utf-8")
    )
    return {name: Release(**{**row, "files": tuple(row["files"])}) for name, row in page.items()}


def cached_file(name: str) -> Path:
    """Where a model's converted weights are kept, in torch's cache ($TORCH_HOME); it may not exist yet."""
    return Path(torch.hub.get_dir()) / "crossformerpp" / f"{name}.safetensors"


def pretrained_file(name: str) -> Path:
    """The converted weights of a model, found in $CROSSFORMERPP_WEIGHTS or the cache, or downloaded into the latter.

    Raises:
        ValueError: There are none, they cannot be had, or are of another model; says what to do.
    """
    release = _release(name)
    folder = os.environ.get(FOLDER)
    if folder:
        return _from_folder(name, release, Path(folder))
    path = cached_file(name)
    if path.exists():
        return _checked(path, name)
    if release.drive is None:
        raise ValueError(
            f"{name}: the authors keep these weights on Baidu, from where only a browser can download them: "
            f"{release.by_hand}; then `crossformer weights {name} --file FILE` takes the file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # of several processes one downloads
        if not path.exists():
            source = path.with_suffix(".pth")
            _download(name, release, source)
            _convert(source, path, name)
            source.unlink()
    return path


def keep_file(name: str, source: Path) -> Path:
    """Convert a file that was downloaded by hand into the cache.

    Raises:
        ValueError: It is missing, damaged, holds code, or is of another model.
    """
    _release(name)
    path = cached_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    convert(source, path, name, overwrite=True)
    return path


def _release(name: str) -> Release:
    if name not in releases():
        raise ValueError(
            f"{name}: the authors released no weights of this model; choose from {', '.join(releases())}"
        )
    return releases()[name]


def _from_folder(name: str, release: Release, folder: Path) -> Path:
    stems = (name, *release.files)
    for stem in stems:
        if (folder / f"{stem}.safetensors").is_file():
            return _checked(folder / f"{stem}.safetensors", name)
    for path in (folder / f"{stem}.pth" for stem in stems):
        if path.is_file():
            kept = cached_file(name)
            if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
                keep_file(name, path)
            return kept
    raise ValueError(f"{name}: {FOLDER}={folder} has no {name}.safetensors and no {' or '.join(stems)}.pth")


def _checked(path: Path, name: str) -> Path:
    """
    Raises:
        ValueError: The file holds another model, or is damaged.
    """
    found = recorded(path).get("model") or find_variant(read_checkpoint(path), path)
    if found != name:
        raise ValueError(
            f"{path}: weights of {found}, not of {name}; remove the file, or put the right one there"
        )
    return path


def _convert(source: Path, path: Path, name: str) -> None:
    try:
        convert(source, path, name, overwrite=True)
    except ValueError as error:
        source.unlink()  # else the next try would take it for the whole file
        raise ValueError(
            f"{name}: what Google Drive sent is not its weights: {error}; try again, or download it by hand from "
            f"{releases()[name].by_hand} and pass it to `crossformer weights {name} --file FILE`"
        ) from None


def _download(name: str, release: Release, path: Path) -> None:
    """Download from Google Drive; a part that an earlier try left is continued.

    Raises:
        ValueError: gdown is missing, the server cannot be reached or refuses.
    """
    try:
        import gdown
        import requests
        from gdown.exceptions import DownloadError, FileURLRetrievalError
    except ImportError:
        raise ValueError(
            "downloading needs gdown: pip install '.[weights]' in a checkout of crossformerpp"
        ) from None
    by_hand = (
        f"download it by hand from {release.by_hand} and pass it to `crossformer weights {name} --file FILE`, or "
        f"set {FOLDER} to a folder that has it"
    )
    try:
        _attempt(
            lambda: gdown.download(
                id=release.drive,
                output=str(path),
                resume=True,
                use_cookies=False,
                quiet=not sys.stderr.isatty(),
                timeout=(_CONNECT, _READ),
                retries=_RETRIES,
            ),
            path,
            DownloadError,
        )
    except FileURLRetrievalError as error:
        reason = " ".join(str(error).split()).partition("Failed to retrieve file url: ")[2]
        raise ValueError(
            f"{name}: Google Drive refuses the file ({reason.partition(' You may still')[0][:300]}); try again "
            f"tomorrow, or {by_hand}"
        ) from None
    except (requests.exceptions.RequestException, DownloadError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: not downloaded ({text}); what has arrived is kept, and the same command goes on. Without a "
            f"network: {by_hand}"
        ) from None


def _attempt(download: Callable[[], Any], path: Path, error: type[Exception]) -> None:
    """Download; from the beginning where the part that is there cannot be continued."""
    parts = list(path.parent.glob(f"{path.name}????????.part"))
    try:
        download()
    except error as problem:
        if not parts or "byte range" not in str(problem):
            raise
        for part in parts:
            part.unlink(missing_ok=True)
        download()
