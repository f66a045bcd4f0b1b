"""Data sets written in other formats: read back, by other readers where there are any, nothing is changed or lost."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from crossformerpp import cli
from crossformerpp.data.classification import open_folder
from crossformerpp.data.coco import CocoSet
from crossformerpp.data.convert import _Names, convert
from crossformerpp.data.drawn_masks import open_drawn
from crossformerpp.data.labelled import open_labelled
from crossformerpp.data.names import require_class_names
from crossformerpp.data.objects import open_objects
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.data.segmentation import open_folder as open_masks


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with boxes, run lengths and index masks."""
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=4, val=2, size=96)


def boxes(coco: CocoSet) -> list[tuple[str, str, tuple[float, ...]]]:
    """The objects; images of two splits that share a name get a number where all lie in one folder."""
    return sorted(
        (
            image.path.stem.removesuffix("-2"),
            coco.class_names[thing.label],
            tuple(round(side, 3) for side in thing.box),
        )
        for image in coco.images
        for thing in image.objects
    )


def test_boxes_survive_every_format(scenes: Path, tmp_path: Path) -> None:
    expected = {half: boxes(open_objects(scenes, half)[1]) for half in ("train", "val")}
    assert len(expected["train"]) > 4
    source = scenes
    for to in ("voc", "yolo", "coco"):
        done = convert(source, tmp_path / to, to, form="coco" if source is scenes else None)  # type: ignore[arg-type]
        assert done.images == {"train": 4, "val": 2}
        source = tmp_path / to
        found, train = open_objects(source, "train")
        assert found.format == to
        assert boxes(train) == expected["train"]
        assert boxes(open_objects(source, "val", class_names=train.class_names)[1]) == expected["val"]
        assert {image.path.read_bytes() for image in train.images} == {
            path.read_bytes() for path in (scenes / "images/train").iterdir()
        }


def test_coco_files_are_what_pycocotools_reads(scenes: Path, tmp_path: Path) -> None:
    convert(scenes, tmp_path / "out", "coco", form="coco")
    ours = COCO(str(tmp_path / "out/annotations/instances_train.json"))
    theirs = COCO(str(scenes / "annotations/instances_train.json"))
    assert len(ours.anns) == len(theirs.anns)
    for one, other in zip(
        ours.loadAnns(sorted(ours.anns)), theirs.loadAnns(sorted(theirs.anns)), strict=True
    ):
        assert np.array_equal(ours.annToMask(one), theirs.annToMask(other))
        assert ours.cats[one["category_id"]]["name"] == theirs.cats[other["category_id"]]["name"]
        assert one["area"] == other["area"]


def test_run_lengths_become_polygons_of_the_same_pixels(scenes: Path, tmp_path: Path) -> None:
    convert(scenes, tmp_path / "out", "yolo", form="coco")
    line = next((tmp_path / "out/labels/train").glob("*.txt")).read_text().split("\n")[0].split()
    assert len(line) > 7
    assert all(0 <= float(value) <= 1 for value in line[1:])
    traced, exact = open_drawn(tmp_path / "out", "train"), open_drawn(scenes, "train", wanted="coco")
    for number in range(len(exact)):
        ours, theirs = traced.open(number)[1] > 0, exact.open(number)[1] > 0
        assert (ours & theirs).sum() / max(
            1, theirs.sum()
        ) > 0.97  # holes are filled, so that ours may be larger


def test_outlines_and_colours_become_index_masks(scenes: Path, tmp_path: Path) -> None:
    convert(scenes, tmp_path / "drawn", "masks", form="coco")
    ours, theirs = open_masks(tmp_path / "drawn", "train"), open_masks(scenes, "train")
    assert ours.class_names == theirs.class_names
    for number in range(len(theirs)):
        assert np.array_equal(ours.open(number)[1], theirs.open(number)[1])
    for folder in ("images", "masks"):
        (tmp_path / "colours" / folder).mkdir(parents=True)
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = (0, 200, 0)
    Image.fromarray(pixels).save(tmp_path / "colours/masks/a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "colours/images/a.png")
    convert(tmp_path / "colours", tmp_path / "index", "masks")
    assert (tmp_path / "index/classes.txt").read_text() == "#000000\n#00c800\n"
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "index/masks/a.png")), (pixels[..., 1] > 0).astype(int)
    )


