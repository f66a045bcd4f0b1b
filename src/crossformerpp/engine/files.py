"""Where a run keeps its files."""

import csv
import errno
import io
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

import crossformerpp
from crossformerpp.data.lock import RunLock
from crossformerpp.data.writing import disk_error, remove_unfinished, replacing, replacing_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            found = disk_error(error)
            reason = found.strerror if found is not None else str(error).splitlines()[0]
            number = found.errno if found is not None else errno.EIO
            kept = "; the checkpoint saved before is intact" if Path(path).exists() else ""
            raise OSError(number, f"could not be saved: {reason}{kept}", str(path)) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


class RunFolder:
    """The files of one run.

    recipe.yaml     every setting, resolved; `crossformer train RUN/recipe.yaml` repeats the run
    run.json        command, versions, device, sizes of the data and the model
    metrics.csv     a row per evaluation and every few steps between
    loggers.json    names of this run at W&B, MLflow and Trackio, with trainer.loggers
    inside.csv      amplitude and attention distance of every block, with trainer.inside_every
    metrics.json    of the final evaluation; beside it its pictures and tables
    checkpoints/    last.ckpt to resume from, best.ckpt
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.about = path / "run.json"
        self.metrics_csv = path / "metrics.csv"
        self.inside_csv = path / "inside.csv"
        self.loggers = path / "loggers.json"
        self.curve = path / "learning_curve.png"
        self.last = path / "checkpoints" / "last.ckpt"
        self.best = path / "checkpoints" / "best.ckpt"
        self.lock = RunLock(path)

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that holds something, unless it is a run that may be overwritten.

        Raises:
            ValueError: The folder is kept; says what to do.
        """
        if not self.path.exists() or (self.path.is_dir() and not self._content()):
            return
        if not self.recipe.is_file():
            raise ValueError(f"{self.path} exists and is not a run; choose another --out")
        if not overwrite:
            raise ValueError(f"{self.path} exists; choose another --out, or pass --overwrite or --resume")

    def create(self, recipe_page: str, overwrite: bool) -> None:
        """Begin the run in its folder, which is locked, replacing an older run if `overwrite`."""
        self.check(overwrite)
        self.sweep()
        for path in self._content():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.recipe:  # which a run is known by
                path.unlink()
        self.write_recipe(recipe_page)
        self.last.parent.mkdir()

    def write_recipe(self, page: str) -> None:
        """Write recipe.yaml."""
        with replacing(self.recipe) as file:
            file.write(page.encode())

    def sweep(self) -> None:
        """Remove what a killed process left half written."""
        remove_unfinished(self.path)

    def _content(self) -> list[Path]:
        """All but hidden files, as the lock is and what a killed process left half written."""
        return [path for path in self.path.iterdir() if not path.name.startswith(".")]

    def keep_as_best(self) -> None:
        """Make the last checkpoint the best one; takes no space until the next is saved."""
        with replacing_path(self.best) as unfinished:
            try:
                os.link(self.last, unfinished)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.last, unfinished)


class MetricsTable:
    """metrics.csv: rows of numbers with changing columns, complete on the disk after each row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def load(self, until_step: int) -> None:
        """Take up the rows of an interrupted run, without those after the step that is resumed."""
        if not self.path.is_file():
            return
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= until_step]
        self._write(self.rows, rewrite=True)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row, in the place of one with the same step and columns: an evaluation that was repeated.

        The file is rewritten only where it must be.
        """
        known = {name for old in self.rows for name in old}
        others = [old for old in self.rows if old["step"] != row["step"] or old.keys() != row.keys()]
        is_new = len(others) == len(self.rows) and known.issuperset(row)
        self.rows = [*others, dict(row)]
        self._write([dict(row)], rewrite=not is_new)

    def _write(self, rows: Sequence[Mapping[str, float]], rewrite: bool) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in self.rows for name in row)))
        if rewrite:
            writer.writeheader()
            rows = self.rows
        writer.writerows({k: f"{v:.8g}" for k, v in row.items()} for row in rows)
        with replacing(self.path) if rewrite else self.path.open("ab") as file:
            file.write(text.getvalue().encode())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; one that a kill cut off, and what an editor made of others, are left out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    complete = text[: text.rfind("\n") + 1]
    rows = []
    for row in csv.DictReader(io.StringIO(complete, newline="")):
        try:
            numbers = {key: float(value) for key, value in row.items() if value}
        except (TypeError, ValueError):
            continue
        if math.isfinite(numbers.get("step", math.nan)):
            rows.append(numbers)
    return rows


def surroundings(command: str) -> dict[str, Any]:
    """What else one must know to repeat a run."""
    packages = ("torch", "torchvision", "timm", "pytorch-lightning", "numpy", "pillow")
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "crossformerpp": crossformerpp.__version__,
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
