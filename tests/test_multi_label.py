"""Several labels per image, end to end: losses, thresholds, metrics, a run and all that is made of it."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)
from torchvision.ops import sigmoid_focal_loss

import crossformerpp
from crossformerpp import engine
from crossformerpp.analysis.thresholds import choose_thresholds, decide_crossed
from crossformerpp.cli import main
from crossformerpp.data.digit_labels import load_digit_labels
from crossformerpp.data.digits import NAMES
from crossformerpp.data.sampling import seed_generators
from crossformerpp.engine.budget import Judge
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.load import dump_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.classification.losses import build_loss
from crossformerpp.tasks.saved import read_training_state
from tiny import tiny_recipe

PLAIN = ("multi_label=true", "augment.mixup=0", "data.root=x")


def targets_and_probabilities(
    size: int = 4, seed: int = 0, count: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of different frequency, and probabilities, some of them equal, that know something of them."""
    generator = np.random.default_rng(seed)
    truth = generator.random((count, size)) < np.linspace(0.05, 0.6, size)
    shares = (truth * 0.4 + generator.random((count, size))).clip(0, 1.2) / 1.2
    return truth, np.round(shares, 2).astype(np.float32)


def test_thresholds_have_the_best_f1_of_all() -> None:
    truth, shares = targets_and_probabilities()
    for label, threshold in enumerate(choose_thresholds(shares, truth)):
        precision, recall, _ = precision_recall_curve(truth[:, label], shares[:, label])
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        found = f1_score(truth[:, label], shares[:, label] >= threshold)
        assert found == pytest.approx(best)
        assert not np.isclose(shares[:, label], threshold, atol=1e-3).any()  # between two probabilities
    nothing = choose_thresholds(shares, np.zeros_like(truth))
    assert nothing.tolist() == [0.5] * 4


def test_halves_are_judged_by_each_others_thresholds() -> None:
    generator = np.random.default_rng(0)
    truth, noise = generator.random((40, 30)) < 0.3, generator.random((40, 30)).astype(np.float32)
    flattered = f1_score(truth, noise >= choose_thresholds(noise, truth), average="macro")
    honest = f1_score(truth, decide_crossed(noise, truth), average="macro")
    assert honest < flattered
    truth, shares = targets_and_probabilities(count=4000)  # with many images they agree
    differs = decide_crossed(shares, truth) != (shares >= choose_thresholds(shares, truth))
    assert differs.mean() < 0.05


def test_metrics_are_scikit_learns() -> None:
    truth, shares = targets_and_probabilities()
    truth[:, 3] = False  # a class that no image has counts in no mean
    thresholds = np.array([0.3, 0.5, 0.6, 0.5], np.float32)
    found = LabelSetEvaluation(
        torch.arange(300),
        torch.from_numpy(truth),
        torch.from_numpy(shares),
        list("abcd"),
        thresholds=thresholds,
    )
    said, met = shares >= thresholds, [0, 1, 2]
    expected = {
        "mAP": average_precision_score(truth[:, met], shares[:, met], average="macro"),
        "mAP_micro": average_precision_score(truth, shares, average="micro"),
        "f1": f1_score(truth[:, met], said[:, met], average="macro"),
        "f1_micro": f1_score(truth, said, average="micro"),
        "precision": precision_score(truth[:, met], said[:, met], average="macro"),
        "recall": recall_score(truth[:, met], said[:, met], average="macro"),
        "exact_match": (truth == said).all(axis=1).mean(),
        "labels_per_image": truth.sum() / 300,
        "samples": 300,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, value in expected.items():
            assert found.metrics[name] == pytest.approx(value, abs=1e-6), name
    some = np.arange(0, 300, 2)
    assert found.score(some) == pytest.approx(
        average_precision_score(truth[some][:, met], shares[some][:, met], average="macro")
    )


def loss_with(*overrides: str) -> torch.nn.Module:
    recipe = tiny_recipe(*PLAIN, *overrides)
    assert isinstance(recipe, ClassificationRecipe)
    return build_loss(recipe, list("abcd"), [800, 100, 10, 500], 1000)


def test_losses_of_labels() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 4), (torch.rand(8, 4) < 0.5).float()
    plain = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(loss_with()(logits, targets), plain)
    smooth = F.binary_cross_entropy_with_logits(logits, targets * 0.9 + 0.05)
    torch.testing.assert_close(loss_with("label_smoothing=0.1")(logits, targets), smooth)
    ratios = torch.tensor([200 / 800, 900 / 100, 990 / 10, 1.0])
    weighted = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=ratios)
    torch.testing.assert_close(loss_with("loss.class_weights=balanced")(logits, targets), weighted)
    focal = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(loss_with("loss.name=focal")(logits, targets), focal)
    asymmetric = loss_with("loss.name=asymmetric")
    shares = logits.sigmoid()
    shifted = (shares - 0.05).clamp_min(0)  # Ridnik et al., Eq. 4 to 7
    parts = targets * (1 - shares) * shares.log() + (1 - targets) * shifted**4 * (1 - shifted).log()
    torch.testing.assert_close(asymmetric(logits, targets), -parts.mean())
    for name in ("bce", "focal", "asymmetric"):
        assert not loss_with(f"loss.name={name}", "loss.class_weights=effective").state_dict()


