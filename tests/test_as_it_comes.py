"""Folders, names and files as people have them, from end to end: used as they should be, or refused by name."""

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from crossformerpp import cli, engine, share
from crossformerpp.analysis.fonts import _beyond_latin, _file_with, font_for
from crossformerpp.analysis.pictures import confusion_matrix
from crossformerpp.data.classification import open_folder
from crossformerpp.data.segmentation import open_folder as open_masks
from crossformerpp.data.segmentation import open_splits, warn_of_values
from crossformerpp.recipes.classification import ClassificationData
from crossformerpp.tasks.classification import crop_share, eval_transform
from crossformerpp.tasks.saved import open_saved
from tiny import tiny_recipe

TINY = (
    "data.source=folder",
    "trainer.batch_size=4",
    "trainer.eval_batch_size=8",
    "trainer.steps=2",
    "trainer.eval_every=2",
    "augment.mixup=0",
)
Call = Callable[..., tuple[int, str, str]]


def photos(root: Path, *names: str, count: int = 8) -> Path:
    """Noisy pictures of 40 × 40 pixels, a colour per class."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        generator = np.random.default_rng(number)
        for i in range(count):
            pixels = generator.integers(0, 90, (40, 40, 3))
            pixels[..., number % 3] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def masks(root: Path, halves: tuple[str, ...] = ("train", "val"), value: int = 1, count: int = 3) -> Path:
    """Images with a square, whose pixels have this value in the mask."""
    for half in halves:
        for room in ("images", "masks"):
            (root / room / half).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            mask = np.zeros((64, 64), np.uint8)
            mask[16:48, 8 * i : 8 * i + 24] = value
            Image.fromarray(np.stack([mask // max(1, value) * 200] * 3, -1)).save(
                root / "images" / half / f"{i}.png"
            )
            Image.fromarray(mask).save(root / "masks" / half / f"{i}.png")
    (root / "classes.txt").write_text("background\nthing\n")
    return root


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    engine.train(tiny_recipe("trainer.steps=2"), run)
    return run


def test_hidden_and_system_folders_are_no_classes(tmp_path: Path) -> None:
    photos(tmp_path, "cat", "dog")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / ".ipynb_checkpoints")
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "cat" / "._0.png").write_bytes(bytes(200))
    (tmp_path / "@eaDir").mkdir()
    with pytest.warns(UserWarning, match=r"2 × hidden or system folder \(\.ipynb_checkpoints/, __MACOSX/\)"):
        source = open_folder(tmp_path, "test", 0.2, seed=0)
    assert source.class_names == ["cat", "dog"]
    assert len(source) == 16


def test_images_of_other_formats_are_named_and_so_are_those_outside_of_classes(tmp_path: Path) -> None:
    photos(tmp_path, "cat", "dog")
    for i in range(3):
        (tmp_path / "cat" / f"{i}.png").rename(tmp_path / "cat" / f"IMG_{i}.HEIC")
    shutil.copy(tmp_path / "dog" / "0.png", tmp_path / "loose.png")
    with pytest.warns(
        UserWarning, match=r"1 × image outside the class folders \(loose\.png\); 3 × \.heic file"
    ):
        assert len(open_folder(tmp_path, "test", 0.2, seed=0)) == 13


def test_a_loop_makes_no_dog_a_cat(tmp_path: Path) -> None:
    photos(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "loop").symlink_to("..")
    with pytest.warns(UserWarning, match="1 × link into the folder itself"):
        source = open_folder(tmp_path, "test", 0.2, seed=0)
    assert len(source) == 16
    assert all(
        name.startswith(source.class_names[label])
        for name, label in zip(source.names, source.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Validation"),
        ("train", "valid"),
        ("TRAIN", "VAL"),
        ("train", "dev"),
        ("Training", "Testing"),
    ],
)
def test_splits_under_other_names_are_found(tmp_path: Path, train: str, val: str) -> None:
    photos(tmp_path / train, "cat", "dog", count=3)
    photos(tmp_path / val, "cat", "dog", count=2)
    masks(tmp_path / "m", (train, val))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [len(open_folder(tmp_path, which, 0.2, seed=0)) for which in ("train", "val")] == [6, 4]
        assert {which: len(source) for which, source in open_splits(tmp_path / "m")} == {"train": 3, "val": 3}
    said = any("Testing/ is used for validation" in str(warning.message) for warning in caught)
    assert said == (val == "Testing")


def test_a_class_that_is_called_train_is_a_class(tmp_path: Path) -> None:
    photos(tmp_path, "train", "bus")
    assert open_folder(tmp_path, "test", 0.2, seed=0).class_names == ["bus", "train"]


def test_two_folders_that_claim_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Training"):
        photos(tmp_path / name, "cat", "dog", count=1)
    with pytest.raises(ValueError, match="both train/ and Training/ are there; which is meant"):
        open_folder(tmp_path, "train", 0.2, seed=0)


def test_masks_below_linked_folders_count(tmp_path: Path) -> None:
    masks(tmp_path / "D")
    for room in ("images", "masks"):
        (tmp_path / "store" / room).mkdir(parents=True)
        (tmp_path / "D" / room / "train").rename(tmp_path / "store" / room / "city")
        (tmp_path / "D" / room / "train").mkdir()
        (tmp_path / "D" / room / "train" / "city").symlink_to(tmp_path / "store" / room / "city")
    assert open_masks(tmp_path / "D", "train").names == ["city/0.png", "city/1.png", "city/2.png"]


def test_masks_that_are_no_files_of_labels_are_named(tmp_path: Path) -> None:
    masks(tmp_path)
    for path in list((tmp_path / "masks" / "train").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(ValueError, match=r"no mask belongs to an image; .* \(left out 3 × \.jpg file"):
        open_masks(tmp_path, "train")


def test_masks_of_0_and_255_are_said_to_lose_their_class_and_have_a_setting(
    tmp_path: Path, call: Call
) -> None:
    masks(tmp_path, value=255)
    with pytest.warns(
        UserWarning, match=r"only class background is seen: .* --set data\.mask_values=\[0,255\]"
    ):
        warn_of_values(open_masks(tmp_path, "train"))
    status, out, _ = call("data", "check", tmp_path)
    assert status == 1
    assert "which is ignored. If it means a class" in out
    status, out, _ = call("data", "check", tmp_path, "--mask-values", "0,255")
    assert status == 0
    assert "nothing wrong" in out
    source = open_masks(tmp_path, "train", values=[0, 255])
    assert set(np.unique(source.open(0)[1])) == {0, 1}
    with pytest.raises(ValueError, match=r"data\.mask_values has 1 values for 2 classes"):
        open_masks(tmp_path, "train", values=[255])


def test_the_check_takes_the_value_to_ignore(tmp_path: Path, call: Call) -> None:
    masks(tmp_path)
    for path in (tmp_path / "masks").rglob("*.png"):
        mask = np.array(Image.open(path))
        mask[:4] = 254
        Image.fromarray(mask).save(path)
    assert "value 254 is no label" in call("data", "check", tmp_path)[1]
    assert call("data", "check", tmp_path, "--ignore-label", 254)[0] == 0


def test_index_masks_saved_as_colours_are_said_to_be_so(tmp_path: Path) -> None:
    masks(tmp_path)
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match="all three channels are equal; make it one channel"):
        open_masks(tmp_path, "train").open(0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "I;16", "I"])
def test_masks_of_any_mode_hold_the_same_labels(tmp_path: Path, mode: str) -> None:
    masks(tmp_path)
    expected = open_masks(tmp_path, "train").open(0)[1]
    for path in (tmp_path / "masks").rglob("*.png"):
        labels = np.array(Image.open(path))
        picture = Image.fromarray(labels)
        if mode == "1":
            picture = Image.fromarray(labels * 255).convert("1")
        elif mode == "P":
            picture.putpalette([9, 9, 9, 200, 0, 0])
        elif mode == "LA":
            picture = Image.merge("LA", [picture, Image.new("L", picture.size, 255)])
        elif mode != "L":
            picture = Image.fromarray(labels.astype(np.uint16 if mode == "I;16" else np.int32))
        path.unlink()
        picture.save(path.with_suffix(".tif"))
    assert np.array_equal(open_masks(tmp_path, "train").open(0)[1], expected)


def test_the_check_notes_masks_of_images_that_exif_turns(tmp_path: Path, call: Call) -> None:
    masks(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "images" / "train" / "1.png"
    Image.open(path).save(path, exif=exif)
    status, out, _ = call("data", "check", tmp_path)
    assert status == 0
    assert "note: 1 images are turned by 180° or mirrored by EXIF" in out


def test_names_that_are_no_utf8_train_evaluate_and_predict(tmp_path: Path, call: Call) -> None:
    folder = photos(tmp_path / "P", "cat", os.fsdecode(b"caf\xe9"))
    for path in list((folder / "cat").iterdir()):
        path.rename(path.with_name(os.fsdecode(b"caf\xe9 ") + path.name))
    engine.train(tiny_recipe(*TINY, f"data.root={folder}"), tmp_path / "run")
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {row["label"] for row in rows} == {"cat", "caf\\udce9"}
    status, out, _ = call("predict", tmp_path / "run", folder / "cat", "--out", tmp_path / "p", "--json")
    assert status == 0
    written = json.loads((tmp_path / "p" / "predictions.json").read_text(encoding="utf-8"))
    assert json.loads(out) == written
    assert all(os.path.exists(record["image"]) for record in written), "the names lead back to the files"
    assert call("demo", tmp_path / "run")[0] == 0


def test_brackets_dollars_and_escapes_are_text(tmp_path: Path, call: Call) -> None:
    names = ("mug [blue]", "x[/b] $a_b$ \x1b[31m")
    folder = photos(tmp_path / "P", *names)
    engine.train(tiny_recipe(*TINY, f"data.root={folder}"), tmp_path / "run")
    status, out, err = call("predict", tmp_path / "run", folder / names[1], "--out", tmp_path / "p")
    assert status == 0
    assert "mug [blue]" in out
    assert r"x[/b] $a_b$ \x1b[31m/0.png" in out
    assert "\x1b" not in out + err
    assert call("eval", tmp_path / "run", "--out", tmp_path / "e")[0] == 0
    assert call("demo", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("name", ["../../ESC", "/tmp/ESC", "a/b", "..", "\x00", "x" * 300, ".hidden"])
def test_class_names_in_checkpoints_stay_inside_their_folder(digits: Path, tmp_path: Path, name: str) -> None:
    state = torch.load(digits / "checkpoints" / "last.ckpt", weights_only=True)
    state["crossformerpp"]["class_names"][0] = name
    torch.save(state, tmp_path / "evil.ckpt")
    out = tmp_path / "a" / "b" / "e"
    engine.evaluate(tmp_path / "evil.ckpt", out=out)
    assert len(list((out / "samples").iterdir())) == 10
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents]
    assert outside == [tmp_path / "evil.ckpt"]


def test_weights_that_are_no_numbers_are_refused_everywhere(digits: Path, tmp_path: Path, call: Call) -> None:
    state = torch.load(digits / "checkpoints" / "last.ckpt", weights_only=True)
    prefix = "ema.module." if any(key.startswith("ema.") for key in state["state_dict"]) else "model."
    state["state_dict"][f"{prefix}head.fc.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "bad.ckpt")
    for command in (
        ("predict", tmp_path / "bad.ckpt", digits / "samples"),
        ("eval", tmp_path / "bad.ckpt"),
        ("export", tmp_path / "bad.ckpt", "--out", tmp_path / "a.onnx"),
        ("share", tmp_path / "bad.ckpt", "--out", tmp_path / "s"),
        ("train", "digits", "--set", f"model.checkpoint={tmp_path / 'bad.ckpt'}", "--out", tmp_path / "r"),
    ):
        status, out, err = call(*command)
        assert (status, out) == (2, "")
        assert "tensors hold NaN or infinity" in err or "weights of another model" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.ckpt"]


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(
    digits: Path, tmp_path: Path, call: Call, kind: torch.dtype
) -> None:
    """Copied as they are, quantised weights would be other weights, and imaginary parts would be lost."""
    state = torch.load(digits / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"] = {key: value.to(kind) for key, value in state["state_dict"].items()}
    torch.save(state, tmp_path / "bad.ckpt")
    status, out, err = call("predict", tmp_path / "bad.ckpt", digits / "samples")
    assert (status, out) == (2, "")
    assert "another kind of number" in err


def test_a_run_among_the_images_is_no_class_and_its_pictures_are_no_images(
    digits: Path, tmp_path: Path, call: Call
) -> None:
    root = photos(tmp_path / "photos", "cat", "dog")
    shutil.copytree(digits, root / "run")
    with pytest.warns(UserWarning, match=r"left out 1 × run of `crossformer train` \(run/\)"):
        assert open_folder(root, "test", 0.2, seed=0).class_names == ["cat", "dog"]
    status, out, _ = call("predict", digits, root, "--json", "--out", tmp_path / "out")
    assert status == 0
    assert len(json.loads(out)) == 16
    for _ in range(2):  # the second time its own pictures lie there
        status, out, err = call("predict", digits, root, "--json", "--out", root / "out", "--overwrite")
        assert status == 0, err
        assert len(json.loads(out)) == 16


def test_an_output_that_is_no_number_is_said_per_image(
    digits: Path, tmp_path: Path, call: Call, monkeypatch: Any
) -> None:
    def nothing(self: Any, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 10), float("nan"))

    monkeypatch.setattr("crossformerpp.models.crossformer.CrossFormer.forward", nothing)
    status, out, err = call(
        "predict", digits, digits / "samples" / "3.png", "--out", tmp_path / "p", "--json"
    )
    assert status == 2
    assert "3.png: the network's output is not a number (NaN)" in err
    assert "NaN" not in json.dumps(
        [{k: v for k, v in row.items() if k != "error"} for row in json.loads(out)]
    )
    status, _, err = call("eval", digits, "--out", tmp_path / "e")
    assert status == 2
    assert "not a number (NaN) for 450 of 450 images" in err


def test_the_evaluation_of_a_folder_that_changed_is_warned_of(tmp_path: Path) -> None:
    folder = photos(tmp_path / "P", "cat", "dog")
    engine.train(tiny_recipe(*TINY, f"data.root={folder}"), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.evaluate(tmp_path / "run")
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "99.png")
    with pytest.warns(
        UserWarning, match="changed since training: .*may have been trained on some of these images"
    ):
        engine.evaluate(tmp_path / "run")


@pytest.mark.parametrize(
    ("size", "resize"), [(64, 93), (128, 186), (256, 372), (224, 256), (32, 32), (224, 257)]
)
def test_eval_resize_is_obeyed_exactly_and_timm_reads_the_same(size: int, resize: int) -> None:
    data = ClassificationData(source="folder", size=size, eval_resize=resize)
    transform = eval_transform(data)
    assert transform.transforms[0].size == resize
    config = resolve_data_config({"input_size": (3, size, size), "crop_pct": crop_share(data)})
    theirs = create_transform(**config | {"interpolation": "bicubic"})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (123, 301, 3), np.uint8))
    assert torch.equal(transform(image), theirs(image))


def test_a_shared_folder_holds_the_exact_share(digits: Path, tmp_path: Path) -> None:
    share.write_folder(digits, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())["pretrained_cfg"]
    data = open_saved(digits).recipe.data
    assert int(config["input_size"][-1] / config["crop_pct"]) == data.eval_resize


def test_characters_of_any_script_are_drawn_or_said_to_be_missing(tmp_path: Path) -> None:
    _file_with.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = _file_with(_beyond_latin(["cat", "猫"]))
    has_font = path is not None
    assert has_font != any("no font here has the characters" in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if has_font else "ignore")
        confusion_matrix(np.eye(2, dtype=int), ["猫", "$x_2$"], tmp_path / "confusion.png")
        font_for(["猫", "cat"], 13)


def test_characters_that_pillows_font_lacks_are_drawn_by_a_font_of_the_system(
    monkeypatch: Any, tmp_path: Path
) -> None:
    """DejaVu Sans, which comes with matplotlib, stands for a system's font; it has Armenian, Pillow's own has not."""
    import matplotlib

    shutil.copy(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", tmp_path / "DejaVuSans.ttf"
    )
    monkeypatch.setattr(
        "crossformerpp.analysis.fonts._system_fonts", lambda: [str(tmp_path / "DejaVuSans.ttf")]
    )
    _file_with.cache_clear()
    text = "Կատու"
    assert font_for([text], 20).getname()[0] == "DejaVu Sans"
    assert font_for(["cat, Größe, Škoda"], 20).getname()[0] != "DejaVu Sans"
    _file_with.cache_clear()
