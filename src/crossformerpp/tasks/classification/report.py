"""The facts that a classifier's report shows, from the run's files, its data and a short timing of its model."""

import csv
import io
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import ImageOps

from crossformerpp.analysis import layer_pictures
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.pictures import draw_learning_curve
from crossformerpp.analysis.report import DrawnFigure, Report, Shown, Table
from crossformerpp.analysis.throughput import time_in_turn
from crossformerpp.data.classification import LabelledImages
from crossformerpp.data.names import read_json, read_text
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.models.crossformer import CrossFormer, CrossFormerStage
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.classification import open_images
from crossformerpp.tasks.classification.predictor import ClassificationPredictor, readable
from crossformerpp.tasks.saved import SavedRun, open_saved

NUM_MISTAKES, NUM_RIGHT, NUM_CLASSES = 24, 40, 25  # shown at most
MONITOR = "top1"  # the metric of the learning curve
_REPAIR = "`crossformer train --resume RUN` evaluates the run again"
_MAX_DRAWN_SIDE = 16  # tokens; the numbers in a larger map could not be read


@dataclass(frozen=True)
class _FinishedRun:
    """A run with what it wrote; `curve` is metrics.csv, `answers` predictions.csv."""

    path: Path
    saved: SavedRun
    recipe: ClassificationRecipe
    about: dict[str, Any]
    metrics: dict[str, Any]
    curve: list[dict[str, float]]
    answers: list[dict[str, str]]
    source: LabelledImages
    predictor: ClassificationPredictor

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