@pytest.mark.parametrize("name", ["bce", "asymmetric", "focal"])
def test_a_weight_is_that_of_images_with_the_label_whatever_smoothing(name: str) -> None:
    """w = 99: smoothed targets would draw images without the label to 0.05·99 / (0.05·99 + 0.95) = 0.84."""
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 4), (torch.rand(8, 4) < 0.5).float()
    smoothed = ("label_smoothing=0.1", f"loss.name={name}")
    weights = torch.tensor([1.0, 2, 99, 0.5])
    each = [  # one image and class at a time
        loss_with(*smoothed)(logits[i : i + 1, k : k + 1], targets[i : i + 1, k : k + 1])
        * (weights[k] if targets[i, k] else 1)
        for i in range(8)
        for k in range(4)
    ]
    found = loss_with(*smoothed, "loss.class_weights=[1, 2, 99, 0.5]")(logits, targets)
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_smoothed_label_sets_are_mixed_alike() -> None:
    """Mixed and then smoothed is smoothed and then mixed, and weights go by how much of a label there is."""
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 4), (torch.rand(8, 4) < 0.5).float()
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    loss = loss_with("label_smoothing=0.1", "augment.mixup=0.8")
    smooth = F.binary_cross_entropy_with_logits(logits, mixed * 0.9 + 0.05)
    torch.testing.assert_close(loss(logits, mixed), smooth)


def test_mixup_mixes_label_sets() -> None:
    recipe = tiny_recipe(
        "multi_label=true",
        "data.root=x",
        "model.options.drop_path_rate=0",
        "augment.mixup=0.8",
        "label_smoothing=0.1",
    )
    module: Any = find_task("classification").module(recipe, list("abcd"))
    images, targets = torch.randn(6, 3, 32, 32), torch.eye(6)[:, :4]
    seed_generators(3)
    found = module.loss((images.clone(), targets, torch.arange(6)))["loss"]
    seed_generators(3)
    mixed, soft = module.mix(images.clone(), targets)
    assert ((soft > 0) & (soft < 1)).any()
    smooth = soft * 0.9 + 0.05
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(module.model(mixed), smooth))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 96 + 45 pictures of digits, two of them without a digit, one of them broken."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    lines = ["path,labels,split"]
    for which, count in (("train", 96), ("val", 45)):
        images, sets = load_digit_labels(which, 32)  # type: ignore[arg-type]
        for number in range(count):
            name = f"images/{which}{number}.png"
            images[number].save(root / name)
            lines.append(f"{name},{';'.join(NAMES[label] for label in sets[number])},{which}")
    (root / "images" / "val9.png").write_bytes(b"no image")
    (root / "digits.csv").write_text("\n".join(lines) + "\n")
    return root


def recipe_for(folder: Path, *overrides: str) -> BaseRecipe:
    return tiny_recipe(
        "multi_label=true",
        f"data.root={folder}",
        "trainer.batch_size=32",
        "schedule.name=constant",
        *overrides,
    )


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.warns(UserWarning, match="left out, 1 so far"):
        engine.train(recipe_for(folder), path)
    return path


