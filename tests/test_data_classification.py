"""Folders of images and the built-in digits as labelled samples."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from crossformerpp.data.classification import (
    LabelledImages,
    TransformedImages,
    open_digits,
    open_folder,
    open_mnist,
)
from crossformerpp.data.huggingface import is_huggingface, open_huggingface
from crossformerpp.data.label_sets import open_label_sets


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


def test_a_model_is_judged_by_images_of_one_class(tmp_path: Path) -> None:
    fill(tmp_path / "train", cat=2, dog=2)
    fill(tmp_path / "val", dog=3)
    train = open_folder(tmp_path, "train", 0.2, seed=0)
    assert open_folder(tmp_path, "val", 0.2, seed=0, class_names=train.class_names).labels == [1, 1, 1]
    sets = open_label_sets(tmp_path, "val", False, 0.2, 0, class_names=train.class_names)
    assert sets.label_sets == [[1], [1], [1]]


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
    with pytest.raises(ValueError, match=r"val/ is missing \(pass --data .*half/train to split"):
        open_folder(tmp_path / "half", "val", 0.2, seed=0)


def spoilt(tmp_path: Path, *numbers: int) -> LabelledImages:
    """Six images of a class each, some of them cut short."""
    fill(tmp_path, a=3, b=3)
    source = open_folder(tmp_path, "test", 0.2, seed=0)
    for number in numbers:
        path = tmp_path / source.names[number]
        path.write_bytes(path.read_bytes()[:60])
    return source


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def test_training_takes_the_next_image_for_an_unreadable_one_and_warns_once(tmp_path: Path) -> None:
    dataset = TransformedImages(spoilt(tmp_path, 2, 5), as_tensor, replace_unreadable=True)
    with pytest.warns(UserWarning, match=r"left out, 1 so far: .*2\.png: unreadable image"):
        assert dataset[2][1:] == (1, 3)
    with pytest.warns(UserWarning, match="left out, 2 so far"):
        assert dataset[5][1:] == (0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset[2][1:] == (1, 3)
    assert dataset.damage.count == 2


def test_damage_seen_by_worker_processes_is_counted(tmp_path: Path) -> None:
    dataset = TransformedImages(spoilt(tmp_path, 1, 4), as_tensor, replace_unreadable=True)
    numbers = torch.cat([batch[2] for batch in DataLoader(dataset, 2, num_workers=2)])
    assert numbers.tolist() == [0, 2, 2, 3, 5, 5]
    assert dataset.damage.count == 2


def test_an_evaluation_marks_what_it_cannot_read(tmp_path: Path) -> None:
    dataset = TransformedImages(spoilt(tmp_path, 4), as_tensor)
    with pytest.warns(UserWarning, match="left out"):
        image, label, number = dataset[4]
    assert image.shape == (64, 64, 3)
    assert (label, number) == (1, -5)


def test_too_many_unreadable_images_are_an_error(tmp_path: Path) -> None:
    dataset = TransformedImages(spoilt(tmp_path, 0, 1), as_tensor, replace_unreadable=True, max_unreadable=1)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"2 images cannot be read, the last is .*max_unreadable allows 1"),
    ):
        dataset[0]


def test_folders_of_numbers_are_places_in_the_models_classes(tmp_path: Path) -> None:
    fill(tmp_path, **{"0": 1, "2": 1, "10": 1})  # type: ignore[arg-type]
    names = [f"n{number:08d}" for number in range(11)]
    split = open_folder(tmp_path, "test", 0.2, seed=0, class_names=names)
    assert dict(zip(split.names, split.labels, strict=True)) == {"0/0.png": 0, "10/0.png": 10, "2/0.png": 2}


def test_mnist_is_split_for_good_and_evenly() -> None:
    train, val = open_mnist("train", 32), open_mnist("val", 32)
    assert (len(train), len(val)) == (3500, 1500)
    assert set(Counter(val.labels).values()) == {150}
    assert train.open(0).size == (32, 32)


def test_a_copy_of_a_huggingface_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="large; read by those who have it")
    fill(tmp_path / "files", cat=3, dog=2)
    paths = sorted((tmp_path / "files").rglob("*.png"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    columns = {"image": [str(path) for path in paths], "label": [0, 0, 0, 1, 1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(train=table, validation=table.select([1, 4])).save_to_disk(tmp_path / "copy")
    assert is_huggingface(tmp_path / "copy")
    train = open_huggingface(tmp_path / "copy", "train")
    val = open_huggingface(tmp_path / "copy", "val", ["dog", "cat"])
    assert (train.labels, train.class_names) == ([0, 0, 0, 1, 1], ["cat", "dog"])
    assert [train.open(number).getpixel((0, 0)) for number in (0, 4)] == [(0, 0, 0), (1, 1, 0)]
    assert (val.labels, val.open(1).getpixel((0, 0))) == ([1, 0], (1, 1, 0))
