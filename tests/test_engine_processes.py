"""Two real processes under torchrun do what one does, stop together, and do not outlive one another."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from crossformerpp import engine
from crossformerpp.data.classification import open_digits
from crossformerpp.engine import processes
from crossformerpp.recipes.load import load_recipe
from crossformerpp.recipes.schema import TrainerSection
from crossformerpp.tasks.saved import read_training_state
from tiny import tiny_recipe, tiny_values

# Runs the command, but something happens to the process of rank 1 when it begins its third batch.
PROGRAM = """
import os, signal, sys
from crossformerpp.cli import main
from crossformerpp.engine import callbacks
happens, real = sys.argv.pop(1), callbacks.SeedEachBatch.on_train_batch_start
def hooked(self, trainer, *arguments):
    if trainer.global_rank == 1 and trainer.global_step == 2:
        os.kill(os.getpid(), getattr(signal, happens))
    real(self, trainer, *arguments)
callbacks.SeedEachBatch.on_train_batch_start = hooked
main()
"""

# Runs the command, but the process of rank 1 has memory for MOST images at once, after step FROM.
SHORT_OF_MEMORY = """
import torch
from crossformerpp.cli import main
from crossformerpp.tasks.classification.module import ClassificationModule
real = ClassificationModule.loss
def loss(self, batch):
    losses = real(self, batch)
    if self.global_rank == 1 and len(batch[0]) > MOST and FROM <= self.global_step:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return losses
