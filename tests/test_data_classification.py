"""Folders of images and the built-in digits as labelled samples."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data.classification import LabelledImages, open_digits, open_folder


def fill(root: Path, **classes: int) -> Path:
    """Folders of small pictures; every picture of a class has the class's own grey."""
    for shade, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (shade, number, 0)).save(root / name / f"{number}.png")
    return root


def named(split: LabelledImages) -> set[tuple[str, str]]:
    return {(name, split.class_names[label]) for name, label in zip(split.names, split.labels, strict=True)}


def test_digits_are_split_for_good_and_evenly() -> None:
    train, val = open_digits("train", 32), open_digits("val", 32)
    assert (len(train), len(val)) == (1347, 450)
    assert set(Counter(val.labels).values()) <= {43, 44, 45, 46}
    assert train.open(0).size == (32, 32)
    pixels = {np.asarray(train.open(i)).tobytes() for i in range(len(train))}
    assert not pixels & {np.asarray(val.open(i)).tobytes() for i in range(len(val))}


def test_train_and_val_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", cat=3, dog=2)
    fill(tmp_path / "val", cat=1, dog=1)
    train = open_folder(tmp_path, "train", 0.5, seed=0)
    assert train.class_names == ["cat", "dog"]
    assert train.labels == [0, 0, 0, 1, 1]
    assert train.open(4).getpixel((0, 0)) == (1, 1, 0)
    for which in ("val", "test"):
        val = open_folder(tmp_path, which, 0.5, seed=0, class_names=train.class_names)
        assert named(val) == {("val/cat/0.png", "cat"), ("val/dog/0.png", "dog")}


def test_one_folder_is_split_by_class_without_overlap_and_the_same_each_time(tmp_path: Path) -> None:
    fill(tmp_path, cat=20, dog=5, owl=2)
    train, val = (open_folder(tmp_path, which, 0.2, seed=1) for which in ("train", "val"))
    assert Counter(val.labels) == {0: 4, 1: 1, 2: 1}
    assert not named(train) & named(val)
    assert len(named(train) | named(val)) == 27
    assert named(open_folder(tmp_path, "val", 0.2, seed=1)) == named(val)
    assert named(open_folder(tmp_path, "val", 0.2, seed=2)) != named(val)
    assert len(open_folder(tmp_path, "test", 0.2, seed=1)) == 27


def test_labels_follow_the_names_that_the_model_knows(tmp_path: Path) -> None:
    fill(tmp_path, dog=2, owl=2)
    split = open_folder(tmp_path, "test", 0.2, seed=0, class_names=["owl", "cat", "dog"])
    assert split.labels == [2, 2, 0, 0]
    with pytest.raises(ValueError, match="unknown class owl; the model knows cat, dog"):
        open_folder(tmp_path, "test", 0.2, seed=0, class_names=["cat", "dog"])


def test_folders_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        open_folder(tmp_path / "nowhere", "train", 0.2, seed=0)
    with pytest.raises(ValueError, match="expected one folder of images per class, found none"):
        open_folder(tmp_path, "train", 0.2, seed=0)
    fill(tmp_path / "one", cat=3)
    with pytest.raises(ValueError, match=r"a single class \(cat\); at least two"):
        open_folder(tmp_path / "one", "train", 0.2, seed=0)
    fill(tmp_path / "empty", cat=3, dog=3, owl=0)
    (tmp_path / "empty" / "owl" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="no images in class owl"):
        open_folder(tmp_path / "empty", "train", 0.2, seed=0)
    fill(tmp_path / "few", cat=3, dog=1)
    with pytest.raises(ValueError, match=r"dog: 1 image\(s\) cannot be split"):
        open_folder(tmp_path / "few", "train", 0.2, seed=0)
    fill(tmp_path / "half" / "train", cat=3, dog=1)
    with pytest.raises(ValueError, match="val/ is missing"):
        open_folder(tmp_path / "half", "val", 0.2, seed=0)
