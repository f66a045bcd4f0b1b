"""Loggers by recipe: none required, none that waits or asks, and a resumed run goes on in its logged run."""

import csv
import importlib.util
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from crossformerpp import engine
from crossformerpp.engine import loggers
from tiny import tiny_recipe

LOG = "trainer.log_every=1"


def installed(*modules: str) -> Any:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)}")


def interrupted_and_resumed(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of metrics.csv of a run of two steps that became one of four."""
    engine.train(tiny_recipe(f"trainer.loggers=[{name}]", LOG, "trainer.steps=2"), run)
    engine.resume(run, ["trainer.steps=4"])
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(rows: list[dict[str, str]]) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["train_loss"])) for row in rows if row["train_loss"]]


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"wandb is not installed: pip install wandb .*loggers=\[tensorboard\]"
    ):
        engine.train(tiny_recipe("trainer.loggers=[tensorboard,wandb]"), tmp_path / "run")
    with pytest.raises(ValueError, match="tensorboard is there twice"):
        engine.train(tiny_recipe("trainer.loggers=[tensorboard,tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_loggers_has_its_own_files_alone(tmp_path: Path) -> None:
    rows = interrupted_and_resumed(tmp_path / "run", "")
    assert [step for step, _ in losses(rows)] == [1, 2, 3, 4]
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "loggers.json").exists()


@installed("mlflow", "sqlalchemy")
def test_mlflow_keeps_one_run_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    run = tmp_path / "run"
    rows = interrupted_and_resumed(run, "mlflow")
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'crossformerpp'")
    (logged,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(logged.info.run_id, "train_loss")
    assert [(each.step, pytest.approx(each.value, rel=1e-6)) for each in history] == losses(rows)
    assert logged.info.status == "FINISHED"


@installed("trackio")
def test_trackio_keeps_one_run_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "run" / "trackio"))
    rows = interrupted_and_resumed(tmp_path / "run", "trackio")
    assert capsys.readouterr().out == ""
    (file,) = (tmp_path / "run" / "trackio").glob("*.db")
    with sqlite3.connect(file) as connection:
        found = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, *_ in found}) == 1
    logged = [(step, json.loads(metrics)) for _, step, metrics in found]
    ours = [(step, metrics["train_loss"]) for step, metrics in logged if "train_loss" in metrics]
    assert [(step, pytest.approx(value, rel=1e-6)) for step, value in ours] == losses(rows)


@installed("wandb")
def test_wandb_without_a_key_keeps_one_offline_run_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    interrupted_and_resumed(tmp_path / "run", "wandb")
    name = json.loads((tmp_path / "run" / "loggers.json").read_text())["wandb"]
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert folders
    assert all(folder.name.endswith(f"-{name}") for folder in folders)


@installed("wandb")
@pytest.mark.slow
def test_wandb_that_cannot_be_reached_logs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(loggers, "LOGIN_SECONDS", 3)
    with pytest.warns(UserWarning, match=r"W&B cannot be reached .* offline"):
        engine.train(tiny_recipe("trainer.loggers=[wandb]", "trainer.steps=2"), tmp_path / "run")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
