"""Answers with a promise: coverage as promised, by computations of our own, through run, export and prediction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_recipe

from crossformerpp import engine
from crossformerpp.analysis.conformal import Promise, calibrate, crossed
from crossformerpp.cli import main
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.classification import open_images


def probabilities(number: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An overconfident model of ten classes that is right in about two cases of three."""
    labels = generator.integers(10, size=number)
    logits = 3 * generator.normal(size=(number, 10))
    logits[np.arange(number), labels] += 5
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("number", [19, 100])
def test_coverage_is_what_theory_says(coverage: float, number: int) -> None:
    """Over calibrations the mean is ⌈(n + 1)(1 − α)⌉ / (n + 1), not only at least 1 − α."""
    generator = np.random.default_rng(0)
    test, labels = probabilities(4000, generator)
    found = []
    for _ in range(400):
        threshold = calibrate(*probabilities(number, generator), coverage).threshold
        found.append((test[np.arange(4000), labels] >= threshold).mean())
    expected = np.ceil((number + 1) * coverage - 1e-9) / (number + 1)
    assert expected >= coverage
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 20 + 0.01)


def test_threshold_is_the_score_that_it_says() -> None:
    shares, labels = probabilities(99, np.random.default_rng(1))
    promise = calibrate(shares, labels, 0.9)
    kept = promise.answer(shares)[np.arange(99), labels].sum()
    assert (kept, promise.samples) == (90, 99)  # ⌈100 · 0.9⌉ of those it was calibrated on
    metrics = crossed(shares, labels, 0.9)
    assert metrics["conformal_coverage"] != pytest.approx(90 / 99, abs=1e-9)
    assert 0.75 < metrics["conformal_coverage"] <= 1


def test_too_few_images_promise_nothing() -> None:
    shares, labels = probabilities(8, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"8 validation images are too few.* at least 9"):
        calibrate(shares, labels, 0.9)
    assert calibrate(*probabilities(9, np.random.default_rng(0)), 0.9).samples == 9
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(shares, labels, 1.0)


def test_no_class_may_be_the_answer() -> None:
    kept = Promise(0.9, 0.4, 50).answer(np.array([[0.35, 0.35, 0.3], [0.5, 0.45, 0.05]], np.float32))
    assert kept.tolist() == [[False] * 3, [True, True, False]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformal") / "run"
    engine.train(tiny_recipe("trainer.steps=12", "trainer.eval_every=12"), folder)
    return folder


def ended(arguments: list[Any]) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_calibrated_run_answers_with_sets(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["eval", run, "--conformal", "0.8", "--out", tmp_path / "eval", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["conformal_promised"] == 0.8
    assert metrics["conformal_coverage"] == pytest.approx(0.8, abs=0.08)  # of 450, in halves
    threshold = json.loads((run / "conformal.json").read_text())["threshold"]
    predictor: Any = load_predictor(run, "cpu")
    recipe = tiny_recipe()
    assert isinstance(recipe, ClassificationRecipe)
    source = open_images(recipe, "val", predictor.class_names)
    hits = 0
    for number, label in enumerate(source.labels):
        shares = predictor.probabilities([predictor.prepare(source.open(number))])[0]
        hits += shares[label] >= np.float32(threshold)
        if number % 30 == 0:
            names = {predictor.class_names[k] for k in range(10) if shares[k] >= threshold}
            page = predictor(source.open(number)).to_json()
            assert set(page["answer"]) == names
            assert {entry["class"] for entry in page["top"] if entry["answer"]} <= names
    # exactly ⌈451 · 0.8⌉ of those it was calibrated on; batches of another size round one of them otherwise at most
    assert hits == pytest.approx(361, abs=1)


def test_a_shared_folder_keeps_it(run: Path, tmp_path: Path) -> None:
    assert ended(["eval", run, "--conformal", "0.8", "--out", tmp_path / "eval"]) == 0
    assert ended(["share", run, "--out", tmp_path / "shared"]) == 0
    shared: Any = load_predictor(tmp_path / "shared", "cpu")
    assert shared.promise == load_predictor(run, "cpu").promise is not None  # type: ignore[attr-defined]


def test_more_training_makes_it_void(run: Path, tmp_path: Path) -> None:
    assert ended(["eval", run, "--conformal", "0.8", "--out", tmp_path / "eval"]) == 0
    page = json.loads((run / "conformal.json").read_text())
    (run / "conformal.json").write_text(json.dumps(page | {"weights": "0" * 16}))
    with pytest.warns(UserWarning, match="other weights and not used"):
        predictor: Any = load_predictor(run, "cpu")
    assert predictor.promise is None
    (run / "conformal.json").write_text("{}")
    with pytest.raises(ValueError, match=r"conformal\.json: damaged"):
        load_predictor(run, "cpu")
    (run / "conformal.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conformal", "1.5"], "between 0 and 1"),
        (["--conformal", "0.999"], "too few"),
        (["--conformal", "0.9", "--data", "."], "leave out --data"),
        (["--conformal", "0.9", "--set", "data.size=48"], "leave out --set data"),
    ],
)
def test_what_cannot_be_promised_is_said(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["eval", run, "--out", tmp_path / "eval", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "conformal.json").exists()
