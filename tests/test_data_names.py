"""Names and text from elsewhere: what becomes a path, a line in a terminal, a class name."""

import codecs
import json
import os
import unicodedata
from pathlib import Path

import pytest

from crossformerpp.data.names import (
    path_inside,
    printable,
    read_class_names,
    read_json,
    read_text,
    safe_name,
    without_controls,
    write_class_names,
)

NAMES = [
    "../../ESC", "/etc/passwd", "a/b", "a\\b", "C:\\x", "..", ".", "", " ", ".hidden", "con", "NUL.txt", "a\0b", "a\nb",
    "\x1b[31mred", "é" * 400, "mug [blue]", "$x$", "猫", "a:b|c*d?e<f>g\"h", "trailing. ",
    os.fsdecode(b"caf\xe9"), "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_safe_name_is_one_harmless_part_of_a_path(tmp_path: Path, name: str) -> None:
    safe = safe_name(name)
    path = path_inside(tmp_path, f"{safe}.png")
    path.touch()
    assert path.parent == tmp_path
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{safe}.png"]
    assert 0 < len(safe.encode()) <= 150
    assert not safe.startswith(".")
    assert safe_name(safe) == safe
    assert not set('/\\:*?"<>|') & set(safe)


def test_ordinary_names_stay_and_long_ones_stay_different() -> None:
    for name in ("cat", "mug [blue]", "猫", "chest of drawers", "n01440764", "a.b"):
        assert safe_name(name) == name
    assert safe_name("x" * 300) != safe_name("x" * 301)


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/a", "\\a", "..\\a", "C:/a", "", ".", "a\0", "//host/x"]
)
def test_paths_that_lead_out_of_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside"):
        path_inside(tmp_path, name)


def test_paths_inside_have_either_slash(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "a/b.png") == path_inside(tmp_path, "./a\\b.png") == tmp_path / "a" / "b.png"


def test_printable_names_can_be_written_anywhere() -> None:
    for name in NAMES:
        printable(name).encode()
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
    assert printable(unicodedata.normalize("NFD", "café")) == "café"


def test_terminals_get_no_control_characters() -> None:
    assert without_controls("\x1b[2Ja\rb\x07\nc\u202e\x9b") == "\\x1b[2Ja\\rb\\x07\nc\\u202e\\x9b"
    assert without_controls("猫 é 😀") == "猫 é 😀"


@pytest.mark.parametrize(
    "encoded",
    [
        "é\n".encode(),
        codecs.BOM_UTF8 + "é\n".encode(),
        codecs.BOM_UTF16_LE + "é\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "é\n".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "é\n".encode("utf-32-le"),
    ],
)
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoded: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(encoded)
    assert read_text(tmp_path / "a.txt") == "é\n"


def test_text_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt: not in UTF-8 \(byte 0xe9 at 3\); save it as UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"b\.txt: no such file"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "1" * 5000, "{'a': 1}"])
def test_json_that_is_none_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_class_names_are_lines_from_label_0_on(tmp_path: Path) -> None:
    page = tmp_path / "classes.txt"
    page.write_bytes(codecs.BOM_UTF8 + b"background\r\n thing \r\n\r\n")
    assert read_class_names(page) == ["background", "thing"]
    page.write_text("\nthing\n")
    with pytest.raises(ValueError, match=r"line 1 is blank, but names label 0"):
        read_class_names(page)
    page.write_text("cat\ndog\ncat\n")
    with pytest.raises(ValueError, match=r"lines 1 and 3 have the same name, cat"):
        read_class_names(page)
    page.write_text("\n")
    with pytest.raises(ValueError, match="empty; write the names of the classes"):
        read_class_names(page)


def test_class_names_are_written_as_they_are_read(tmp_path: Path) -> None:
    page, names = tmp_path / "classes.txt", ["../../x", "a\x85b", "caf\u00e9", "<b> & [red]"]
    write_class_names(page, names)
    assert read_class_names(page) == names
    for name in ("", " cat", "cat\ndog", "cat\r"):
        with pytest.raises(ValueError, match=r"cannot be a line of classes.txt; rename it"):
            write_class_names(page, [name])