def _open(run: Path) -> _FinishedRun:
    saved = open_saved(run)
    recipe = saved.recipe
    if not isinstance(recipe, ClassificationRecipe):
        raise ValueError(f"{run}: a run of {recipe.task}; reports exist for classification only")
    if not (run / "metrics.json").is_file():
        raise ValueError(f"{run}: no metrics.json in it; finish it: crossformer train --resume {run}")
    return _FinishedRun(
        path=run,
        saved=saved,
        recipe=recipe,
        about=_read_page(run / "run.json", ("train_samples", "command", "started", "platform", "packages")),
        metrics=_read_page(run / "metrics.json", ("top1", "samples", "mean_class_accuracy")),
        curve=_read_curve(run / "metrics.csv"),
        answers=_rows(run / "predictions.csv", ("sample", "label", "predicted", "confidence", "correct")),
        source=open_images(recipe, "val", saved.class_names),
        predictor=ClassificationPredictor(saved, top_k=3),
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
        raise ValueError(f"{path}: damaged ({error}); {_REPAIR}") from None


def _damaged(path: Path, missing: Sequence[str]) -> ValueError:
    return ValueError(f"{path}: damaged, it has no {', '.join(missing)}; {_REPAIR}")


def describe_run(path: Path, seconds: float = 2.0) -> Report:
    """Gather the report of a finished run.

    Args:
        seconds: About how long to time the model.

    Raises:
        ValueError: It is no finished run of a classifier, or its data is not where it was.
    """
    run = _open(path)
    speed = _speed(run, seconds)
    wrong, right = _chosen(run.answers)
    data = run.recipe.data.root or f"the built-in {run.recipe.data.source}"
    return Report(
        title=f"{run.metrics['top1']:.1%} of {run.metrics['samples']:,} images correct",
        subtitle=(
            f"{run.recipe.model.name}, trained on {len(run.saved.class_names)} classes with "
            f"{run.about['train_samples']:,} images of {data} and evaluated on {run.metrics['samples']:,} others."
        ),
        headline=_headline(run, speed),
        num_mistakes=sum(row["correct"] == "0" for row in run.answers),
        num_samples=len(run.answers),
        mistakes=_shown(run, wrong),
        right=_shown(run, right),
        figures=_figures(run),
        class_names=run.saved.class_names,
        confusion=_confusion(run),
        classes=_worst_classes(run),
        model=_parts_of_model(run),
        speed=speed,
        machine=f"{platform.platform()}, {os.cpu_count()} cores, {run.threads} of them used; PyTorch "
        f"{torch.__version__}. Other programs may have been running.",
        next_steps=_next_steps(run),
        about=[(key, _text(run.about[key])) for key in ("command", "started", "platform", "packages")],
        recipe=read_text(path / "recipe.yaml"),
    )


def _headline(run: _FinishedRun, speed: Table) -> list[tuple[str, str]]:
    size = run.recipe.data.size
    cost = count_complexity(run.predictor.model, (3, size, size))
    return [
        (f"{run.metrics['top1']:.2%}", "top-1 accuracy"),
        (f"{run.metrics['mean_class_accuracy']:.2%}", "mean over classes"),
        (f"{cost.params / 1e6:.2f}M", "parameters"),
        (f"{cost.macs / 1e6:,.1f}M", f"multiply-accumulates at {size}×{size}"),
        (str(run.training_time), "h:min:s of training"),
        (speed.rows[0][1], "for one image"),
    ]


def _chosen(answers: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The most confident mistakes, and an even sample of correct predictions."""
    wrong = [row for row in answers if row["correct"] == "0"]
    right = [row for row in answers if row["correct"] == "1"]
    wrong.sort(key=lambda row: float(row["confidence"]), reverse=True)
    return wrong[:NUM_MISTAKES], right[:: max(1, len(right) // NUM_RIGHT)][:NUM_RIGHT]


def _shown(run: _FinishedRun, answers: Sequence[dict[str, str]]) -> list[Shown]:
    numbers = {name: number for number, name in enumerate(run.source.names)}
    shown = []
    for row in answers:
        if row["sample"] not in numbers:
            raise ValueError(
                f"{run.path / 'predictions.csv'}: names {row['sample']}, which is no longer in the data; {_REPAIR}"
            )
        image = run.source.open(numbers[row["sample"]])
        truth = readable([row["label"]])[0] if row["correct"] == "0" else None
        shown.append(Shown(image, row["sample"], truth, run.predictor(image).top))
    return shown


def _figures(run: _FinishedRun) -> list[DrawnFigure]:
    curve = DrawnFigure(
        "Learning curve",
        "The training loss is higher than the validation loss where augmentation, drop path and label smoothing "
        "make training harder than evaluation.",
        partial(draw_learning_curve, run.curve, MONITOR),
    )
    return [curve, *_groups(run)]


def _groups(run: _FinishedRun) -> list[DrawnFigure]:
    """The groups of the first stage, if its map is small enough to draw."""
    model, size = run.predictor.model, run.recipe.data.size
    side = -(-size // 4)
    if not isinstance(model, CrossFormer) or side > _MAX_DRAWN_SIDE:
        return []
    attentions: list[Any] = [block.attn for block in _stages(model)[0].blocks][:2]
    if len(attentions) < 2 or not all(isinstance(attn, GroupAttention) for attn in attentions):
        return []
    image = ImageOps.fit(run.source.open(0), (size, size))
    return [
        DrawnFigure(
            "Attention groups",
            f"Every 4×4 pixels of an image form a token of the first stage's {side}×{side} map. A token attends to the "
            "tokens with its number: its neighbours in short-distance blocks (SDA), tokens at an interval in the "
            "alternating long-distance blocks (LDA).",
            partial(layer_pictures.groups, [(side, side)], [attn.rule for attn in attentions], image),
        )
    ]


def _confusion(run: _FinishedRun) -> np.ndarray:
    number = {name: place for place, name in enumerate(run.saved.class_names)}
    counts = np.zeros((len(number), len(number)), dtype=int)
    for row in run.answers:
        if not {row["label"], row["predicted"]} <= number.keys():
            raise ValueError(f"{run.path / 'predictions.csv'}: damaged, it names unknown classes; {_REPAIR}")
        counts[number[row["label"]], number[row["predicted"]]] += 1
    return counts


def _worst_classes(run: _FinishedRun) -> Table:
    rows = [
        row
        for row in _rows(run.path / "classes.csv", ("class", "samples", "accuracy", "most_often_taken_for"))
        if row["accuracy"]
    ]
    rows.sort(key=lambda row: float(row["accuracy"]))
    return Table(
        ("class", "samples", "accuracy", "mostly taken for"),
        [
            (row["class"], row["samples"], f"{float(row['accuracy']):.1%}", row["most_often_taken_for"])
            for row in rows[:NUM_CLASSES]
        ],
    )


def _parts_of_model(run: _FinishedRun) -> Table:
    """The stages of a CrossFormer; of any other model its parts."""
    model, side = run.predictor.model, run.recipe.data.size
    if not isinstance(model, CrossFormer):
        return Table(("part", "params"), [(name, _count(part)) for name, part in model.named_children()])
    rows = []
    for number, stage in enumerate(_stages(model), start=1):
        side = -(-side // stage.embedding.stride)
        blocks: list[Any] = list(stage.blocks)
        is_lsda = all(isinstance(block.attn, GroupAttention) for block in blocks)
        rows.append(
            (
                f"stage {number}",
                f"{side}×{side}",
                str(model.feature_info[number - 1]["num_chs"]),
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
    return Table(columns, [*rows, ("head", *[""] * 7, _count(model.head))])


def _stages(model: CrossFormer) -> list[CrossFormerStage]:
    return cast("list[CrossFormerStage]", list(model.stages))


def _values(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _count(part: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in part.parameters()):,}"


def _speed(run: _FinishedRun, seconds: float) -> Table:
    """Inference speed as measured now, and training speed as logged."""
    model, size = run.predictor.model, run.recipe.data.size
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with torch.inference_mode():
            calls = {count: partial(model, torch.zeros(count, 3, size, size)) for count in (1, 32)}
            timings = time_in_turn({str(count): call for count, call in calls.items()}, seconds)
    finally:
        torch.set_num_threads(before)
    rows = [
        (
            f"{count} image{'s' if count > 1 else ''} at once",
            f"{1e3 * t.median:.1f} ms",
            f"{count / t.median:,.0f}",
        )
        for count, t in zip(calls, timings.values(), strict=True)
    ]
    if run.logged:
        median = np.median([row["samples_per_second"] for row in run.logged])
        rows.append(("training, with augmentation", "", f"{median:,.0f}"))
    return Table(("what", "median time", "images/s"), rows)


def _next_steps(run: _FinishedRun) -> list[tuple[str, str]]:
    place = shlex.quote(str(run.path))
    steps = [
        ("Predict your own images:", f"crossformer predict {place} PHOTOS"),
        (
            "Train on a folder of your photographs, one folder per class:",
            "crossformer train folder --data PHOTOS",
        ),
        (
            "Change any setting of this run and compare:",
            f"crossformer train {place}/recipe.yaml --set model.options.cooling=2 --out runs/other",
        ),
    ]
    if run.recipe.data.source == "digits":
        steps.append(
            (
                "Detect digits in photographs, with this run as the backbone:",
                f"crossformer train digit_scenes/mask_rcnn --set model.checkpoint={place}",
            )
        )
    return steps


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
