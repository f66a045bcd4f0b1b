"""The facts that a classifier's report shows, from the run's files, its data and a short timing of its model."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from crossformerpp.analysis import layer_pictures
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.report import DrawnFigure, Report, Shown, Table
from crossformerpp.data.classification import LabelledImages
from crossformerpp.data.names import read_text
from crossformerpp.data.pixels import Pixels
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.models.crossformer import CrossFormer
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.classification import open_images
from crossformerpp.tasks.classification.predictor import open_classifier, readable
from crossformerpp.tasks.report import REPAIR, FinishedRun, open_run, parts_of_model, speed, stages_of

NUM_MISTAKES, NUM_RIGHT, NUM_CLASSES = 24, 40, 25  # shown at most
MONITOR = "top1"  # the metric of the learning curve
_MAX_DRAWN_SIDE = 16  # tokens; the numbers in a larger map could not be read


@dataclass(frozen=True)
class ClassifierRun:
    """A finished run, with predictions.csv, its validation images and the trained model."""

    run: FinishedRun
    recipe: ClassificationRecipe
    answers: list[dict[str, str]]
    source: LabelledImages
    predictor: Any  # of its kind

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def metrics(self) -> dict[str, Any]:
        return self.run.metrics


def _open(path: Path) -> ClassifierRun:
    columns = ("sample", "label", "predicted", "confidence", "correct")
    return open_classifier_run(path, ("top1", "samples", "mean_class_accuracy"), columns)


def open_classifier_run(path: Path, metrics: Sequence[str], columns: Sequence[str]) -> ClassifierRun:
    """A finished run, whose metrics.json and predictions.csv have these.

    Raises:
        ValueError: It is no finished run, or its data is not where it was.
    """
    run = open_run(path, metrics)
    recipe = run.recipe
    assert isinstance(recipe, ClassificationRecipe)
    return ClassifierRun(
        run,
        recipe,
        run.table("predictions.csv", columns),
        open_images(recipe, "val", run.saved.class_names),
        open_classifier(run.saved, top_k=3),
    )


def describe_run(path: Path, seconds: float = 2.0) -> Report:
    """Gather the report of a finished run.

    Args:
        seconds: About how long to time the model.

    Raises:
        ValueError: It is no finished run of a classifier, or its data is not where it was.
    """
    run = _open(path)
    timed = model_speed(run, seconds)
    wrong, right = _chosen(run.answers)
    return Report(
        title=f"{run.metrics['top1']:.1%} of {run.metrics['samples']:,} images correct",
        headline=[
            (f"{run.metrics['top1']:.2%}", "top-1 accuracy"),
            (f"{run.metrics['mean_class_accuracy']:.2%}", "mean over classes (balanced accuracy)"),
            *costs(run, timed),
        ],
        mistakes=_shown(run, wrong),
        right=_shown(run, right),
        confusion=_confusion(run),
        classes=_worst_classes(run),
        speed=timed,
        **common_facts(run, MONITOR),
    )


def common_facts(run: ClassifierRun, monitor: str) -> dict[str, Any]:
    """What the reports of all classifiers say alike."""
    return {
        "subtitle": (
            f"{run.recipe.model.name}, trained on {len(run.run.saved.class_names)} classes with "
            f"{run.run.about['train_samples']:,} images of {run.run.data} and evaluated on "
            f"{run.metrics['samples']:,} others."
        ),
        "num_mistakes": sum(row["correct"] == "0" for row in run.answers),
        "num_samples": len(run.answers),
        "figures": [run.run.learning_curve(monitor), *_attention_groups(run)],
        "class_names": run.run.saved.class_names,
        "model": parts_of_model(run.predictor.model, run.recipe.data.size),
        "machine": run.run.machine,
        "next_steps": _next_steps(run),
        "about": run.run.beginning,
        "recipe": read_text(run.path / "recipe.yaml"),
    }


def costs(run: ClassifierRun, timed: Table) -> list[tuple[str, str]]:
    """(figure, what it is) of the model's size and speed."""
    size = run.recipe.data.size
    cost = count_complexity(run.predictor.model, (run.recipe.data.channels, size, size))
    return [
        (f"{cost.params / 1e6:.2f}M", "parameters"),
        (f"{cost.macs / 1e6:,.1f}M", f"multiply-accumulates at {size}×{size}"),
        (str(run.run.training_time), "h:min:s of training"),
        (timed.rows[0][1], "for one image"),
    ]


