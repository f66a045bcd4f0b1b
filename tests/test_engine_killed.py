"""Runs that were killed, changed or ran out of disk: nothing is lost, and going on is exact."""

import csv
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from crossformerpp import engine
from crossformerpp.data.classification import open_digits
from crossformerpp.engine import callbacks
from crossformerpp.engine.changes import changes
from crossformerpp.engine.files import AtomicCheckpointIO
from test_engine import assert_same_state, evaluations, last
from tiny import tiny_recipe

SAVES = "trainer.checkpoint_every=1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    engine.train(tiny_recipe(SAVES), run)
    return run


def train_and_die_in_batch_3(run: Path, workers: int) -> None:
    real = callbacks.SeedEachBatch.on_train_batch_start

    def hooked(self: Any, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, trainer, *arguments)

    callbacks.SeedEachBatch.on_train_batch_start = hooked  # type: ignore[method-assign]
    engine.train(tiny_recipe(SAVES, f"trainer.workers={workers}"), run)


def train_and_die_in_a_save(run: Path, workers: int) -> None:
    real, calls = torch.save, []

    def hooked(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half a checkpo")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(content, file)

    torch.save = hooked
    engine.train(tiny_recipe(SAVES, f"trainer.workers={workers}"), run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "workers", "step"),
    [(train_and_die_in_batch_3, 0, 3), (train_and_die_in_batch_3, 2, 3), (train_and_die_in_a_save, 0, 2)],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, program: Any, workers: int, step: int
) -> None:
    run = tmp_path / "run"
    # Not a fork of this process, where autograd has worked in other tests: PyTorch's does not survive that. Nor one
    # of a fork server, whose children the loader's workers would be: they would not notice the kill, and stay.
    process = multiprocessing.get_context("spawn").Process(target=program, args=(run, workers))
    process.start()
    process.join(timeout=200)
    assert process.exitcode == -signal.SIGKILL
    assert last(run)["global_step"] == step
    engine.resume(run)
    assert_same_state(last(whole), last(run))
    assert evaluations(run) == evaluations(whole)
    assert not list(run.rglob(".*.unfinished"))


def test_a_full_disk_leaves_the_checkpoint_saved_before(tmp_path: Path) -> None:
    """The limit on file sizes makes the real writes fail as those on a full disk do."""
    path, limits = tmp_path / "last.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"could not be saved: .*; the checkpoint saved before is intact: .*last\.ckpt"
        ):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def copy_with(whole: Path, run: Path, section: str, key: str, value: Any) -> Path:
    shutil.copytree(whole, run)
    page = yaml.safe_load((run / "recipe.yaml").read_text())
    page[section][key] = value
    (run / "recipe.yaml").write_text(yaml.safe_dump(page))
    return run


def test_a_run_can_be_made_longer(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_with(whole, tmp_path / "run", "trainer", "steps", 6)
    engine.resume(run, ["optim.lr=5e-4"])
    told = capsys.readouterr().err
    assert "changed since the last checkpoint: trainer.steps: 4 → 6" in told
    assert "changed since the last checkpoint: optim.lr: 0.001 → 0.0005" in told
    assert last(run)["global_step"] == 6
    assert [step for step, _, _ in evaluations(run)] == ["2", "4", "6"]
    assert last(run)["lr_schedulers"][0]["t_initial"] == 6
    assert last(run)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 5e-4


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "name", "crossformer_tiny", "model.name: crossformerpp_small → crossformer_tiny"),
        ("trainer", "batch_size", 32, "trainer.batch_size: 64 → 32"),
        ("optim", "name", "sgd", "optim.name: adamw → sgd"),
    ],
)
def test_what_would_not_fit_the_saved_state_is_refused(
    whole: Path, tmp_path: Path, section: str, key: str, value: Any, message: str
) -> None:
    run = copy_with(whole, tmp_path / "run", section, key, value)
    with pytest.raises(ValueError, match=f"the run cannot go on with a changed {message}. Begin a new one"):
        engine.resume(run)
    assert_same_state(last(whole), last(run))


def test_an_average_may_change_its_decay_but_not_appear() -> None:
    plain, averaged = tiny_recipe("ema=null"), tiny_recipe("ema.decay=0.5")
    assert changes(tiny_recipe(), averaged) == ["ema.decay: 0.9 → 0.5"]
    with pytest.raises(ValueError, match="ema"):
        changes(plain, averaged)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"samples": 1348, "names": "x"}, r"changed \(1348 samples then, 1347 now\)"),
        ({"samples": 1347, "names": "x"}, r"changed \(1347 samples as before, but others\)"),
    ],
)
def test_data_that_changed_are_noticed(
    whole: Path, tmp_path: Path, mark: dict[str, Any], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = last(run)
    state["crossformerpp"]["data"]["train"] = mark
    torch.save(state, run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=f"its training data {message}"):
        engine.resume(run)


def test_what_run_json_says_counts_where_a_checkpoint_says_nothing(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = last(run)
    state["crossformerpp"]["data"] = {}
    torch.save(state, run / "checkpoints" / "last.ckpt")
    about = (run / "run.json").read_text()
    (run / "run.json").write_text(about.replace('"train_samples": 1347', '"train_samples": 1348'))
    with pytest.raises(ValueError, match="1348 samples then, 1347 now"):
        engine.resume(run)


def test_one_batch_can_be_learnt_by_heart(tmp_path: Path) -> None:
    engine.train(
        tiny_recipe(
            "trainer.overfit_batch=true", "trainer.batch_size=16", "trainer.steps=30", "trainer.eval_every=30",
            "trainer.log_every=1", "augment={flip: 0.0, crop_scale: [1.0, 1.0], crop_ratio: [1.0, 1.0]}",
            "model.options.drop_path_rate=0", "optim.lr=5e-3", "ema=null",
        ),
        tmp_path / "run",
    )  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert losses[0] > 1
    assert losses[-1] < 0.2


def test_damage_found_by_a_worker_is_told_without_its_traceback(tmp_path: Path) -> None:
    digits = open_digits("train", 32)
    for number in range(80):
        folder = tmp_path / "data" / digits.class_names[digits.labels[number]]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.png"
        digits.open(number).save(path)
        if number % 2:
            path.write_bytes(path.read_bytes()[:80])
    recipe = tiny_recipe(
        f"data.root={tmp_path / 'data'}",
        "data.max_unreadable=3",
        "trainer.workers=1",
        "trainer.batch_size=16",
    )
    with pytest.raises(
        ValueError, match=r"^4 images cannot be read, the last is [^\n]*max_unreadable allows 3$"
    ):
        engine.train(recipe, tmp_path / "run")
