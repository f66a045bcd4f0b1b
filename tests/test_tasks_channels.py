"""Classifiers of images with four channels of 12 bits see the same in training, evaluation, prediction and export."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.tiny import tiny_values
from timm.models import adapt_input_conv

from crossformerpp import engine, predict
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.data.pixel_files import read_pixels
from crossformerpp.export import export
from crossformerpp.export.certificate import certify
from crossformerpp.export.int8 import calibration_images
from crossformerpp.recipes.load import dump_recipe, load_recipe, parse_page, parse_recipe
from crossformerpp.tasks.classification import Classification
from crossformerpp.tasks.classification.report import describe_run
from crossformerpp.tasks.saved import read_weights

MEAN, STD = [0.4, 0.4, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]


def four_channels(root: Path) -> Path:
    """Two classes that only the fourth channel tells apart, as TIFF with four pages."""
    generator = np.random.default_rng(0)
    for half, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "bright")):
            (root / half / name).mkdir(parents=True)
            for number in range(count):
                values = generator.integers(800, 2400, (4, 40, 40), dtype=np.uint16)
                values[3] = values[3] // 4 + 3000 * label
                tifffile.imwrite(root / half / name / f"{number}.tif", values, photometric="minisblack")
    return root


def recipe(root: Path, *, steps: int = 12, **data: Any):
    values = tiny_values()
    values["model"]["options"]["drop_path_rate"] = 0.0
    values["data"] = {
        "root": str(root), "source": "folder", "size": 32, "eval_resize": 36, "channels": 4, "max_value": 4095,
        "mean": MEAN, "std": STD, **data,
    }  # fmt: skip
    values["augment"] = {"flip": 0.5, "random_erasing": 0.1}
    values["ema"] = None
    values["optim"] = {"lr": 3e-3}
    values["schedule"] = {"warmup_steps": 0}
    values["trainer"] |= {"steps": steps, "batch_size": 8, "eval_every": steps, "eval_batch_size": 8}
    return parse_recipe(values, "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_channels(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("runs") / "four"
    return folder, engine.train(recipe(data), folder)


def by_hand(path: Path) -> torch.Tensor:
    """(1, 4, 32, 32) as the network should see a file: a resize of each channel, the centre, mean and deviation."""
    values = tifffile.imread(path).astype(np.float32) / 4095
    bands = [np.asarray(Image.fromarray(band).resize((36, 36), Image.Resampling.BICUBIC)) for band in values]
    cut = np.stack(bands)[:, 2:34, 2:34]
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (MEAN, STD))
    return torch.from_numpy((cut - mean) / std)[None]


def test_the_report_of_a_run_takes_its_channels(run) -> None:
    facts = describe_run(run[0], seconds=0.1)
    by_hand = count_complexity(predict.load_predictor(run[0], "cpu").model, (4, 32, 32)).macs
    assert (f"{by_hand / 1e6:,.1f}M", "multiply-accumulates at 32×32") in facts.headline
    assert len(facts.right) == 8


def test_the_fourth_channel_is_learnt_and_judged_alike_everywhere(run, data: Path, tmp_path: Path) -> None:
    folder, metrics = run
    assert metrics["top1"] == 1.0  # nothing but the fourth channel tells the classes apart
    assert engine.evaluate(folder, root=data)["top1"] == 1.0
    predictor = predict.load_predictor(folder, "cpu")
    files = sorted((data / "val").rglob("*.tif"))
    with predict.PredictionRun(
        predictor, predict.open_images([data / "val"]), tmp_path / "out", workers=2
    ) as found:
        results = list(found)
    model = predictor.model  # type: ignore[attr-defined]
    for path, result in zip(files, results, strict=True):
        assert result.error is None
        with torch.no_grad():
            expected = model(by_hand(path)).softmax(1)[0]
        top = dict(result.prediction.top)  # type: ignore[union-attr]
        got = [top[name] for name in predictor.class_names]  # type: ignore[attr-defined]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
        assert result.pictures[0].is_file()
    values = read_pixels(files[0], "it", predictor.pixels)
    as_array = tifffile.imread(files[0]).transpose(1, 2, 0)
    assert predictor(values).top == predictor(as_array).top


def test_evaluation_files_are_of_the_pictures(run) -> None:
    folder, _ = run
    with (folder / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert (folder / "predictions.png").is_file()


@pytest.mark.slow
def test_onnx_answers_as_the_checkpoint_without_pytorch(run, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder, _ = run
    export(folder, tmp_path / "model.onnx")
    theirs, ours = predict.load_predictor(tmp_path / "model.onnx"), predict.load_predictor(folder, "cpu")
    assert theirs.pixels == ours.pixels
    for path in sorted((data / "val").rglob("*.tif")):
        image = read_pixels(path, path.name, theirs.pixels)
        one, other = dict(theirs(image).top), dict(ours(image).top)
        assert all(one[name] == pytest.approx(other[name], abs=1e-5) for name in other)
    found = certify(tmp_path / "model.onnx", root=data, checkpoint=folder)
    assert found.metrics()["top1"] == 1.0
    assert len(calibration_images(data)) == 24
    for number in range(200):
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / f"many/{number:03d}.png").touch()
    spread = [int(path.stem) for path in calibration_images(tmp_path / "many")]
    assert (len(spread), spread[0], spread[-1]) == (128, 0, 198)
    assert set(np.diff(spread)) == {1, 2}


def test_weights_of_colour_images_are_fitted_as_timm_does(data: Path, tmp_path: Path) -> None:
    values = tiny_values()
    values["schedule"] = {"warmup_steps": 0}
    values["trainer"] |= {"steps": 1, "eval_every": 1}
    engine.train(parse_recipe(values, "rgb"), tmp_path / "rgb")
    page = recipe(data).model_dump()
    page["model"]["checkpoint"] = tmp_path / "rgb"
    page["model"]["options"]["drop_path_rate"] = 0.2
    module = Classification().module(parse_recipe(page, "test"), ["dark", "bright"])
    key = "stages.0.embedding.projections.0.weight"
    before, after = read_weights(tmp_path / "rgb")[key], module.model.state_dict()[key]
    assert torch.equal(after, adapt_input_conv(4, before))
    assert module.started_from.keys("resized") == [key.replace(".0.w", f".{i}.w") for i in range(4)]  # type: ignore


def test_recipes_hold_the_channels_once(data: Path) -> None:
    found = recipe(data)
    assert found.model.options["in_chans"] == 4
    assert parse_recipe(parse_page(dump_recipe(found), "it"), "it") == found
    with pytest.raises(
        ValueError, match=r"mean has 3 values and std 4, for 4 channels: `crossformer data check"
    ):
        recipe(data, mean=[0.5, 0.5, 0.5])
    page = found.model_dump()
    page["model"]["options"]["in_chans"] = 5
    with pytest.raises(ValueError, match=r"model.options.in_chans is 5, but data.channels is 4"):
        parse_recipe(page, "it")


@pytest.mark.parametrize(
    ("name", "value", "fix"), [("auto_augment", "rand-m9", "null"), ("color_jitter", 0.4, "0.0")]
)
def test_augmentations_of_photographs_are_refused_by_name(
    data: Path, name: str, value: object, fix: str
) -> None:
    page = recipe(data).model_dump()
    page["augment"][name] = value
    with pytest.raises(
        ValueError,
        match=rf"augment.{name}={value} needs 8-bit RGB photographs.*--set augment.{name}={fix}",
    ):
        parse_recipe(page, "it")


def test_a_recipe_of_photographs_says_all_that_is_to_be_switched_off(data: Path) -> None:
    settings = ["data.channels=4", "data.mean=[0,0,0,0]", "data.std=[1,1,1,1]", "augment.color_jitter=0.2"]
    with pytest.raises(
        ValueError, match=r"pass --set augment.auto_augment=null --set augment.color_jitter=0.0"
    ):
        load_recipe("folder", settings, data)


def test_images_of_other_channels_are_left_out_and_counted(data: Path, run, tmp_path: Path) -> None:
    folder, _ = run
    copy = four_channels(tmp_path / "copy")
    tifffile.imwrite(copy / "val/dark/0.tif", np.zeros((3, 40, 40), np.uint16), photometric="minisblack")
    with pytest.warns(UserWarning, match=r"0.tif: an image of 3 channels, but data.channels is 4"):
        metrics = engine.evaluate(folder, root=copy)
    assert metrics["unreadable"] == 1
    assert metrics["samples"] == 7


def test_what_is_for_photographs_alone_says_so(run, tmp_path: Path) -> None:
    from crossformerpp.share import write_folder
    from crossformerpp.tasks.network import open_network

    folder, _ = run
    with pytest.raises(ValueError, match=r"images with 4 channel\(s\)"):
        write_folder(folder, tmp_path / "shared")
    with pytest.raises(ValueError, match=r"only classifiers of RGB photographs can be analysed"):
        open_network(str(folder))


def test_grey_scans_of_sixteen_bits(tmp_path: Path) -> None:
    """One channel, and three of them in a recipe that keeps all bits."""
    for name, low in (("dark", 0), ("bright", 30000)):
        (tmp_path / name).mkdir()
        for number in range(5):
            values = np.random.default_rng(number).integers(low, low + 20000, (40, 40), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    one = recipe(tmp_path, channels=1, max_value=65535, mean=[0.4], std=[0.2])
    three = recipe(tmp_path, channels=3, max_value=65535, mean=[0.4] * 3, std=[0.2] * 3)
    for page, channels in ((one, 1), (three, 3)):
        split = Classification().split(page, "val")
        image, _, number = split.dataset[0]
        values = np.asarray(Image.open(tmp_path / split.names[number]), np.float32)
        small = Image.fromarray(values / 65535).resize((36, 36), Image.Resampling.BICUBIC)
        expected = (np.asarray(small)[2:34, 2:34] - 0.4) / 0.2
        assert image.shape == (channels, 32, 32)
        np.testing.assert_allclose(image.numpy(), np.broadcast_to(expected, image.shape), atol=1e-5)


def test_the_recipe_that_data_check_prints_is_taken(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from crossformerpp import cli

    with pytest.raises(SystemExit):
        cli.main(["data", "check", str(data), "--json"])
    train, _ = json.loads(capfd.readouterr().out)
    found = recipe(data, **train["data"])
    assert (found.data.channels, found.data.max_value) == (4, 4095)
    assert found.data.mean[3] != found.data.mean[0]
