"""Runs that end before their last step, properly."""

import json
from pathlib import Path
from typing import Any

import pytest

from crossformerpp import engine
from crossformerpp.engine import callbacks, ending
from crossformerpp.engine.callbacks import at_step_end
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from test_engine import assert_same_state, ctrl_c_in, evaluations, last
from test_engine_memory import short_of_memory
from tiny import tiny_recipe

LONG = ("trainer.steps=12", "trainer.eval_every=1")


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluations find these accuracies, by the step they come after."""

    def of(values: list[float]) -> None:
        def metrics(self: ClassificationEvaluation) -> dict[str, float]:
            return {"top1": values[len(seen) - 1], "loss": 1.0, "samples": 450}

        seen: list[int] = []
        began = ending.EarlyEnd.on_validation_start

        def start(self: Any, trainer: Any, module: Any) -> None:
            seen[:] = [0] * trainer.global_step
            began(self, trainer, module)

        monkeypatch.setattr(ending.EarlyEnd, "on_validation_start", start)
        monkeypatch.setattr(ClassificationEvaluation, "metrics", property(metrics))

    return of


def test_patience_ends_a_run_after_evaluations_without_a_better_result(
    tmp_path: Path, accuracies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies([0.1, 0.3, 0.2, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    run = tmp_path / "run"
    engine.train(tiny_recipe(*LONG, "trainer.patience=3"), run)
    assert [int(step) for step, *_ in evaluations(run)] == [1, 2, 3, 4, 5]  # an equal result is no better one
    assert last(run)["global_step"] == 5
    said = "ended at step 5 of 12: 3 evaluations in a row brought no better result"
    assert said in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["samples"] == 450

    before = last(run)
    engine.resume(run)  # it has ended
    assert said in capsys.readouterr().err
    assert_same_state(before, last(run))
    engine.resume(run, ["trainer.patience=4"])  # it has not, with more patience; the sixth is better
    assert last(run)["global_step"] == 10


def test_a_resumed_run_goes_on_counting(
    tmp_path: Path, accuracies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies([0.3, 0.2, 0.1, 0.3] + [0.3] * 8)
    recipe = tiny_recipe(*LONG, "trainer.patience=3")
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, callbacks.Log, "on_validation_start", 3)  # its evaluation is repeated
        with pytest.raises(engine.TrainingInterruptedError):
            engine.train(recipe, tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 3
    engine.resume(tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 4
    engine.train(recipe, tmp_path / "whole")
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "run"))


def test_time_before_memory_ran_out_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def step(self: Any, trainer: Any, *arguments: Any) -> None:
        clock[0] += 10 if at_step_end(trainer) else 0
        real(self, trainer, *arguments)

    real = ending.EarlyEnd.on_train_batch_end
    monkeypatch.setattr(ending.EarlyEnd, "on_train_batch_end", step)
    monkeypatch.setattr(ending.time, "monotonic", lambda: clock[0])
    short_of_memory(monkeypatch, most=32, from_step=3)
    engine.train(
        tiny_recipe("trainer.steps=20", "trainer.eval_every=20", "trainer.minutes=1"), tmp_path / "run"
    )
    assert last(tmp_path / "run")["global_step"] == 6
    assert last(tmp_path / "run")["callbacks"]["EarlyEnd"]["seconds"] == 60


def test_a_run_whose_time_is_over_is_evaluated_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def step(self: Any, trainer: Any, *arguments: Any) -> None:
        clock[0] += 10  # seconds that a step takes
        real(self, trainer, *arguments)

    real = ending.EarlyEnd.on_train_batch_end
    monkeypatch.setattr(ending.EarlyEnd, "on_train_batch_end", step)
    monkeypatch.setattr(ending.time, "monotonic", lambda: clock[0])
    recipe = tiny_recipe("trainer.steps=20", "trainer.eval_every=20", "trainer.minutes=1")
    engine.train(recipe, tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 6
    assert [int(at) for at, *_ in evaluations(tmp_path / "run")] == [6]
    assert "ended at step 6 of 20: its 1 minutes are over" in capsys.readouterr().err
    engine.resume(tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 6
    engine.resume(tmp_path / "run", ["trainer.minutes=1.5"])  # the time of both sittings counts
    assert last(tmp_path / "run")["global_step"] == 9
