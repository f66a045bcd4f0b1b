"""Formats found by `train`, `eval` and `data check`: what they say, what they refuse."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tests.tiny import tiny_values

from crossformerpp import cli
from crossformerpp.data.labelled import open_labelled


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight images of two shades, in a CSV with splits."""
    (tmp_path / "pictures").mkdir()
    lines = ["path,label,split"]
    for number in range(8):
        name, split = ("dark", "bright")[number % 2], "train" if number < 4 else "val"
        Image.new("RGB", (40, 40), (30 + 190 * (number % 2),) * 3).save(tmp_path / f"pictures/{number}.png")
        lines.append(f"pictures/{number}.png,{name},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_table_is_trained_on_evaluated_and_checked(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = tiny_values()
    values["data"] = {"source": "folder", "size": 32, "eval_resize": 32}
    values["schedule"] = {"warmup_steps": 0}
    values["trainer"] |= {"steps": 1, "batch_size": 4, "eval_every": 1}
    page = table / "recipe.yaml"
    page.write_text(yaml.safe_dump(values))
    status, _, err = call(capfd, "train", page, "--data", table, "--out", table / "run")
    assert status == 0, err
    assert "found: table of images and labels, labels.csv, 4 train / 4 val images, 2 classes\n" in err
    status, _, err = call(capfd, "eval", table / "run", "--data", table / "labels.csv")
    assert status == 0, err
    assert "found: table of images and labels, labels.csv, 4 val images, 2 classes\n" in err
    status, out, _ = call(capfd, "data", "check", table, "--json")
    train, val = json.loads(out)
    assert status == 0
    assert train["found"] == "table of images and labels, labels.csv"
    assert val["images_per_class"] == {"bright": 2, "dark": 2}


def test_class_folders_are_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dog/1.png").write_bytes(b"no picture")
    status, out, _ = call(capfd, "data", "check", tmp_path)
    assert status == 1
    assert "found: class folders" in out
    assert "1 × unreadable image" in out
    assert "dog/1.png" in out


def test_a_detection_set_is_no_set_of_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images/a.png")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    with pytest.warns(UserWarning, match="train holds the images of val, too"):
        status, _, err = call(capfd, "train", "folder", "--data", tmp_path, "--out", tmp_path / "run")
    assert status == 2
    assert "YOLO detection set, data.yaml, not images with a label each; `crossformer train objects`" in err


def test_class_folders_beside_a_table_are_refused(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (table / name).mkdir()
        Image.new("RGB", (40, 40)).save(table / name / "0.png")
    status, _, err = call(capfd, "data", "check", table)
    assert status == 2
    assert "both class folders and a table of images (labels.csv); pass --set data.format=folders" in err
    assert call(capfd, "data", "check", table, "--format", "table")[0] == 0


def test_classes_that_differ_only_in_case_are_a_note(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = (table / "labels.csv").read_text()
    (table / "labels.csv").write_text(page.replace("dark", "A").replace("bright", "a"))
    status, out, err = call(capfd, "data", "check", table)
    assert (status, err) == (0, "")
    assert "classes that differ only in case: A and a; are they one?" in " ".join(out.split())


def test_a_table_of_something_else_is_not_in_the_way(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capfd, "data", "check", table, "--format", "voc")
    assert status == 2
    assert "column" not in err
    (table / "labels.csv").write_text("what,else\n1,2\n")
    assert "no column of image paths" in call(capfd, "data", "check", table)[2]
    (table / "pictures").rename(table / "cat")
    assert len(open_labelled(table, "test", class_names=["cat", "dog"])) == 8