def test_class_folders_become_a_table_and_back(tmp_path: Path) -> None:
    for half, count in (("train", 3), ("val", 1)):
        for shade, name in enumerate(("cat", "dog")):
            (tmp_path / "data" / half / name).mkdir(parents=True)
            for number in range(count):
                color = (shade, number, len(half))
                Image.new("RGB", (40, 40), color).save(tmp_path / "data" / half / name / f"{number}.png")
    convert(tmp_path / "data", tmp_path / "table", "table")
    with (tmp_path / "table/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 6 + ["val"] * 2
    assert len({row["path"] for row in rows}) == 8
    convert(tmp_path / "table", tmp_path / "folders", "folders")

    def content(root: Path, read: Callable) -> set[tuple[str, tuple[int, ...]]]:
        split = read(root, "train", val_fraction=0.2, seed=0)
        return {
            (split.class_names[label], split.open(i).getpixel((0, 0))) for i, label in enumerate(split.labels)
        }

    expected = content(tmp_path / "data", open_folder)
    assert len(expected) == 6
    assert (
        content(tmp_path / "table", open_labelled) == content(tmp_path / "folders", open_folder) == expected
    )


def test_sets_without_splits_are_split_as_training_would(tmp_path: Path) -> None:
    (tmp_path / "in/labels").mkdir(parents=True)
    (tmp_path / "in/images").mkdir()
    (tmp_path / "in/classes.txt").write_text("cat\n")
    for name in "abcdefghij":
        Image.new("RGB", (40, 40)).save(tmp_path / f"in/images/{name}.png")
        (tmp_path / f"in/labels/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert convert(tmp_path / "in", tmp_path / "out", "coco", seed=7).images == {"train": 8, "val": 2}
    for half in ("train", "val"):
        drawn = open_objects(tmp_path / "in", half, seed=7)[1]
        assert boxes(open_objects(tmp_path / "out", half)[1]) == boxes(drawn)


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    things = [
        {"category_id": 1, "bbox": [1, 2, 30, 9], "iscrowd": 0, "segmentation": [[1, 2, 31, 2, 31, 11]]},
        {"category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1},
    ]
    for half in ("train", "val"):
        (tmp_path / f"in/images/{half}").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"in/images/{half}/a.png")
        page = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
            "annotations": [{"id": i, "image_id": 1, **it} for i, it in enumerate(things)],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "in/annotations").mkdir(exist_ok=True)
        (tmp_path / f"in/annotations/instances_{half}.json").write_text(json.dumps(page))
    notes = convert(tmp_path / "in", tmp_path / "voc", "voc").notes
    assert notes == [
        "2 crowds are left out, which this format has not",
        "2 outlines are not written, for Pascal VOC's annotations hold boxes",
    ]


def pictured(root: Path, names: list[str], *, classes: str = "cat\ndog\n", half: str = "train") -> Path:
    """A YOLO set with an object of class 0 in the first image, of class 1 in the second and so on."""
    for folder in ("images", "labels"):
        (root / folder / half).mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(root / f"images/{half}/{name}")
        (root / f"labels/{half}/{Path(name).stem}.txt").write_text(
            f"{number % 2} 0.5 0.5 0.2 {0.2 + number / 50}\n"
        )
    (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_images_that_differ_only_in_their_extension_keep_their_own_labels(tmp_path: Path, to: str) -> None:
    source = tmp_path / "in"
    things = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 10 * i, 10]} for i in (1, 2)]
    for half in ("train", "val"):
        (source / f"images/{half}").mkdir(parents=True)
        for name in ("my cat.png", "my cat.bmp"):
            Image.new("RGB", (40, 40)).save(source / f"images/{half}/{name}")
        page = {
            "images": [
                {"id": i, "file_name": f"my cat.{ending}", "width": 40, "height": 40}
                for i, ending in ((1, "png"), (2, "bmp"))
            ],
            "annotations": things,
            "categories": [{"id": 1, "name": "cat"}],
        }
        (source / "annotations").mkdir(exist_ok=True)
        (source / f"annotations/instances_{half}.json").write_text(json.dumps(page))
    convert(source, tmp_path / "out", to)  # type: ignore[arg-type]
    for half in ("train", "val"):
        coco = open_objects(tmp_path / "out", half)[1]
        widths = {
            image.path.suffix: [box[2] - box[0] for box in (t.box for t in image.objects)]
            for image in coco.images
        }
        assert widths == {".png": [pytest.approx(10)], ".bmp": [pytest.approx(20)]}
        assert not coco.problems.found


@pytest.mark.filterwarnings("ignore:.*train holds the images of val")
@pytest.mark.parametrize("name", ["cat\ndog", "cat\x1b[31m"])
def test_names_that_a_format_would_change_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = pictured(tmp_path / "in", ["a.png", "b.png"])
    names = json.dumps([name, "dog"])
    (root / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames: {names}\n")
    convert(root, tmp_path / "yolo", "yolo")
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: pytest.fail("an image was copied first"))
    with pytest.raises(ValueError, match=r"the class .*cat.*; rename it"):
        convert(root, tmp_path / "voc", "voc")
    assert open_objects(tmp_path / "yolo", "val")[1].class_names == [name, "dog"]
    assert not (tmp_path / "voc").exists()