def ended(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_its_figures_are_made_of(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    answers = rows(run / "predictions.csv")
    assert len(answers) == metrics["samples"] == 44
    assert metrics["unreadable"] == 1
    assert metrics["exact_match"] == pytest.approx(np.mean([row["correct"] == "1" for row in answers]))
    for row in answers:
        assert (set(row["labels"].split(";")) == set(row["predicted"].split(";"))) == (row["correct"] == "1")
        assert len(row["predicted"].split(";")) == len(row["probabilities"].split(";"))
    truth = np.array([[name in row["labels"].split(";") for name in NAMES] for row in answers])
    said = np.array([[name in row["predicted"].split(";") for name in NAMES] for row in answers])
    classes = rows(run / "classes.csv")
    assert [int(row["samples"]) for row in classes] == truth.sum(axis=0).tolist()
    expected = f1_score(truth, said, average=None, zero_division=0)
    assert [float(row["f1"]) for row in classes] == pytest.approx(expected, abs=1e-4)
    kept = json.loads((run / "thresholds.json").read_text())["thresholds"]
    assert [float(row["threshold"]) for row in classes] == pytest.approx([*kept.values()], abs=1e-4)
    assert (run / "predictions.png").is_file()


def test_going_on_is_exact(folder: Path, run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        engine.train(recipe_for(folder, "trainer.steps=2"), tmp_path / "parts")
        engine.resume(tmp_path / "parts", ["trainer.steps=4"])
    states = [
        read_training_state(path / "checkpoints/last.ckpt")["state_dict"]
        for path in (run, tmp_path / "parts")
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert (run / "metrics.json").read_text() != ""
    same = [json.loads((path / "thresholds.json").read_text()) for path in (run, tmp_path / "parts")]
    assert same[0] == same[1]


def test_changed_labels_are_noticed(folder: Path, run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        engine.train(recipe_for(folder, "trainer.steps=2"), tmp_path / "run")
    table = folder / "digits.csv"
    before = table.read_text()
    try:
        table.write_text(before.replace("train3.png,", "train3.png,0;1;2;3;4;5;", 1))
        with pytest.raises(ValueError, match="the same 96 samples, with other labels"):
            engine.resume(tmp_path / "run", ["trainer.steps=4"])
    finally:
        table.write_text(before)


def test_predictions_list_the_labels_that_reach_their_thresholds(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = json.loads((run / "thresholds.json").read_text())["thresholds"]
    pictures = [folder / f"images/val{number}.png" for number in range(3)]
    assert ended("predict", run, *pictures, "--out", tmp_path / "out", "--json") == 0
    records = json.loads(capsys.readouterr().out)
    predictor: Any = load_predictor(run, "cpu")
    table = rows(tmp_path / "out" / "predictions.csv")
    from PIL import Image

    for path, record in zip(pictures, records, strict=True):
        shares = predictor.probabilities([predictor.prepare(Image.open(path).convert("RGB"))])[0]
        expected = {
            name: share for name, share in zip(NAMES, shares, strict=True) if share >= np.float32(page[name])
        }
        found = {entry["class"]: entry["probability"] for entry in record["labels"]}
        assert found == pytest.approx(expected, abs=1e-5)
        assert [*found.values()] == sorted(found.values(), reverse=True)
        own = [row for row in table if row["image"] == record["image"] and row["class"]]
        assert {row["class"] for row in own} == found.keys()
        assert all(float(row["threshold"]) == pytest.approx(page[row["class"]]) for row in own)


def test_thresholds_of_other_weights_are_not_used(run: Path) -> None:
    path = run / "thresholds.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(content) | {"weights": "0" * 16}))
        with pytest.warns(UserWarning, match="chosen with other weights and not used, 0.5 in its place"):
            assert load_predictor(run, "cpu").thresholds.tolist() == [0.5] * 10  # type: ignore[attr-defined]
        path.write_text('{"thresholds": {"0": 7}}')
        with pytest.raises(ValueError, match=r"thresholds.json: damaged"):
            load_predictor(run, "cpu")
        with warnings.catch_warnings(action="ignore"):
            engine.evaluate(run)
        assert json.loads(path.read_text()) == json.loads(content)  # written again
        edited = json.loads(content)
        edited["thresholds"]["3"] = 0.9
        path.write_text(json.dumps(edited))
        with pytest.warns(UserWarning, match=r"thresholds.json: kept, with thresholds other than those"):
            engine.evaluate(run)
        assert json.loads(path.read_text()) == edited
        assert load_predictor(run, "cpu").thresholds[3] == np.float32(0.9)  # type: ignore[attr-defined]
    finally:
        path.write_text(content)


@pytest.mark.slow
def test_exported_and_shared_models_keep_the_thresholds(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    own: Any = load_predictor(run, "cpu")
    image = Image.open(folder / "images/val1.png").convert("RGB")
    assert ended("export", run, "--out", tmp_path / "model.onnx") == 0
    exported: Any = load_predictor(tmp_path / "model.onnx")
    assert ended("share", run, "--out", tmp_path / "shared") == 0
    shared: Any = crossformerpp.from_pretrained(tmp_path / "shared")
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"  # transformers' pipeline takes a sigmoid
    for other in (exported, shared):
        assert other.thresholds.tolist() == own.thresholds.tolist()
        pairs = zip(other(image).to_json()["labels"], own(image).to_json()["labels"], strict=True)
        for theirs, ours in pairs:
            assert theirs == pytest.approx(ours, abs=1e-5)
    capsys.readouterr()
    with pytest.warns(UserWarning, match="left out"):
        assert ended("eval", tmp_path / "model.onnx", "--checkpoint", run, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["agreement"] > 0.98
    before = json.loads((run / "metrics.json").read_text())
    assert metrics["mAP"] == pytest.approx(metrics["checkpoint_mAP"], abs=1e-3)
    assert metrics["mAP"] == pytest.approx(before["mAP"], abs=1e-3)


def test_the_page_shows_labels_and_classes(run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        assert ended("demo", run, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "All labels right in" in page
    assert "average precision" in page
    assert "<h2>Classes</h2>" in page


def test_other_data_are_judged_by_the_kept_thresholds(run: Path, folder: Path, tmp_path: Path) -> None:
    kept = (run / "thresholds.json").read_text()
    with warnings.catch_warnings(action="ignore"):
        metrics = engine.evaluate(run, root=folder, out=tmp_path / "eval")
    assert (run / "thresholds.json").read_text() == kept
    own = json.loads((run / "metrics.json").read_text())
    assert metrics["mAP"] == pytest.approx(own["mAP"])
    assert metrics["f1"] >= own["f1"]  # the same images: flattered by thresholds that were chosen on them
    classes = {row["class"]: float(row["threshold"]) for row in rows(tmp_path / "eval/classes.csv")}
    assert classes == pytest.approx(json.loads(kept)["thresholds"], abs=1e-4)


def test_what_is_for_one_label_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("eval", run, "--conformal", "0.9") == 2
    assert "--conformal is for one label per image" in capsys.readouterr().err
    assert ended("predict", run, run, "--cascade") == 2
    assert "cascades are for one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cascades are for one"):
        Judge(run).answers(Judge(run).own)
    with pytest.raises(ValueError, match="distill is for one label per image"):
        tiny_recipe(*PLAIN, "distill={teacher: resnet18, checkpoint: pretrained}")
    with pytest.raises(ValueError, match=r"data\.source=digits has one label per image"):
        tiny_recipe("multi_label=true")


def test_a_budget_can_be_measured(run: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        judge = Judge(run, resamples=3)
        point = judge.measure(judge.own)
    assert point.score == pytest.approx(json.loads((run / "metrics.json").read_text())["mAP"], abs=1e-6)


def test_data_check_counts_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("data", "check", folder, "--multi-label", "--json") == 1  # an image is broken
    train, val = json.loads(capsys.readouterr().out)
    sets = load_digit_labels("train", 32)[1][:96]
    assert train["counts"]["labels"] == sum(map(len, sets)) == sum(train["images_per_class"].values())
    assert train["counts"]["images without a label"] == sum(not own for own in sets)
    assert val["counts"]["unreadable images"] == 1


@pytest.mark.slow
def test_two_processes_count_every_image_once(run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_recipe(recipe_for(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "crossformerpp", "train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    found, expected = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "run", run))
    assert found["samples"] == 44
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert found["mAP"] == pytest.approx(expected["mAP"], rel=2e-2)