ClassificationModule.loss = loss
main()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe without chance (mixup and drop path draw per process) on 128 + 61 digits as files."""
    root = tmp_path_factory.mktemp("digits")
    digits = open_digits("train", 32)
    for number in range(128 + 61):
        folder = root / ("train" if number < 128 else "val") / digits.class_names[digits.labels[number]]
        folder.mkdir(parents=True, exist_ok=True)
        digits.open(number).save(folder / f"{number}.png")
    values = tiny_values()
    values["data"] |= {"source": "folder", "root": str(root)}
    values["augment"] = {"flip": 0.0}
    values["model"]["options"]["drop_path_rate"] = 0.0
    values["trainer"] |= {"eval_batch_size": 16, "log_every": 1, "checkpoint_every": 1}
    path = root / "page.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def alone(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    engine.train(load_recipe(str(page)), run)
    return run


def torchrun(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    texts = [str(part) for part in command]
    return subprocess.run(
        texts, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(page: Path, alone: Path, tmp_path: Path) -> None:
    result = torchrun("-m", "crossformerpp", "train", page, "--out", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"top1"') == 1  # only one of them prints
    assert "2 process(es) on cpu" in result.stderr
    ours, theirs = rows(tmp_path / "run" / "metrics.csv"), rows(alone / "metrics.csv")
    for column in ("train_loss", "lr", "val_loss", "val_top1", "val_calibration_error"):
        values = [float(row[column]) for row in theirs if row[column]]
        assert len(values) == (4 if column in ("train_loss", "lr") else 2)
        assert [float(row[column]) for row in ours if row[column]] == pytest.approx(values, rel=2e-3)
    found, expected = rows(tmp_path / "run" / "predictions.csv"), rows(alone / "predictions.csv")
    assert len(found) == 61
    assert [row["sample"] for row in found] == [row["sample"] for row in expected]
    one, two = (read_training_state(run / "checkpoints" / "last.ckpt") for run in (alone, tmp_path / "run"))
    for a, b in zip(
        one["optimizer_states"][0]["state"].values(),
        two["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_two_processes_draw_the_same_groups(page: Path, tmp_path: Path) -> None:
    """Were they to draw apart, their mean gradient would be another than that of one process."""
    elastic = "model.elastic={group_sizes: [[1, 8], [1, 4], [1, 2], [1]], per: block, draw: [random, random]}"
    engine.train(load_recipe(str(page), [elastic]), tmp_path / "alone")
    result = torchrun(
        "-m", "crossformerpp", "train", page, "--set", elastic, "--out", tmp_path / "run", "--json"
    )
    assert result.returncode == 0, result.stderr
    ours, theirs = (rows(tmp_path / name / "metrics.csv") for name in ("run", "alone"))
    values = [float(row["train_loss"]) for row in theirs if row["train_loss"]]
    assert [float(row["train_loss"]) for row in ours if row["train_loss"]] == pytest.approx(values, rel=2e-3)
    one, two = (
        read_training_state(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("alone", "run")
    )
    for a, b in zip(
        one["optimizer_states"][0]["state"].values(),
        two["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_all_stop_when_one_is_asked_and_another_number_of_them_goes_on(
    page: Path, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    result = torchrun(tmp_path / "program.py", "SIGINT", "train", page, "--out", tmp_path / "run")
    assert result.stderr.count("interrupted; resume with: crossformer train --resume") == 1, result.stderr
    assert "exitcode  : 130" in result.stderr
    assert read_training_state(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3
    engine.resume(tmp_path / "run")
    ours, theirs = rows(tmp_path / "run" / "metrics.csv"), rows(alone / "metrics.csv")
    values = [float(row["train_loss"]) for row in theirs if row["train_loss"]]
    assert [float(row["train_loss"]) for row in ours if row["train_loss"]] == pytest.approx(values, rel=2e-3)


@pytest.mark.slow
def test_when_one_dies_the_other_stops(page: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # torchrun's time limit here is far below the half hour that a lone process would wait for the other
    result = torchrun(tmp_path / "program.py", "SIGKILL", "train", page, "--out", tmp_path / "run")
    assert result.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL) received" in result.stderr
    assert read_training_state(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_what_torchrun_or_slurm_started_is_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    section = TrainerSection(epochs=1)
    assert processes.layout(section) == ("auto", 1)
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert processes.layout(section) == (8, 2)
    assert processes.world(section) == 16
    with pytest.raises(ValueError, match=r"trainer\.devices is 3, but 8 were started; leave it out"):
        processes.layout(TrainerSection(epochs=1, devices=3))
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell on a node, which starts nothing
    assert processes.layout(section) == ("auto", 1)


def test_batch_norm_is_synchronised_where_several_gpus_train(monkeypatch: pytest.MonkeyPatch) -> None:
    two, not_so = ["trainer.devices=2", "trainer.accelerator=auto"], "trainer.sync_batchnorm=false"
    assert not processes.settings(tiny_recipe(*two))["sync_batchnorm"]  # CPUs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.settings(tiny_recipe(*two))["sync_batchnorm"]
    assert not processes.settings(tiny_recipe(*two, not_so))["sync_batchnorm"]
    assert not processes.settings(tiny_recipe(*two, "trainer.devices=1"))["sync_batchnorm"]


def test_sharded_training_wants_gpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.strategy=fsdp needs GPUs; use ddp on CPUs"):
        engine.train(tiny_recipe("trainer.strategy=fsdp"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_changes_the_batches_of_all(page: Path, tmp_path: Path) -> None:
    """32 images do not fit in rank 1, nor do 16, of which a step has two batches: the run is that with four of 8."""
    program = tmp_path / "program.py"
    program.write_text(SHORT_OF_MEMORY.replace("MOST", "8").replace("FROM", "0"))
    result = torchrun(program, "train", page, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "are taken in 2 batches instead of 1" in result.stderr
    assert "are taken in 4 batches instead of 2" in result.stderr
    accumulated = ("--set", "trainer.accumulate=4")
    expected = torchrun("-m", "crossformerpp", "train", page, "--out", tmp_path / "four", *accumulated)
    assert expected.returncode == 0, expected.stderr
    four, run = (
        read_training_state(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("four", "run")
    )
    assert all(torch.equal(value, run["state_dict"][key]) for key, value in four["state_dict"].items())


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_later_ends_all_of_them_with_what_to_do(
    page: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(SHORT_OF_MEMORY.replace("MOST", "16").replace("FROM", "3"))
    result = torchrun(program, "train", page, "--out", tmp_path / "run")
    assert result.returncode != 0
    assert "out of memory at step 4 in one of 2 processes: pass --set trainer.accumulate=2" in result.stderr