def test_spaces_around_names_are_left_out(tmp_path: Path) -> None:
    root = pictured(tmp_path / "in", ["a.png", "b.png"])
    pictured(root, ["c.png"], half="val")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: ['cat ', dog]\n")
    convert(root, tmp_path / "voc", "voc")
    assert (tmp_path / "voc/classes.txt").read_text() == "cat\ndog\n"
    assert open_objects(tmp_path / "voc", "val")[1].class_names == ["cat", "dog"]
    with pytest.raises(ValueError, match="two classes are called dog; rename one"):
        require_class_names(["dog", "dog"], root)


def test_tables_beside_objects_do_not_matter(tmp_path: Path) -> None:
    """As TensorFlow's object detection tutorial lays them out, with a test.py besides."""
    root = pictured(tmp_path / "in", ["a.png", "b.png"])
    pictured(root, ["c.png"], half="val")
    for name in ("train_labels.csv", "test_labels.csv", "more_labels.csv"):
        (root / name).write_text("filename,class\na.png,cat\n")
    (root / "test.py").write_text("")
    assert convert(root, tmp_path / "out", "coco").notes == []


def test_many_files_of_one_name_keep_apart(tmp_path: Path) -> None:
    names = _Names(by_stem=True)
    given = [names.of(Path(f"{number}/rgb.png"), "images") for number in range(3)]
    assert [*given, names.of(Path("rgb-2.jpg"), "images"), names.of(Path("9/rgb.png"), "images")] == [
        "rgb.png", "rgb-2.png", "rgb-3.png", "rgb-2-2.jpg", "rgb-4.png",
    ]  # fmt: skip
    assert names.of(Path("rgb.png"), "more") == "rgb.png"


def test_a_test_split_that_is_not_written_is_told(tmp_path: Path) -> None:
    root = pictured(tmp_path / "in", ["a.png", "b.png"])
    for half in ("val", "test"):
        pictured(root, ["c.png"], half=half)
    assert convert(root, tmp_path / "out", "coco").notes == ["the test split is not converted (images/test)"]
    table = tmp_path / "in/labels.csv"
    for name in "cd":
        Image.new("RGB", (40, 40)).save(root / f"{name}.png")
    rows = ("images/train/a.png,a,train", "images/train/b.png,b,train", "c.png,a,val", "d.png,b,test")
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    assert convert(table, tmp_path / "folders", "folders").notes == [
        "the test split is not converted (1 rows of labels.csv)"
    ]


def test_objects_and_classes_that_get_lost_are_told(tmp_path: Path) -> None:
    things = [
        {"segmentation": {"size": [40, 40], "counts": [0, 1600]}, "bbox": [0, 0, 40, 40]},
        {"segmentation": {"size": [40, 40], "counts": [1600]}, "bbox": [3, 3, 9, 9]},
    ]
    for half in ("train", "val"):
        (tmp_path / f"in/images/{half}").mkdir(parents=True)
        (tmp_path / f"masked/images/{half}").mkdir(parents=True)
        (tmp_path / f"masked/masks/{half}").mkdir(parents=True)
        for root in ("in", "masked"):
            Image.new("RGB", (40, 40)).save(tmp_path / f"{root}/images/{half}/a.png")
        Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(tmp_path / f"masked/masks/{half}/a.png")
        page = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
            "annotations": [{"id": i, "image_id": 1, "category_id": 1, **it} for i, it in enumerate(things)],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "in/annotations").mkdir(exist_ok=True)
        (tmp_path / f"in/annotations/instances_{half}.json").write_text(json.dumps(page))
    assert convert(tmp_path / "in", tmp_path / "yolo", "yolo").notes == [
        "2 objects with an empty mask are left out"
    ]
    (tmp_path / "masked/classes.txt").write_text("other\nthing\n")
    with pytest.warns(
        UserWarning, match=r"only class other is seen: .* have the value 255, which is ignored"
    ):
        convert(tmp_path / "masked", tmp_path / "masks", "masks")


def test_nothing_is_overwritten_or_left_half_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["data", "convert", *map(str, arguments)])
        return int(end.value.code or 0), capfd.readouterr().err

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    status, err = call(scenes, taken, "--to", "yolo", "--format", "coco")
    assert status == 2
    assert "taken exists" in err
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    assert call(scenes, scenes / "out", "--to", "coco", "--format", "coco")[0] == 2
    status, err = call(scenes, tmp_path / "out", "--to", "table", "--format", "coco")
    assert status == 2
    assert "holds objects in images, which become coco or yolo or voc or masks" in err

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crossformerpp.data.convert.write_json", fail)
    status, err = call(scenes, tmp_path / "out", "--to", "coco", "--format", "coco")
    assert status == 2
    assert "No space left" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    monkeypatch.undo()
    status, err = call(scenes, tmp_path / "out", "--to", "yolo", "--format", "coco")
    assert status == 0
    assert (
        "found: COCO detection set, annotations/instances_val.json, 4 train / 2 val images" in err
        or "instances_train" in err
    )
