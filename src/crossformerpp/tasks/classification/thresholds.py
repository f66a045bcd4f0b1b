"""Where a trained multi-label classifier keeps the threshold of each class: RUN/thresholds.json, beside the weights.

Every evaluation of a run on its own validation data chooses them (`analysis.thresholds`). The file names the weights it
is of: after more training it is void.
"""

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from crossformerpp.analysis.thresholds import UNKNOWN
from crossformerpp.data.names import read_json
from crossformerpp.data.writing import write_json
from crossformerpp.tasks.classification.promise import fingerprint, kept_beside
from crossformerpp.tasks.saved import SavedRun

FILE = "thresholds.json"


class _Page(BaseModel):
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]]
    samples: int = Field(ge=1)
    weights: str


def thresholds_file(saved: SavedRun) -> Path:
    """Where a classifier's thresholds lie."""
    return kept_beside(saved, FILE)


def read_thresholds(saved: SavedRun) -> np.ndarray:
    """(K,) of float32; 0.5 where none are kept, and with a warning where those kept are of other weights.

    Raises:
        ValueError: The file is damaged.
    """
    path = thresholds_file(saved)
    unknown = np.full(len(saved.class_names), UNKNOWN, np.float32)
    if not path.is_file():
        return unknown
    try:
        page = _Page.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(
            f"{path}: damaged ({error.errors()[0]['msg']}); `crossformer eval RUN` writes it again"
        ) from None
    if missing := [name for name in saved.class_names if name not in page.thresholds]:
        raise ValueError(
            f"{path}: damaged (no threshold of {missing[0]}); `crossformer eval RUN` writes it again"
        )
    if page.weights != fingerprint(saved.weights):
        warnings.warn(
            f"{path}: chosen with other weights and not used, {UNKNOWN} in its place; `crossformer eval RUN` chooses "
            "again",
            stacklevel=2,
        )
        return unknown
    return np.array([page.thresholds[name] for name in saved.class_names], np.float32)


def write_thresholds(saved: SavedRun, thresholds: np.ndarray, samples: int) -> Path:
    """Keep the thresholds (K,) beside the weights."""
    path = thresholds_file(saved)
    by_name = dict(zip(saved.class_names, thresholds.tolist(), strict=True))
    write_json(path, {"thresholds": by_name, "samples": samples, "weights": fingerprint(saved.weights)})
    return path
