"""Training, stopping and going on: a run is the same however it came about."""

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from crossformerpp import engine
from crossformerpp.engine import callbacks
from crossformerpp.engine.files import RunFolder
from crossformerpp.recipes.load import load_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.classification.module import ClassificationModule
from crossformerpp.tasks.saved import read_training_state
from tiny import tiny_recipe, tiny_values


def last(run: Path) -> dict[str, Any]:
    return read_training_state(run / "checkpoints" / "last.ckpt")


def assert_same_state(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Weights, moving average and optimiser agree to the last bit."""
    assert left["state_dict"].keys() == right["state_dict"].keys()
    for key, value in left["state_dict"].items():
        assert torch.equal(value, right["state_dict"][key]), key
    for a, b in zip(left["optimizer_states"], right["optimizer_states"], strict=True):
        for number, state in a["state"].items():
            for name, value in state.items():
                assert torch.equal(value, b["state"][number][name]), (number, name)
    assert left["lr_schedulers"] == right["lr_schedulers"]


def evaluations(run: Path) -> list[tuple[str, ...]]:
    """Step, accuracy and loss of each evaluation in metrics.csv."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(row["step"], row["val_top1"], row["val_loss"]) for row in rows if row["val_top1"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    engine.train(tiny_recipe(), run)
    return run


def ctrl_c_in(monkeypatch: pytest.MonkeyPatch, where: type, hook: str, when: int) -> None:
    """Send this process a SIGINT at the `when`-th call of a callback's hook."""
    real, calls = getattr(where, hook), []

    def hooked(self: Any, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, *arguments)

    monkeypatch.setattr(where, hook, hooked)


def test_a_run_holds_everything_to_repeat_and_judge_it(whole: Path) -> None:
    files = ("recipe.yaml", "run.json", "metrics.csv", "metrics.json", "predictions.csv", "samples/7.png")
    pictures = ("learning_curve.png", "confusion.png", "predictions.png")
    for name in (*files, *pictures, "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (whole / name).stat().st_size > 0, name
    assert list((whole / "tensorboard").glob("events.*"))
    assert load_recipe(str(whole / "recipe.yaml")) == tiny_recipe()
    about = json.loads((whole / "run.json").read_text())
    assert about["train_samples"] == 1347
    assert about["val_samples"] == 450
    assert about["packages"]["torch"] == torch.__version__.split("+")[0]
    metrics = json.loads((whole / "metrics.json").read_text())
    with (whole / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["samples"] == 450
    assert metrics["top1"] == pytest.approx(sum(row["correct"] == "1" for row in rows) / 450)
    assert [step for step, _, _ in evaluations(whole)] == ["2", "4"]


def test_a_repeated_run_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    engine.train(load_recipe(str(whole / "recipe.yaml")), tmp_path / "again")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert_same_state(last(whole), last(tmp_path / "again"))


def test_neither_workers_nor_evaluation_change_a_run(whole: Path, tmp_path: Path) -> None:
    engine.train(tiny_recipe("trainer.workers=2", "trainer.eval_every=4"), tmp_path / "other")
    assert_same_state(last(whole), last(tmp_path / "other"))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_as_if_nothing_happened(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, callbacks.SeedEachBatch, "on_train_batch_start", batch)
        with pytest.raises(engine.TrainingInterruptedError):
            engine.train(tiny_recipe(), run)
    assert last(run)["global_step"] == batch
    metrics = engine.resume(run)
    assert_same_state(last(whole), last(run))
    assert metrics == {
        k: v for k, v in json.loads((whole / "metrics.json").read_text()).items() if k in metrics
    }
    assert evaluations(run) == evaluations(whole)


def test_ctrl_c_in_an_evaluation_repeats_that_evaluation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, callbacks.Log, "on_validation_start", 1)
        with pytest.raises(engine.TrainingInterruptedError):
            engine.train(tiny_recipe(), run)
    assert last(run)["global_step"] == 2
    assert evaluations(run) == []
    engine.resume(run)
    assert_same_state(last(whole), last(run))
    assert evaluations(run) == evaluations(whole)


def test_ctrl_c_while_batches_accumulate_waits_for_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("trainer.accumulate=4", "trainer.steps=2")
    engine.train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        ctrl_c_in(patch, callbacks.SeedEachBatch, "on_train_batch_start", 2)
        with pytest.raises(engine.TrainingInterruptedError):
            engine.train(recipe, tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 1
    engine.resume(tmp_path / "run")
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "run"))


def test_accumulated_batches_are_the_same_step(tmp_path: Path) -> None:
    plain = (
        "augment.mixup=0",
        "schedule.warmup_steps=0",
        "model.options.drop_path_rate=0",
        "trainer.steps=1",
        "trainer.eval_every=1",
    )
    engine.train(tiny_recipe(*plain), tmp_path / "one")
    engine.train(tiny_recipe(*plain, "trainer.accumulate=4"), tmp_path / "four")
    one, four = last(tmp_path / "one")["optimizer_states"], last(tmp_path / "four")["optimizer_states"]
    for number, state in one[0]["state"].items():
        torch.testing.assert_close(
            state["exp_avg"], four[0]["state"][number]["exp_avg"], rtol=1e-4, atol=1e-7
        )


def without_chance(*overrides: str) -> BaseRecipe:
    """The tiny recipe, in which two runs differ by what is under test alone."""
    fixed = ("model.options.drop_path_rate=0", "augment.mixup=0", "augment.random_erasing=0")
    return tiny_recipe(*fixed, *overrides)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, float]]:
    """State and metrics of a run in float32."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    metrics = engine.train(without_chance(), run)
    return last(run), metrics


def test_mixed_precision_computes_in_half_and_keeps_weights_whole(
    plain: tuple[dict[str, Any], dict[str, float]], tmp_path: Path
) -> None:
    metrics = engine.train(without_chance("trainer.precision=bf16-mixed"), tmp_path / "run")
    state = last(tmp_path / "run")["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert not all(torch.equal(value, plain[0]["state_dict"][key]) for key, value in state.items())
    assert metrics["loss"] == pytest.approx(plain[1]["loss"], rel=1e-2)


@pytest.mark.slow
def test_a_compiled_model_trains_alike_and_its_checkpoint_is_like_any_other(
    plain: tuple[dict[str, Any], dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = []

    def without_inductor(self: torch.nn.Module) -> None:  # which takes a minute; the graphs are the same
        backends.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", without_inductor)
    metrics = engine.train(without_chance("model.compile=true"), tmp_path / "run")
    assert backends[0] == "CrossFormer"
    assert metrics["loss"] == pytest.approx(plain[1]["loss"], rel=1e-4)
    state = last(tmp_path / "run")["state_dict"]
    for key, value in plain[0]["state_dict"].items():
        own = state[key]
        # The keys' bias and a DPB's last one shift all scores of a query alike: their gradients are rounding errors, of
        # which Adam makes whole steps.
        if key.endswith("position_bias.layers.2.2.bias"):
            continue
        if key.endswith("attn.qkv.bias"):
            own, value = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (own, value))
        # Nor does any other weight whose gradient nearly cancels agree by itself: the tensor does.
        assert (own - value).norm() <= 0.03 * value.norm(), key


def test_learning_rate_of_every_step_is_that_of_the_schedule(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=1e-3)
    reference = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-6, t_in_epochs=False)
    state = last(whole)
    reference.step_update(4)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]


def test_the_end_of_a_run_is_judged_whatever_its_length(tmp_path: Path) -> None:
    engine.train(tiny_recipe("trainer.steps=3"), tmp_path / "run")
    assert [int(step) for step, *_ in evaluations(tmp_path / "run")] == [2, 3]


def test_without_a_word_an_epoch_is_between_evaluations(tmp_path: Path) -> None:
    # 1,347 images make 21 batches of 64
    engine.train(tiny_recipe("trainer.steps=22", "trainer.eval_every=null"), tmp_path / "run")
    assert [int(step) for step, *_ in evaluations(tmp_path / "run")] == [21, 22]


def test_a_finished_run_is_only_evaluated_again(whole: Path) -> None:
    before = last(whole)
    metrics = engine.resume(whole)
    assert metrics["samples"] == 450
    assert_same_state(before, last(whole))


def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = ClassificationModule.loss, []

    def spoilt(self: ClassificationModule, batch: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        losses = real(self, batch)
        return {"loss": losses["loss"] * float("nan")} if len(calls) == 3 else losses

    monkeypatch.setattr(ClassificationModule, "loss", spoilt)
    with pytest.raises(
        engine.LossNotFiniteError, match=r"at step 3; the last good checkpoint is .*last\.ckpt"
    ):
        engine.train(tiny_recipe(), tmp_path / "run")
    state = last(tmp_path / "run")
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_another_processs_loss_that_is_no_number_keeps_this_one_from_saving(whole: Path) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda bad, all: True))
    guard = callbacks.LossGuard(RunFolder(whole))
    guard.check()
    with pytest.raises(engine.LossNotFiniteError, match=r"not a number in another process; .*last\.ckpt"):
        callbacks.Saver(guard.run, 1, 1, 4, guard).save(trainer)


def test_a_save_that_fails_leaves_the_last_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, []

    def full(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half a checkpo")
            raise OSError(28, "No space left on device")
        real(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            engine.train(tiny_recipe(), tmp_path / "run")
    assert last(tmp_path / "run")["global_step"] == 2
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if "unfinished" in path.name]
    engine.resume(tmp_path / "run")
    assert_same_state(last(whole), last(tmp_path / "run"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=2000", r"a batch of 2000 is more than the 1347 training samples; pass --set"),
        ("trainer.accumulate=64", r"mixup and cutmix pair the images of a batch, and 1 is odd"),
        ("trainer.devices=3", r"batch_size 64 must be a multiple of devices × accumulate = 3 × 1"),
        (
            "schedule.warmup_steps=4",
            r"warm-up takes 4 steps, and the whole run has 4; .*schedule\.warmup_steps=0",
        ),
        (
            "model.name=crossformerpp_smal",
            r"no model 'crossformerpp_smal'; did you mean crossformerpp_small\?",
        ),
        ("model.options.embed=3", r"model.options of crossformerpp_small: .*embed"),
        ("optim.name=adamv", r"optim: .*adamv"),
        ("optim.options.beta=1", r"optim: .*beta"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.train(tiny_recipe(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_exists_is_kept_unless_it_is_a_run_to_be_replaced(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists; choose another --out, or pass --overwrite or --resume"):
        engine.train(tiny_recipe(), whole)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("dear to me")
    with pytest.raises(ValueError, match="exists and is not a run"):
        engine.train(tiny_recipe(), mine, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "dear to me"


def test_a_new_run_starts_from_another_ones_weights(whole: Path, tmp_path: Path) -> None:
    values = tiny_values()
    values["model"]["checkpoint"] = str(whole)
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(values))
    from crossformerpp.tasks import find_task
    from crossformerpp.tasks.saved import open_saved

    recipe = load_recipe(str(tmp_path / "page.yaml"))
    module = find_task("classification").module(recipe, ["a", "b", "c"])  # other classes: a fresh head
    averaged = open_saved(whole).weights
    own = module.model.state_dict()
    assert own["head.fc.weight"].shape == (3, 128)
    assert module.started_from.keys("fresh") == ["head.fc.weight", "head.fc.bias"]
    assert all(torch.equal(averaged[key], own[key]) for key in own if not key.startswith("head."))


def test_a_checkpoint_of_another_variant_is_refused_with_the_keys(whole: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(f"model.checkpoint={whole}", "model.options.embed_dim=32")
    with pytest.raises(
        ValueError, match=r"weights of another model, \d+ keys differ: stages\.0.*they are of model\.name="
    ):
        engine.train(recipe, tmp_path / "run")
