"""What is written is whole or not there, and holds what it was given."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from crossformerpp.data.writing import (
    remove_unfinished,
    replacing,
    replacing_folder,
    write_json,
    write_picture,
)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"),
        replacing(tmp_path / "a.json"),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "out"
    if exists:
        (folder / "sub").mkdir(parents=True)
        (folder / "kept").write_text("kept")
        (folder / "b").write_text("old")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="midway"), replacing_folder(folder) as draft:  # noqa: PT012
        (draft / "b").write_text("half")
        raise RuntimeError("midway")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    with replacing_folder(folder) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "a").write_text("a")
        (draft / "b").write_text("new")
    names = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert names == {"sub/a": "a", "b": "new", **({"kept": "kept"} if exists else {})}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".last.ckpt.123.unfinished").touch()
    (tmp_path / ".out.123.unfinished").mkdir()
    (tmp_path / ".out.123.unfinished" / "a").touch()
    (tmp_path / "mine.unfinished").touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.unfinished", "sub"]


def test_json_has_no_nan_and_any_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80.png")
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5], "name": name})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "name": name}


def test_a_picture_reads_back(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Image.new("RGB", (3, 2), "red"))
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)