def _chosen(answers: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The most confident mistakes, and an even sample of correct predictions."""
    wrong = [row for row in answers if row["correct"] == "0"]
    right = [row for row in answers if row["correct"] == "1"]
    wrong.sort(key=lambda row: float(row["confidence"]), reverse=True)
    return wrong[:NUM_MISTAKES], right[:: max(1, len(right) // NUM_RIGHT)][:NUM_RIGHT]


def with_images(
    run: ClassifierRun, answers: Sequence[dict[str, str]]
) -> Iterator[tuple[dict[str, str], Image.Image | Pixels]]:
    """Rows of predictions.csv, with their images.

    Raises:
        ValueError: One is gone.
    """
    numbers = {name: number for number, name in enumerate(run.source.names)}
    for row in answers:
        if row["sample"] not in numbers:
            raise ValueError(
                f"{run.path / 'predictions.csv'}: names {row['sample']}, which is no longer in the data; {REPAIR}"
            )
        yield row, run.source.load(numbers[row["sample"]])


def picture_of(image: Image.Image | Pixels) -> Image.Image:
    """An RGB picture of an image as the predictor takes it."""
    return image if isinstance(image, Image.Image) else image.preview()


def _shown(run: ClassifierRun, answers: Sequence[dict[str, str]]) -> list[Shown]:
    shown = []
    for row, image in with_images(run, answers):
        truth = readable([row["label"]])[0] if row["correct"] == "0" else None
        shown.append(Shown(picture_of(image), row["sample"], truth, run.predictor(image).top))
    return shown


def _attention_groups(run: ClassifierRun) -> list[DrawnFigure]:
    """The groups of the first stage, if its map is small enough to draw."""
    model, size = run.predictor.model, run.recipe.data.size
    if not isinstance(model, CrossFormer):
        return []
    stage = stages_of(model)[0]
    stride = stage.embedding.stride
    side = -(-size // stride)
    if side > _MAX_DRAWN_SIDE:
        return []
    attentions: list[Any] = [block.attn for block in stage.blocks][:2]
    if len(attentions) < 2 or not all(isinstance(attn, GroupAttention) for attn in attentions):
        return []
    image = ImageOps.fit(run.source.open(0), (size, size))
    return [
        DrawnFigure(
            "Attention groups",
            f"Every {stride}×{stride} pixels of an image form a token of the first stage's {side}×{side} map. A token "
            "attends to the tokens with its number: its neighbours in short-distance blocks (SDA), tokens at an "
            "interval in the alternating long-distance blocks (LDA).",
            partial(layer_pictures.groups, [(side, side)], [attn.rule for attn in attentions], image),
        )
    ]


def _confusion(run: ClassifierRun) -> np.ndarray:
    number = {name: place for place, name in enumerate(run.run.saved.class_names)}
    counts = np.zeros((len(number), len(number)), dtype=int)
    for row in run.answers:
        if not {row["label"], row["predicted"]} <= number.keys():
            raise ValueError(f"{run.path / 'predictions.csv'}: damaged, it names unknown classes; {REPAIR}")
        counts[number[row["label"]], number[row["predicted"]]] += 1
    return counts


def _worst_classes(run: ClassifierRun) -> Table:
    rows = [
        row
        for row in run.run.table("classes.csv", ("class", "samples", "accuracy", "most_often_taken_for"))
        if row["accuracy"]
    ]
    rows.sort(key=lambda row: float(row["accuracy"]))
    return Table(
        ("class", "samples", "accuracy", "precision", "F1", "mostly taken for"),
        [
            (
                row["class"],
                row["samples"],
                *(percent(row.get(key)) for key in ("accuracy", "precision", "f1")),
                row["most_often_taken_for"],
            )
            for row in rows[:NUM_CLASSES]
        ],
    )


def percent(share: str | None) -> str:
    """Of a cell; older runs lack some."""
    return f"{float(share):.1%}" if share else ""


def model_speed(run: ClassifierRun, seconds: float) -> Table:
    model, data = run.predictor.model, run.recipe.data
    calls: dict[str, Any] = {
        f"{count} image{'s' if count > 1 else ''} at once": (
            count,
            partial(model, torch.zeros(count, data.channels, data.size, data.size)),
        )
        for count in (1, 32)
    }
    return speed(run.run, calls, seconds)


def _next_steps(run: ClassifierRun) -> list[tuple[str, str]]:
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
