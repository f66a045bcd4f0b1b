"""Segmenters learn, and stay what they are when saved, opened and asked again: the whole path on digit_scenes."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from crossformerpp import cli, engine, predict
from crossformerpp.analysis.predictions import Predictor
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.data.segmentation import open_folder
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.segmentation.module import SegmentationModule

SIZE, NUM_SCENES = 96, 5
STEPS = {"semantic_fpn": 150, "upernet": 350}  # of which the batch norm of pooled maps takes its time


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder whose validation scenes are the training scenes, so that a run is judged on what it learns."""
    root = write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=NUM_SCENES, val=1, size=SIZE)
    folder = root.with_name("folder")
    for room in ("images", "masks"):
        for half in ("train", "val"):
            shutil.copytree(root / room / "train", folder / room / half)
    shutil.copy(root / "classes.txt", folder)
    return folder


def recipe(root, head, steps=120, **trainer):
    return parse_recipe(
        {
            "task": "segmentation",
            "model": {
                "name": "crossformerpp_small",
                "options": {
                    "embed_dim": 16,
                    "depths": [1, 1, 2, 1],
                    "num_heads": [1, 2, 2, 4],
                    "group_sizes": [6, 6, 6, 3],
                    "intervals": [4, 2, 1, 1],
                },
            },
            "data": {"source": "folder", "root": root},
            "head": {"name": head, "channels": 32, "pyramid_channels": 32, "auxiliary_channels": 16},
            "augment": {
                "crop": SIZE,
                "short_side": None,
                "scale": [1.0, 1.0],
                "flip": 0.0,
                "photometric": False,
            },
            "inference": {"short_side": None},
            "optim": {"lr": 3e-3, "weight_decay": 0.0},
            "schedule": {"name": "poly", "power": 0.9, "warmup_steps": min(10, steps - 1)},
            "trainer": {
                "steps": steps,
                "batch_size": 4,
                "eval_every": steps,
                "workers": 0,
                "threads": 1,
                "accelerator": "cpu",
                **trainer,
            },
        },
        "test",
    )


@pytest.fixture(scope="module", params=["semantic_fpn", "upernet"])
def run(request, scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return folder, engine.train(recipe(scenes, request.param, STEPS[request.param]), folder)


@pytest.mark.slow
def test_learns_scenes_by_heart(run, scenes):
    """Background alone is 0.1, and all digits taken for the most frequent one 0.2."""
    folder, metrics = run
    assert metrics["miou"] > 0.3, metrics
    assert metrics["images"] == NUM_SCENES
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["background", *map(str, range(10))]
    assert sum(int(row["pixels"]) for row in rows) == NUM_SCENES * SIZE * SIZE
    assert Image.open(folder / "overlays.png").width > 3 * SIZE
    assert json.loads((folder / "metrics.json").read_text())["miou"] == metrics["miou"]


@pytest.mark.slow
def test_other_ways_to_look_are_judged_alike(run):
    folder, metrics = run
    window = engine.evaluate(
        folder, overrides=["inference.mode=slide", "inference.window=96", "inference.stride=64"]
    )
    assert window == metrics  # a window as large as the image is the image
    scales = engine.evaluate(folder, overrides=["inference.scales=[1.0,1.125]"])
    assert scales["images"] == NUM_SCENES
    assert scales["pixel_accuracy"] > metrics["pixel_accuracy"] - 0.05


@pytest.mark.slow
def test_predicts_what_was_evaluated(run, scenes, tmp_path):
    """Masks that are predicted, saved and read again give the evaluation's pixel accuracy, to the pixel."""
    folder, metrics = run
    source = open_folder(scenes, "val")
    predictor = predict.load_predictor(folder, "cpu", ["inference.probabilities=[background]"])
    results = list(predict.predict(predictor, source.images, tmp_path / "out"))
    right = 0
    for number, result in enumerate(results):
        assert result.error is None
        files = {path.name.removeprefix(path.name[:5]): path for path in result.pictures}
        assert set(files) == {".jpg", "_mask.png", "_probability_background.png"}
        mask = Image.open(files["_mask.png"])
        labels = np.asarray(mask)
        right += int((labels == source.open(number)[1]).sum())
        probability = np.asarray(Image.open(files["_probability_background.png"])) / 65535
        assert (probability[labels == 0] > 1 / 11).all()
        assert (probability[labels != 0] <= 0.5).all()
    assert right == round(metrics["pixel_accuracy"] * NUM_SCENES * SIZE * SIZE)
    shares = [entry["share"] for entry in results[0].to_json()["classes"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)


def test_pictures_of_one_image_do_not_replace_anothers(tmp_path):
    class Mask:
        def pictures(self, image):
            return {"": image, "_mask": image}

        def to_json(self):
            return {}

    class Masks(Predictor):
        columns = ()
        suffixes = ("", "_mask")

        def prepare(self, image):
            return image

        def predict(self, prepared):
            return [Mask()] * len(prepared)

    paths = [tmp_path / "x.png", tmp_path / "x_mask.png", tmp_path / "a" / "y.png", tmp_path / "b" / "y.png"]
    for path in paths[2:]:
        path.parent.mkdir()
    for path in paths:
        Image.new("RGB", (40, 40)).save(path)
    results = list(predict.predict(Masks(), paths, tmp_path / "out"))
    assert [path.name for result in results for path in result.pictures] == [
        "x.png", "x_mask.png", "x_mask_2.png", "x_mask_2_mask.png",
        "a_y.png", "a_y_mask.png", "b_y.png", "b_y_mask.png",
    ]  # fmt: skip


def test_an_interrupted_run_ends_like_an_uninterrupted_one(scenes, tmp_path, monkeypatch):
    settings = {"steps": 3, "eval_every": 3}
    engine.train(recipe(scenes, "upernet", **settings), tmp_path / "whole")
    loss, calls = SegmentationModule.loss, []

    def ctrl_c_in_the_second_step(self, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch)

    monkeypatch.setattr(SegmentationModule, "loss", ctrl_c_in_the_second_step)
    with pytest.raises(engine.TrainingInterruptedError):
        engine.train(recipe(scenes, "upernet", **settings), tmp_path / "broken")
    engine.resume(tmp_path / "broken")
    assert len(calls) == 3
    whole, broken = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())


def test_an_image_without_labels_teaches_nothing_and_breaks_nothing(scenes, tmp_path):
    module = find_task("segmentation").module(recipe(scenes, "upernet"), [str(i) for i in range(11)])
    module.model.train()
    losses = module.loss((torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), -1)))
    losses["loss"].backward()
    assert all(value.item() == 0 for value in losses.values())


