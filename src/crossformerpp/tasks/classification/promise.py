"""Where a trained classifier keeps its conformal threshold, and how an evaluation makes and judges it.

The threshold lies beside the weights (RUN/conformal.json) and names those it was calibrated with: after more training
it is void.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from crossformerpp.analysis.conformal import Promise, calibrate, crossed
from crossformerpp.data.names import read_json
from crossformerpp.data.writing import write_json
from crossformerpp.tasks.saved import SavedRun

if TYPE_CHECKING:  # it needs torchmetrics, predictions do not
    from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation

FILE = "conformal.json"
_VALUES = 64  # of each tensor, in a fingerprint


class _Page(BaseModel):
    coverage: float = Field(gt=0, lt=1)
    threshold: float = Field(ge=0, le=1)
    samples: int = Field(ge=1)
    weights: str


def promise_file(saved: SavedRun) -> Path:
    """Where a classifier's threshold lies."""
    return kept_beside(saved, FILE)


def kept_beside(saved: SavedRun, name: str) -> Path:
    """In the run's folder or the shared one; beside any other checkpoint."""
    folder = saved.path.parent
    if folder.name == "checkpoints":
        return folder.parent / name
    return (
        folder / name
        if (folder / "config.json").is_file()
        else saved.path.with_name(f"{saved.path.name}.{name}")
    )


def read_promise(saved: SavedRun) -> Promise | None:
    """The threshold of these weights; None, with a warning, if it is of others, or if they run at another setting.

    Raises:
        ValueError: The file is damaged.
    """
    path = promise_file(saved)
    if not path.is_file():
        return None
    if saved.is_at_point:
        warnings.warn(
            f"{path}: calibrated at the run's own setting and not used at a point of its front", stacklevel=2
        )
        return None
    try:
        page = _Page.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(
            f"{path}: damaged ({error.errors()[0]['msg']}); `crossformer eval RUN --conformal 0.9` writes it again"
        ) from None
    if page.weights != fingerprint(saved.weights):
        warnings.warn(
            f"{path}: calibrated with other weights and not used; `crossformer eval RUN --conformal {page.coverage:g}` "
            "does it again",
            stacklevel=2,
        )
        return None
    return Promise(page.coverage, page.threshold, page.samples)


def write_promise(saved: SavedRun, promise: Promise) -> Path:
    """Keep the threshold beside the weights."""
    path = promise_file(saved)
    write_json(path, promise.to_json() | {"weights": fingerprint(saved.weights)})
    return path


def judge_promise(
    evaluation: ClassificationEvaluation, promise: Promise | None, coverage: float | None, is_other: bool
) -> tuple[ClassificationEvaluation, Promise | None]:
    """The evaluation with metrics of the promise, and the promise, calibrated if `coverage` asks for it.

    Args:
        is_other: Whether the data are others than the validation data, which the threshold was calibrated on.

    Raises:
        ValueError: As `calibrate`.
    """
    probabilities, labels = evaluation.probabilities.numpy(), evaluation.labels.numpy()
    if coverage is not None:
        promise = calibrate(probabilities, labels, coverage)
    if promise is None:
        return evaluation, None
    metrics = (
        promise.metrics(probabilities, labels)
        if is_other and coverage is None
        else crossed(probabilities, labels, promise.coverage)
    )
    return replace(evaluation, promised=metrics), promise


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of the first values of every tensor, in whatever order a file has them: some change with every training step."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].flatten()[:_VALUES].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
