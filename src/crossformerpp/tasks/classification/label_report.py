"""The facts that a multi-label classifier's report shows."""

from pathlib import Path

from crossformerpp.analysis.report import Report, Shown, Table
from crossformerpp.tasks.classification.label_sets import LabelSetModule
from crossformerpp.tasks.classification.report import (
    NUM_CLASSES,
    NUM_MISTAKES,
    NUM_RIGHT,
    ClassifierRun,
    common_facts,
    costs,
    model_speed,
    open_classifier_run,
    percent,
    picture_of,
    with_images,
)

_METRICS = ("mAP", "f1", "exact_match", "samples")
_COLUMNS = ("sample", "labels", "predicted", "probabilities", "correct")
_CLASS_COLUMNS = ("class", "samples", "average_precision", "threshold", "precision", "recall", "f1")
_TOP = 3  # bars beside an image


def describe_run(path: Path, seconds: float = 2.0) -> Report:
    """Gather the report of a finished run.

    Args:
        seconds: About how long to time the model.

    Raises:
        ValueError: It is no finished run of a multi-label classifier, or its data is not where it was.
    """
    run = open_classifier_run(path, _METRICS, _COLUMNS)
    timed = model_speed(run, seconds)
    wrong = [row for row in run.answers if row["correct"] == "0"]
    wrong.sort(key=lambda row: row["probabilities"], reverse=True)  # of equal width, the highest comes first
    right = [row for row in run.answers if row["correct"] == "1"]
    metrics = run.metrics
    return Report(
        title=f"All labels right in {metrics['exact_match']:.1%} of {metrics['samples']:,} images",
        headline=[
            (f"{metrics['mAP']:.2%}", "mean average precision"),
            (f"{metrics['f1']:.2%}", "F1, mean over classes"),
            *costs(run, timed),
        ],
        mistakes=_shown(run, wrong[:NUM_MISTAKES]),
        right=_shown(run, right[:: max(1, len(right) // NUM_RIGHT)][:NUM_RIGHT]),
        classes=_worst_classes(run),
        speed=timed,
        **common_facts(run, LabelSetModule.monitor),
    )


def _shown(run: ClassifierRun, answers: list[dict[str, str]]) -> list[Shown]:
    shown = []
    for row, image in with_images(run, answers):
        predictor = run.predictor
        shares = predictor.probabilities([predictor.prepare(image)])[0]
        top = [(predictor.class_names[label], float(shares[label])) for label in (-shares).argsort()[:_TOP]]
        truth = None if row["correct"] == "1" else _listed(row["labels"])
        shown.append(Shown(picture_of(image), row["sample"], truth, top, _listed(row["predicted"])))
    return shown


def _listed(labels: str) -> str:
    return labels.replace(";", ", ") or "none"


def _worst_classes(run: ClassifierRun) -> Table:
    rows = [row for row in run.run.table("classes.csv", _CLASS_COLUMNS) if row["f1"]]
    rows.sort(key=lambda row: float(row["f1"]))
    columns = ("class", "samples", "average precision", "threshold", "precision", "recall", "F1")
    cells = [
        (row["class"], row["samples"], *(percent(row[key]) for key in _CLASS_COLUMNS[2:]))
        for row in rows[:NUM_CLASSES]
    ]
    return Table(columns, cells)
