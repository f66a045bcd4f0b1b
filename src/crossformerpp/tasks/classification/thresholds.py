"""Where a trained multi-label classifier keeps the threshold of each class: RUN/thresholds.json, beside the weights.

Every evaluation of a run on its own validation data chooses them (`analysis.thresholds`). The file names the weights it
is of: after more training it is void.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
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
_CLOSE = 1e-4  # thresholds that differ by less are the same but for rounding


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
    page = _read(path, saved.class_names)
    if page.weights != fingerprint(saved.weights):
        warnings.warn(
            f"{path}: chosen with other weights and not used, {UNKNOWN} in its place; `crossformer eval RUN` chooses "
            "again",
            stacklevel=2,
        )
        return unknown
    return np.array([page.thresholds[name] for name in saved.class_names], np.float32)


def keep_thresholds(saved: SavedRun, thresholds: np.ndarray, samples: int) -> None:
    """Write the thresholds (K,) beside the weights. A file of the same weights stays, for it may have been edited; a
    warning says so where it has others, and where the folder cannot be written to."""
    path = thresholds_file(saved)
    by_name = dict(zip(saved.class_names, thresholds.tolist(), strict=True))
    page = {"thresholds": by_name, "samples": samples, "weights": fingerprint(saved.weights)}
    with suppress(ValueError):  # damaged: written again
        known = _read(path, saved.class_names) if path.is_file() else None
        if known is not None and known.weights == page["weights"]:
            if any(abs(known.thresholds[name] - by_name[name]) > _CLOSE for name in by_name):
                warnings.warn(
                    f"{path}: kept, with thresholds other than those that are best now; delete it to choose them again",
                    stacklevel=2,
                )
            return
    try:
        write_json(path, page)
    except OSError as error:
        warnings.warn(
            f"{path}: not written, so that predictions do not use it ({error.strerror})", stacklevel=2
        )


def _read(path: Path, class_names: Sequence[str]) -> _Page:
    """
    Raises:
        ValueError: The file is damaged.
    """
    try:
        page = _Page.model_validate(read_json(path))
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"])
        raise ValueError(f"{path}: damaged ({reason}); `crossformer eval RUN` writes it again") from None
    if missing := [name for name in class_names if name not in page.thresholds]:
        raise ValueError(
            f"{path}: damaged (no threshold of {missing[0]}); `crossformer eval RUN` writes it again"
        )
    return page
