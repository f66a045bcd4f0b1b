"""What the reports of all tasks have in common: a finished run's files, its model and its speed."""

import csv
import io
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from crossformerpp.analysis.pictures import draw_learning_curve
from crossformerpp.analysis.report import DrawnFigure, Table
from crossformerpp.analysis.throughput import time_in_turn
from crossformerpp.data.names import read_json, read_text
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.models.crossformer import CrossFormer, CrossFormerStage
from crossformerpp.tasks.saved import SavedRun, open_saved

REPAIR = "`crossformer train --resume RUN` evaluates the run again"


@dataclass(frozen=True)
class FinishedRun:
    """A run with what it wrote; `curve` is metrics.csv."""

    path: Path
    saved: SavedRun
    about: dict[str, Any]
    metrics: dict[str, Any]
    curve: list[dict[str, float]]

    @property
    def recipe(self) -> Any:
        """Of the task's own kind."""
        return self.saved.recipe

    @property
    def threads(self) -> int:
        return self.recipe.trainer.threads or torch.get_num_threads()

    @property
    def logged(self) -> list[dict[str, float]]:
        """Rows of the curve that record the speed of training; none in a very short run."""
        return [row for row in self.curve if "samples_per_second" in row]

    @property
    def training_time(self) -> timedelta:
        """Of training steps alone, without evaluations."""
        steps = np.diff([0.0] + [row["step"] for row in self.logged])
        speeds = np.array([row["samples_per_second"] for row in self.logged])
        return timedelta(seconds=round(float((steps * self.recipe.trainer.batch_size / speeds).sum())))

    @property
    def data(self) -> str:
        """What it was trained on, in words."""
        return str(self.recipe.data.root or f"the built-in {self.recipe.data.source}")

    @property
    def machine(self) -> str:
        return (
            f"{platform.platform()}, {os.cpu_count()} cores, {self.threads} of them used; PyTorch "
            f"{torch.__version__}. Other programs may have been running."
        )

    @property
    def beginning(self) -> list[tuple[str, str]]:
        """(what, how it was) of the run's beginning."""
        keys = ("command", "started", "platform", "packages")
        return [(key, _text(self.about[key])) for key in keys]

    def table(self, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
        """The rows of one of its CSV files.

        Raises:
            ValueError: It lacks a column.
        """
        return _rows(self.path / name, columns)

    def learning_curve(self, monitor: str) -> DrawnFigure:
        return DrawnFigure(
            "Learning curve",
            "The training loss is higher than the validation loss where augmentation, drop path and label smoothing "
            "make training harder than evaluation.",
            partial(draw_learning_curve, self.curve, monitor),
        )


def open_run(run: Path, metrics: Sequence[str]) -> FinishedRun:
    """Open a run that has been evaluated.

    Args:
        metrics: Keys that its metrics.json must have.

    Raises:
        ValueError: It is no finished run, or a file is damaged.
    """
    saved = open_saved(run)
    if not (run / "metrics.json").is_file():
        raise ValueError(f"{run}: no metrics.json in it; finish it: crossformer train --resume {run}")
    return FinishedRun(
        path=run,
        saved=saved,
        about=_read_page(run / "run.json", ("train_samples", "command", "started", "platform", "packages")),
        metrics=_read_page(run / "metrics.json", metrics),
        curve=_read_curve(run / "metrics.csv"),
    )


def _read_page(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    page = read_json(path)
    missing = keys if not isinstance(page, dict) else [key for key in keys if page.get(key) is None]
    if missing:
        raise _damaged(path, missing)
    return page


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [column for column in columns if column not in (table.fieldnames or ())]
    if missing:
        raise _damaged(path, missing)
    return [row for row in table if None not in row.values() and None not in row]


def _read_curve(path: Path) -> list[dict[str, float]]:
    try:
        return [{k: float(v) for k, v in row.items() if v} for row in _rows(path, ("step", "epoch"))]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); {REPAIR}") from None


def _damaged(path: Path, missing: Sequence[str]) -> ValueError:
    return ValueError(f"{path}: damaged, it has no {', '.join(missing)}; {REPAIR}")


def parts_of_model(model: nn.Module, side: int) -> Table:
    """The stages of the CrossFormer in a model that sees images of `side` pixels; of any other model its parts."""
    found = [part for part in model.modules() if isinstance(part, CrossFormer)]
    if not found:
        return Table(("part", "params"), [(name, _count(part)) for name, part in model.named_children()])
    rows, stages = [], stages_of(found[0])
    for number, stage in enumerate(stages, start=1):
        side = -(-side // stage.embedding.stride)
        blocks: list[Any] = list(stage.blocks)
        is_lsda = all(isinstance(block.attn, GroupAttention) for block in blocks)
        rows.append(
            (
                f"stage {number}",
                f"{side}×{side}",
                str(found[0].feature_info[number - 1]["num_chs"]),
                str(len(blocks)),
                str(blocks[0].attn.num_heads),
                _values(block.attn.rule.group_size if is_lsda else "" for block in blocks),
                _values(block.attn.rule.interval if is_lsda else "" for block in blocks),
                str(sum(block.cooling is not None for block in blocks)),
                _count(stage),
            )
        )
    columns = (
        "part",
        "map",
        "channels",
        "blocks",
        "heads",
        "group G",
        "interval I",
        "cooling layers",
        "params",
    )
    rest = _total(model) - sum(map(_total, stages))
    return Table(columns, [*rows, ("head" if found[0] is model else "all else", *[""] * 7, f"{rest:,}")])


def speed(run: FinishedRun, calls: dict[str, tuple[int, Callable[[], object]]], seconds: float) -> Table:
    """Inference as timed now, and training as logged.

    Args:
        calls: By what they do: the number of images, and the call.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with torch.inference_mode():
            timings = time_in_turn({name: call for name, (_, call) in calls.items()}, seconds)
    finally:
        torch.set_num_threads(before)
    rows = [
        (
            name,
            f"{1e3 * timings[name].median:.1f} ms",
            f"{count / timings[name].median:,.{0 if count > 9 else 1}f}",
        )
        for name, (count, _) in calls.items()
    ]
    if run.logged:
        median = np.median([row["samples_per_second"] for row in run.logged])
        rows.append(("training, with augmentation", "", f"{median:,.0f}"))
    return Table(("what", "median time", "images/s"), rows)


def stages_of(model: CrossFormer) -> list[CrossFormerStage]:
    """The stages, typed."""
    return cast("list[CrossFormerStage]", list(model.stages.children()))


def _values(values: Iterable[Any]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _total(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _count(part: nn.Module) -> str:
    return f"{_total(part):,}"


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
