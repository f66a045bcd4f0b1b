"""Running out of memory: the run goes on, with the same steps in more batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crossformerpp import engine
from crossformerpp.engine.files import RunFolder
from crossformerpp.engine.memory import note_accumulation, noted_accumulation
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.classification.module import ClassificationModule
from crossformerpp.tasks.memory import is_out_of_memory
from test_engine import assert_same_state, evaluations, last
from tiny import tiny_recipe

CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"
)


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, from_step: int = 0, error: Exception | None = None
) -> None:
    """Training holds at most so many images at once, from a step on; the error comes after the forward pass."""
    real = ClassificationModule.loss

    def loss(self: ClassificationModule, batch: Any) -> dict[str, torch.Tensor]:
        losses = real(self, batch)
        if len(batch[0]) > most and self.global_step >= from_step:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return losses

    monkeypatch.setattr(ClassificationModule, "loss", loss)


def test_the_allocators_errors_are_known() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_run_that_never_fitted_is_the_run_with_that_accumulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.train(tiny_recipe("trainer.accumulate=4"), tmp_path / "four")
    with monkeypatch.context() as patch:
        short_of_memory(patch, most=16)
        engine.train(tiny_recipe(), tmp_path / "run")
    said = capsys.readouterr().err
    assert "out of memory at step 1: its images are taken in 2 batches instead of 1" in said
    assert "out of memory at step 1: its images are taken in 4 batches instead of 2" in said
    assert said.count("4 steps of 64 images") == 2  # of two runs: what is about to be trained is said once
    assert_same_state(last(tmp_path / "four"), last(tmp_path / "run"))  # to the last bit
    assert evaluations(tmp_path / "four") == evaluations(tmp_path / "run")
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).trainer.accumulate == 4


@pytest.mark.parametrize("step", [1, 2, 3])
def test_memory_that_runs_out_later_is_an_interruption_resumed_with_more_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Interrupted after `step` steps, and resumed with another accumulation: the same weights to the last bit."""
    log = "trainer.log_every=1"
    expected = tmp_path / "expected"
    with monkeypatch.context() as patch:
        real = ClassificationModule.loss

        def stop(self: ClassificationModule, batch: Any) -> dict[str, torch.Tensor]:
            if self.global_step == step:
                raise KeyboardInterrupt
            return real(self, batch)

        patch.setattr(ClassificationModule, "loss", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            engine.train(tiny_recipe(log, "trainer.checkpoint_every=1"), expected)
    assert last(expected)["global_step"] == step
    engine.resume(expected, ["trainer.accumulate=2"])
    with monkeypatch.context() as patch:
        short_of_memory(patch, most=32, from_step=step)
        engine.train(tiny_recipe(log), tmp_path / "run")
    assert_same_state(last(expected), last(tmp_path / "run"))
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (expected, tmp_path / "run")]
    speed = rows[0][0].split(",").index("samples_per_second")
    tables = [[row.split(",")[:speed] + row.split(",")[speed + 1 :] for row in table] for table in rows]
    assert tables[0] == tables[1]
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["accumulate"]
    assert notes == [[0, 1], [step, 2]]


def test_more_batches_are_the_same_steps_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is drawn per batch (mixup, drop path) accumulation changes a step by rounding alone."""
    fixed = ("augment.mixup=0", "model.options.drop_path_rate=0", "optim.name=sgd", "optim.lr=0.1")
    engine.train(tiny_recipe(*fixed), tmp_path / "whole")
    with monkeypatch.context() as patch:
        short_of_memory(patch, most=20, from_step=1)
        engine.train(tiny_recipe(*fixed), tmp_path / "run")
    whole, run = last(tmp_path / "whole")["state_dict"], last(tmp_path / "run")["state_dict"]
    for key, value in whole.items():
        torch.testing.assert_close(run[key], value, rtol=1e-4, atol=1e-6)


def test_memory_that_never_suffices_ends_with_the_last_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, most=0, from_step=3, error=RuntimeError(CPU_ERROR))
    with pytest.raises(
        ValueError, match=r"at step 4 with 2 image\(s\) at once, .*the fewest .*DefaultCPUAllocator"
    ):
        engine.train(tiny_recipe(), tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 3


def test_an_accumulation_voids_what_was_noted_of_later_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step, count in ((0, 1), (50, 2), (40, 4)):  # killed before step 50 was saved, resumed at 40
        note_accumulation(run, step, count)
    assert noted_accumulation(run) == [(0, 1), (40, 4)]


def test_a_model_with_batch_norms_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, most=32, from_step=2)
    recipe = tiny_recipe("model.name=resnet18", "model.options={}")
    with pytest.raises(ValueError, match=r"batch norms, .*pass --set trainer\.accumulate=2; .*--resume"):
        engine.train(recipe, tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 2
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).trainer.accumulate == 1


def test_an_optimiser_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Any, closure: Any) -> None:
        closure()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", update)
    with pytest.raises(ValueError, match=r"at step 1, when its gradients were applied: .*smaller model"):
        engine.train(tiny_recipe(), tmp_path / "run")


def test_an_evaluation_is_done_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.train(tiny_recipe("trainer.eval_batch_size=113"), tmp_path / "whole")
    real = ClassificationModule.evaluate_batch
    sizes = []

    def evaluate(self: ClassificationModule, model: Any, batch: Any) -> None:
        sizes.append(len(batch[0]))
        if len(batch[0]) > 150:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        real(self, model, batch)

    monkeypatch.setattr(ClassificationModule, "evaluate_batch", evaluate)
    with pytest.warns(UserWarning, match="out of memory in an evaluation: its batches are halved"):
        engine.train(tiny_recipe(), tmp_path / "run")
    # 450, then 225, then 113; the second evaluation begins with what fitted
    assert sizes[:8] == [450, 225, 113, 112, 113, 112, 113, 112]
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "run"))
    for one, other in zip(evaluations(tmp_path / "whole"), evaluations(tmp_path / "run"), strict=True):
        assert [float(x) for x in one] == pytest.approx([float(x) for x in other], rel=1e-5)


def test_an_evaluation_that_cannot_be_divided_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.train(tiny_recipe("trainer.steps=2"), tmp_path / "run")

    def evaluate(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ClassificationModule, "evaluate_batch", evaluate)
    with pytest.raises(ValueError, match=r"out of memory in an evaluation: .*trainer\.eval_batch_size=1"):
        engine.evaluate(tmp_path / "run")
