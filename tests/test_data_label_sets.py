"""Images with any number of labels: tables of several shapes, folders that share pictures, the draw of a split."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossformerpp.data.classification import LabelledImages, TransformedImages
from crossformerpp.data.digit_labels import load_digit_labels
from crossformerpp.data.label_sets import draw_label_sets
from crossformerpp.data.labelled import open_labelled

PICTURES = [f"img/{number}.png" for number in range(4)]
SETS = {"img/0.png": {"cat"}, "img/1.png": {"cat", "dog"}, "img/2.png": set(), "img/3.png": {"dog", "sea"}}
LISTED = ["cat", "dog", "sea"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for shade, name in enumerate(PICTURES):
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: str, name: str = "labels.csv") -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def opened(folder: Path, which: str = "test", **options: object) -> LabelledImages:
    return open_labelled(folder, which, multi_label=True, **options)  # type: ignore[arg-type]


def sets_of(source: LabelledImages) -> dict[str, set[str]]:
    assert source.label_sets is not None
    pairs = zip(source.names, source.label_sets, strict=True)
    return {name: {source.class_names[label] for label in own} for name, own in pairs}


@pytest.mark.parametrize(
    "lines",
    [
        ["path,labels", *(f'{name},"{",".join(sorted(own))}"' for name, own in SETS.items())],
        ["path,tags", *(f"{name},{'|'.join(sorted(own))}" for name, own in SETS.items())],
        ["path\tlabels", *(f"{name}\t{' ; '.join(sorted(own))}" for name, own in SETS.items())],
        # lists as JSON, Python, sets and numpy print them
        ["path;labels", *(f"{name};{json.dumps(sorted(own))}" for name, own in SETS.items())],
        ["path|labels", *(f"{name}|{sorted(own)!r}" for name, own in SETS.items())],
        ["path|labels", *(f"{name}|{own or []!r}" for name, own in SETS.items())],
        ["path;labels", *(f"{name};{np.array(sorted(own), str)}" for name, own in SETS.items())],
        # one row per image and label
        ["image,label", *(f"{name},{label}" for name, own in SETS.items() for label in sorted(own) or [""])],
        # a column per class, and others
        [
            "id,path,cat,dog,sea,score",
            *(f"7,{name},{','.join(str(int(c in own)) for c in LISTED)},2.5" for name, own in SETS.items()),
        ],
    ],
)
def test_tables_of_every_shape_say_the_same(folder: Path, lines: list[str]) -> None:
    write(folder, *lines)
    source = opened(folder)
    assert source.class_names == LISTED
    assert sets_of(source) == SETS
    assert source.target(3).tolist() == [0, 1, 1]  # type: ignore[union-attr]
    assert source.open(1).getpixel((0, 0)) == (1, 0, 0)
    dataset = TransformedImages(source, lambda image: torch.zeros(1))
    assert dataset[2][1].tolist() == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["[1, 3]", "[3]", "[]", "[10]"], [{"1", "3"}, {"3"}, set(), {"10"}]),  # pandas' of numbers
        (["[1 3]", "[3]", "[]", "[10]"], [{"1", "3"}, {"3"}, set(), {"10"}]),  # numpy's
        (["[red cat, dog]", "[dog]", "[]", "[sea]"], [{"red cat", "dog"}, {"dog"}, set(), {"sea"}]),
        (
            ["(old) cat;dog", "dog", "", "dog;(old) cat"],
            [{"(old) cat", "dog"}, {"dog"}, set(), {"(old) cat", "dog"}],
        ),
    ],
)
def test_lists_without_quotes(folder: Path, cells: list[str], expected: list[set[str]]) -> None:
    write(folder, "path|labels", *(f"{name}|{cell}" for name, cell in zip(PICTURES, cells, strict=True)))
    assert sets_of(opened(folder)) == dict(zip(PICTURES, expected, strict=True))


def test_parquet_may_hold_lists(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = [sorted(own) for own in SETS.values()]
    table = pyarrow.table({"path": PICTURES, "labels": pyarrow.array(lists, pyarrow.list_(pyarrow.string()))})
    parquet.write_table(table, folder / "labels.parquet")
    assert sets_of(opened(folder)) == SETS
    lists = [["a;b", 'c, "d"'], ["e"]]
    table = pyarrow.table({"path": PICTURES[:2], "labels": lists})
    parquet.write_table(table, folder / "labels.parquet")
    assert list(sets_of(opened(folder)).values()) == [{"a;b", 'c, "d"'}, {"e"}]


def test_sets_of_one_label_each_are_no_sets_perhaps(folder: Path) -> None:
    write(folder, "path,tags", "img/0.png,haze primary", "img/1.png,clear primary", "img/2.png,Clear primary")
    separators = r"no image has two labels; they are separated by ; \| ,, as in Clear primary;clear primary"
    case = "classes that differ only in case: Clear primary and clear primary"
    with pytest.warns(UserWarning, match=separators), pytest.warns(UserWarning, match=case):
        opened(folder, "train", val_fraction=0.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["path,cat,dog", "img/0.png,1,0", "img/1.png,0,2", "img/2.png,1,1"],
            r"1 cells are neither 0 nor 1 \(labels.csv:3: dog is '2'",
        ),
        (  # -1 and blanks are labels that nobody knows
            ["path,cat,dog", "img/0.png,1,-1", "img/1.png,0,-1", "img/2.png,1,1", "img/3.png,,"],
            r"4 cells are neither 0 nor 1 \(labels.csv:5: cat is ''; labels.csv:2: dog is '-1'",
        ),
        (["path,x,z", "img/0.png,7,a"], r"no column `labels` .* its columns are path, x, z"),
        (["path,labels", "img/0.png,cat", "img/1.png,cat"], r"a single label \(cat\)"),
        (
            ["path,labels,split", "img/0.png,a;b,train", "img/1.png,c,val"],
            r"labels.csv:3: unknown class c; the training images have a, b",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(folder: Path, lines: list[str], message: str) -> None:
    write(folder, *lines)
    with pytest.raises(ValueError, match=message):
        opened(folder, "val")


def test_missing_images_are_counted(folder: Path) -> None:
    write(folder, "path,labels", "img/0.png,a", "img/9.png,b", "img/1.png,b")
    with pytest.warns(UserWarning, match=r"1 × missing image \(labels.csv:3: img/9.png\)"):
        assert len(opened(folder)) == 2


def test_one_label_per_image_points_to_multi_label(folder: Path) -> None:
    write(
        folder,
        "path,labels",
        *(f"{name},{'cat;dog' if number else 'cat'}" for number, name in enumerate(PICTURES)),
    )
    with pytest.warns(UserWarning, match="cat;dog reads like several labels.*multi_label=true"):
        open_labelled(folder, "test")


@pytest.mark.parametrize("how", ["symlink", "relative", "hard", "copy"])
def test_folders_that_share_a_picture(folder: Path, tmp_path: Path, how: str) -> None:
    root = tmp_path / "classes"
    for name in LISTED:
        (root / name).mkdir(parents=True)
    shutil.copy(folder / "img/0.png", root / "cat/a.png")
    shutil.copy(folder / "img/1.png", root / "cat/b.png")
    shutil.copy(folder / "img/3.png", root / "dog/c.png")
    for target, link in (("cat/b.png", "dog/other name.png"), ("dog/c.png", "sea/c.png")):
        if how == "symlink":
            (root / link).symlink_to(root / target)
        elif how == "relative":
            (root / link).symlink_to(Path("..") / target)
        elif how == "hard":
            os.link(root / target, root / link)
        else:
            shutil.copy(root / target, root / link)
    assert sets_of(opened(root)) == {
        "cat/a.png": {"cat"},
        "cat/b.png": {"cat", "dog"},
        "dog/c.png": {"dog", "sea"},
    }


def test_a_drawn_split_has_each_class_in_proportion() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.2, 0.05, 0.01])
    sets = [np.flatnonzero(generator.random(4) < shares).tolist() for _ in range(1000)]
    halves = draw_label_sets(sets, 4, 0.2, seed=3)
    assert sorted(halves["train"] + halves["val"]) == list(range(1000))
    for label in range(4):
        total = sum(label in own for own in sets)
        val = sum(label in sets[number] for number in halves["val"])
        assert abs(val - 0.2 * total) <= max(1, 0.1 * total)
        assert 0 < val < total
    assert len(halves["val"]) == pytest.approx(200, abs=25)
    assert draw_label_sets(sets, 4, 0.2, seed=3) == halves != draw_label_sets(sets, 4, 0.2, seed=4)
    assert 1 in draw_label_sets([[0], [0, 1], [0]], 2, 0.34, seed=0)["train"]  # the only one of class 1


def test_pictures_of_digits_hold_what_their_labels_say() -> None:
    images, sets = load_digit_labels("val", 48)
    again, _ = load_digit_labels("val", 48)
    assert images[7].tobytes() == again[7].tobytes()
    assert {len(own) for own in sets} == {0, 1, 2, 3, 4}
    for image, own in zip(images[:50], sets, strict=False):
        quarters = [np.asarray(image)[y : y + 24, x : x + 24].max() > 100 for y in (0, 24) for x in (0, 24)]
        assert sum(quarters) >= len(own)  # a digit may come twice
        assert any(quarters) == bool(own)