def test_a_mask_that_does_not_fit_is_named(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "bad")
    mask = tmp_path / "bad" / "masks" / "val" / "00003.png"
    Image.open(mask).resize((50, 40)).save(mask)
    split = find_task("segmentation").split(recipe(tmp_path / "bad", "upernet"), "val")
    with pytest.raises(ValueError, match=r"00003\.png: the mask has 50x40 pixels, its image 96x96"):
        split.dataset[3]


def test_data_check_counts_and_names_what_is_wrong(scenes, tmp_path):
    root = tmp_path / "bad"
    shutil.copytree(scenes, root)
    (root / "masks" / "val" / "00001.png").unlink()
    Image.fromarray(np.full((SIZE, SIZE), 77, np.uint8)).save(root / "masks" / "val" / "00002.png")
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(root / "masks" / "val" / "00004.png")
    with pytest.warns(UserWarning, match="1 of 5 images have no mask"):
        result = CliRunner().invoke(cli.app, ["data", "check", str(root), "--json"])
    assert result.exit_code == 1
    train, val = json.loads(result.stdout)
    assert not train["problems"]
    assert sum(train["pixels"].values()) == pytest.approx(1)
    assert val["counts"] == {
        "images": 4,
        "images without a mask": 1,
        "masks without an image": 0,
        "images without a labelled pixel": 1,
    }
    problems = "\n".join(val["problems"])
    for text in ("00002.png: value 77 is no label", "00001.jpg", "00004.png"):
        assert text in problems


def test_data_check_answers_on_stdout_and_takes_unseen_classes_for_a_note(scenes, tmp_path):
    root = tmp_path / "good"
    shutil.copytree(scenes, root)
    (root / "classes.txt").write_text((root / "classes.txt").read_text() + "unicorn\n")
    result = CliRunner().invoke(cli.app, ["data", "check", str(root)])
    assert result.exit_code == 0
    assert f"{root}, masks, train:" in result.stdout
    assert "nothing wrong" in result.stdout
    assert "unicorn" in result.stdout.partition("classes are never seen: ")[2]


def test_a_mask_that_does_not_fit_stops_training_with_one_clean_line(scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "bad")
    for mask in (tmp_path / "bad" / "masks" / "train").iterdir():
        Image.fromarray(np.full((SIZE, SIZE), 77, np.uint8)).save(mask)
    page = tmp_path / "page.yaml"
    page.write_text(dump_recipe(recipe(tmp_path / "bad", "semantic_fpn", steps=2, workers=1)))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(page), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"crossformer: {tmp_path}/bad/masks/train/0000")
    assert "value 77 is no label; with 11 classes labels are 0 to 10" in said
    assert said.endswith(
        f"; `crossformer data check {tmp_path}/bad` finds all such; fix or remove it, then begin again with "
        "--overwrite"
    )


def test_a_run_goes_on_once_a_bad_mask_is_fixed(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "bad")
    bad = tmp_path / "bad" / "masks" / "val" / "00003.png"
    bad.write_bytes(b"no mask")
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"fix it, then `crossformer train --resume {run}`"):
        engine.train(recipe(tmp_path / "bad", "semantic_fpn", steps=4, eval_every=2), run)
    shutil.copy(scenes / "masks" / "val" / bad.name, bad)
    assert engine.resume(run)["images"] == NUM_SCENES
    steps = [int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open()) if row["val_miou"]]
    assert steps == [2, 4]
