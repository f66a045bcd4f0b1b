"""Search folders for the files of a data set: the one way in which images, masks and class folders are found.

Hidden and system files and folders (of macOS, Windows, editors, network drives) are left out, links to folders
elsewhere are followed, links into the searched folder itself are not. What is left out is counted and named.
"""

import os
import re
import stat
import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from crossformerpp.data.names import printable
from crossformerpp.data.problems import Problems

_SYSTEM = re.compile(
    r"""__macosx | thumbs\.db | ehthumbs.*\.db | desktop\.ini | icon\r | @eadir | [#@]recycle | \$recycle\.bin
    | system\ volume\ information | lost\+found | __pycache__ | ~\$.* | .*~ | \#.*\# | @__thumb | @tmp""",
    re.IGNORECASE | re.VERBOSE,
)
_OUTPUTS = (  # and the files by which a folder is known as such
    ("run of `crossformer train`", ("recipe.yaml", "run.json")),
    ("results of `crossformer predict`", ("predictions.jsonl",)),
    ("results of `crossformer predict`", ("predict.json",)),  # begun, by several processes
    ("results of `crossformer eval`", ("metrics.json", "predictions.png")),
    ("results of `crossformer eval`", ("metrics.json", "overlays.png")),
)
# What people may take for images of a data set: named, where other files are only counted by their extension.
_HINTS = {
    ".heic": "pip install pillow-heif reads them",
    ".heif": "pip install pillow-heif reads them",
    ".npy": "--set data.channels=N trains on them",
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or an editor rather than to its user."""
    return name.startswith(".") or _SYSTEM.fullmatch(name) is not None


def find_files(
    folder: Path,
    extensions: Collection[str],
    left_out: Problems,
    *,
    root: Path | None = None,
    keep_links: bool = False,
) -> list[Path]:
    """The files below `folder` with one of these extensions (lower case, with a dot), folder by folder, sorted.

    Args:
        left_out: Gets everything else.
        root: The folder that is searched as a whole, `folder` being a part of it: links into it are left out,
            for what they lead to is found in its own place.
        keep_links: Take such links, too, where they lead to files.
    """
    root = root or folder
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        for entry, status in _entries(waiting.pop(), root, extensions, left_out, keep_links):
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    left_out.add("folder that was reached before", _named(entry, root))
                    continue
                seen.add((status.st_dev, status.st_ino))
                waiting.append(Path(entry.path))
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in extensions:
                found.append(Path(entry.path))
            else:
                left_out.add(f"{suffix} file" if suffix else "file without an extension", _named(entry, root))
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def find_folders(folder: Path, left_out: Problems) -> list[Path]:
    """The folders in `folder`, sorted by name."""
    pairs = list(_entries(folder, folder, (), left_out))
    return sorted(Path(entry.path) for entry, status in pairs if stat.S_ISDIR(status.st_mode))


def folder_named(root: Path, name: str) -> Path:
    """The folder of this name in a folder, in upper or lower case; `root / name` where there is none."""
    if (root / name).is_dir() or not root.is_dir():
        return root / name
    return next((one for one in find_folders(root, Problems()) if one.name.lower() == name), root / name)


def find_loose_files(folder: Path, extensions: Collection[str]) -> list[str]:
    """Names of the files of these extensions that lie in `folder` itself."""
    pairs = _entries(folder, folder, extensions, Problems())
    return [
        printable(entry.name)
        for entry, status in pairs
        if stat.S_ISREG(status.st_mode) and os.path.splitext(entry.name)[1].lower() in extensions
    ]


def warn_left_out(folder: Path, left_out: Problems, limit: int = 6) -> None:
    """Say what was left out of a folder, if anything was."""
    if left_out.found:
        lines = left_out.lines(examples=2)
        more = f"; and {len(lines) - limit} more kinds of files" if len(lines) > limit else ""
        hints = sorted({hint for suffix, hint in _HINTS.items() if f"{suffix} file" in left_out.found})
        text = "; ".join([*lines[:limit], *hints])
        warnings.warn(f"{printable(str(folder))}: left out {text}{more}", stacklevel=2)


def _entries(
    folder: Path, root: Path, extensions: Collection[str], left_out: Problems, keep_links: bool = False
) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The visible files and folders in a folder, links followed where they may be."""
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    real_root, real_folder = os.path.realpath(root), os.path.realpath(folder)
    for entry in entries:
        if is_hidden(entry.name):
            _note_hidden(entry, root, extensions, left_out)
            continue
        try:
            status = os.stat(entry.path)
        except OSError:  # leads nowhere, or in circles
            left_out.add("broken link", _named(entry, root))
            continue
        is_kept = keep_links and stat.S_ISREG(status.st_mode)
        if (
            entry.is_symlink()
            and not is_kept
            and _leads_inside(os.path.realpath(entry.path), real_root, real_folder)
        ):
            left_out.add("link into the folder itself", _named(entry, root))
        elif stat.S_ISDIR(status.st_mode) and (output := output_of(entry.path)) is not None:
            left_out.add(output, f"{_named(entry, root)}/")
        elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            yield entry, status
        else:
            left_out.add("pipe, socket or device", _named(entry, root))


def _note_hidden(
    entry: os.DirEntry[str], root: Path, extensions: Collection[str], left_out: Problems
) -> None:
    """Hidden folders that hold something, and hidden images; a .DS_Store is nothing to speak of."""
    if os.path.isdir(entry.path):
        with suppress(PermissionError), os.scandir(entry.path) as inside:
            if any(inside):
                left_out.add("hidden or system folder", f"{_named(entry, root)}/")
    elif os.path.splitext(entry.name)[1].lower() in extensions:
        left_out.add("hidden or system file", _named(entry, root))


def output_of(folder: str) -> str | None:
    """Which command wrote a folder, or all folders in it, whose pictures are no data then: people put --out, and runs/,
    where their data are.
    """
    for output, names in _OUTPUTS:
        if all(os.path.exists(os.path.join(folder, name)) for name in names):
            return output
    first = None
    with suppress(OSError), os.scandir(folder) as listing:
        for entry in listing:
            if is_hidden(entry.name):
                continue
            inner = output_of(entry.path) if entry.is_dir(follow_symlinks=False) else None
            if inner is None:
                return None
            first = first or inner
    return first


def _leads_inside(target: str, root: str, folder: str) -> bool:
    """Whether a link in `folder` leads to a folder around it, or to what is visible in the root (git-annex keeps its
    files in .git, which is not).
    """
    if target in (os.path.commonpath([target, root]), os.path.commonpath([target, folder])):
        return True
    inside = os.path.relpath(target, root).split(os.sep)
    return inside[0] != os.pardir and not any(map(is_hidden, inside))


def _named(entry: os.DirEntry[str], root: Path) -> str:
    return printable(os.path.relpath(entry.path, root))
