"""What is found in folders as people have them: hidden and system files, links, loops, names of any encoding."""

import os
import warnings
from pathlib import Path

import pytest

from crossformerpp.data.files import find_files, find_folders, find_loose_files, is_hidden, warn_left_out
from crossformerpp.data.problems import Problems


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, left_out: Problems | None = None) -> list[str]:
    files = find_files(root, (".png", ".jpg"), Problems() if left_out is None else left_out)
    return [str(path.relative_to(root)) for path in files]


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._a.png", ".ipynb_checkpoints", ".git", ".Trashes", "__MACOSX", "Thumbs.db", "thumbs.DB",
        "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "Icon\r", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN",
        "System Volume Information", "lost+found", "__pycache__", "~$a.png", "a.png~", "#a.png#", "@tmp",
    ],
)  # fmt: skip
def test_what_belongs_to_systems_and_editors(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize(
    "name", ["recycle", "icon", "a.png", "#1", "@home", "thumbs", "_a.png", "1~2", "$5", "tmp"]
)
def test_what_belongs_to_people(name: str) -> None:
    assert not is_hidden(name)


def test_hidden_files_and_folders_are_left_out_and_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.png",
        "a/c.JPG",
        "a/._c.jpg",
        ".ipynb_checkpoints/b.png",
        "__MACOSX/a/._c.jpg",
        ".DS_Store",
    )
    (tmp_path / ".empty").mkdir()
    left_out = Problems()
    assert found(tmp_path, left_out) == ["b.png", "a/c.JPG"]
    assert left_out.found == {
        "hidden or system folder": [".ipynb_checkpoints/", "__MACOSX/"],
        "hidden or system file": ["a/._c.jpg"],
    }


def test_other_files_are_counted_by_extension_and_heic_has_a_hint(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.HEIC", "c.heic", "d.txt", "e")
    left_out = Problems()
    assert found(tmp_path, left_out) == ["a.png"]
    with pytest.warns(UserWarning, match="left out") as caught:
        warn_left_out(tmp_path, left_out)
    assert str(caught[0].message) == (
        f"{tmp_path}: left out 2 × .heic file (b.HEIC, c.heic); 1 × .txt file (d.txt); 1 × file without an extension "
        "(e); pip install pillow-heif reads them"
    )


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".DS_Store", "Thumbs.db")
    left_out = Problems()
    found(tmp_path, left_out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_left_out(tmp_path, left_out)


def test_links_to_folders_elsewhere_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "data/a/1.png", "store/x/2.png", "store/x/y/3.png")
    data = tmp_path / "data"
    (data / "more").symlink_to(tmp_path / "store" / "x")
    (data / "a" / "self").symlink_to(".")
    (data / "a" / "up").symlink_to("..")
    (data / "a" / "far").symlink_to("/")
    (data / "b").symlink_to("a")
    (data / "gone.png").symlink_to("nowhere.png")
    (data / "circle.png").symlink_to("circle.png")
    (tmp_path / "store" / "x" / "y" / "loop").symlink_to("..")
    left_out = Problems()
    assert found(data, left_out) == ["a/1.png", "more/2.png", "more/y/3.png"]
    assert sorted(left_out.found["link into the folder itself"]) == [
        "a/far",
        "a/self",
        "a/up",
        "b",
        "more/y/loop",
    ]
    assert sorted(left_out.found["broken link"]) == ["circle.png", "gone.png"]


def test_a_folder_that_two_links_reach_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.png", "data/a.png")
    for name in ("x", "y"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store")
    left_out = Problems()
    assert found(tmp_path / "data", left_out) == ["a.png", "x/1.png"]
    assert left_out.found == {"folder that was reached before": ["y"]}


def test_links_to_files_elsewhere_and_into_hidden_folders_count(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.png", "data/.git/annex/2.png", "data/a.png")
    (tmp_path / "data" / "1.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "data" / "2.png").symlink_to(".git/annex/2.png")
    (tmp_path / "data" / "b.png").symlink_to("a.png")
    left_out = Problems()
    assert found(tmp_path / "data", left_out) == ["1.png", "2.png", "a.png"]
    assert left_out.found["link into the folder itself"] == ["b.png"]


def test_a_link_to_another_class_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "dogs").symlink_to("../dog")
    left_out = Problems()
    files = find_files(tmp_path / "cat", (".png",), left_out, root=tmp_path)
    assert [path.name for path in files] == ["1.png"]
    assert left_out.found == {"link into the folder itself": ["cat/dogs"]}


def test_a_pipe_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    left_out = Problems()
    assert found(tmp_path, left_out) == []
    assert left_out.found == {"pipe, socket or device": ["a.png"]}


def test_folders_and_loose_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "a/2.png", ".hidden/3.png", "4.png", "notes.txt")
    assert [path.name for path in find_folders(tmp_path, Problems())] == ["a", "b"]
    assert find_loose_files(tmp_path, (".png",)) == ["4.png"]


def test_names_that_are_no_utf8_are_found_and_named_in_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    touch(tmp_path, name, os.fsdecode(b"caf\xe9.txt"))
    left_out = Problems()
    assert found(tmp_path, left_out) == [name]
    assert left_out.found == {".txt file": ["caf\\udce9.txt"]}


def test_what_commands_wrote_into_the_data_is_no_data(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "runs/x/recipe.yaml", "runs/x/run.json", "runs/x/samples/2.png")
    touch(tmp_path, "runs/y/z/predictions.jsonl", "judged/metrics.json", "judged/predictions.png")
    left_out = Problems()
    assert [path.name for path in find_folders(tmp_path, left_out)] == ["a"]
    assert sorted(place for places in left_out.found.values() for place in places) == ["judged/", "runs/"]
    touch(tmp_path, "runs/3.png")
    assert [path.name for path in find_folders(tmp_path, left_out)] == ["a", "runs"]
