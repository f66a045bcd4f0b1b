"""Names and text that come from elsewhere: file names, class names, text files.

Every name from a data set, a checkpoint or an exported file that becomes part of a path goes through `path_inside`,
and as a file to write through `safe_name` first.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAX_BYTES = 150  # of a file name; file systems allow 255, and suffixes are added
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' devices
_ENCODINGS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def printable(name: str) -> str:
    """A name as it can be written anywhere: in Unicode's composed form (NFC, as everybody but old Macs writes it),
    with bytes of a file name that are not UTF-8 as escapes (`caf\\udce9`).
    """
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def without_controls(text: str) -> str:
    """The text with control characters as escapes (`\\x1b`), for terminals and logs; line breaks stay."""
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character.encode("unicode_escape").decode()
        for character in text
    )


def safe_name(name: str) -> str:
    """One part of a path from any name: no separators, no control characters, nothing that a file system reserves.

    Names that differ only in what is replaced become equal; whoever writes several files numbers them.
    """
    name = re.sub(r'[<>:"/\\|?*]', "_", without_controls(printable(name))).replace("\n", "_")
    name = re.sub(r"^\.+|[. ]+$", "_", name.strip()) or "_"
    if _RESERVED.fullmatch(name):
        name = f"_{name}"
    encoded = name.encode()
    if len(encoded) <= _MAX_BYTES:
        return name
    return encoded[: _MAX_BYTES - 9].decode("utf-8", "ignore") + f"-{hashlib.sha256(encoded).hexdigest()[:8]}"


def path_inside(folder: Path, name: str) -> Path:
    """`folder / name` for a relative name, with either kind of slash.

    Raises:
        ValueError: The name is absolute, leads out of the folder, or is no file name.
    """
    parts = name.replace("\\", "/").split("/")
    kept = [part for part in parts if part not in ("", ".")]
    if not kept or ".." in kept or "\0" in name or not parts[0] or re.match(r"[A-Za-z]:", name):
        raise ValueError(f"{name!r} is not a path inside {folder}")
    return folder.joinpath(*kept)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one.

    Raises:
        ValueError: Missing, unreadable or in another encoding; says what to do.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: unreadable ({error.strerror})") from None
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"byte {content[error.start]:#x} at {error.start}"
        raise ValueError(f"{path}: not in UTF-8 ({place}); save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds, in any of the encodings of `read_text`.

    Raises:
        ValueError: As `read_text`; or it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from None


def read_class_names(path: Path) -> list[str]:
    """Names of classes, one a line, from label 0 on; blank lines only at the end.

    Raises:
        ValueError: As `read_text`; or a line is blank, which would shift the labels of those after it; or a name comes
            twice, or there is none.
    """
    lines = [printable(line.strip()) for line in re.split(r"\r\n|\n|\r", read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        number = lines.index("")
        raise ValueError(
            f"{path}: line {number + 1} is blank, but names label {number}; write its name, or remove the line"
        )
    if not lines:
        raise ValueError(f"{path}: empty; write the names of the classes into it, one a line from label 0 on")
    first: dict[str, int] = {}
    for number, name in enumerate(lines, 1):
        if (before := first.setdefault(name, number)) != number:
            raise ValueError(
                f"{path}: lines {before} and {number} have the same name, {name}; each label needs a name of its own"
            )
    return lines


def alike(names: Sequence[str]) -> list[str]:
    """Pairs of names that differ only in case, `Cat and cat`: one class in two spellings, mostly."""
    first: dict[str, str] = {}
    return [
        f"{other} and {name}" for name in names if (other := first.setdefault(name.casefold(), name)) != name
    ]


def require_class_names(names: Sequence[str], source: Path) -> None:
    """
    Raises:
        ValueError: A name cannot be a line of classes.txt, or comes twice.
    """
    for name in names:
        if name != name.strip() or not name or "\n" in name or "\r" in name:
            raise ValueError(f"{source}: the class {name!r} cannot be a line of classes.txt; rename it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{source}: two classes are called {twice[0]}; rename one")


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """The names as `read_class_names` reads them.

    Raises:
        ValueError: As `require_class_names`.
    """
    require_class_names(names, path)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
