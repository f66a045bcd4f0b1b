"""What a task returns to `engine` from an evaluation; its predictions are in `analysis.predictions`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from crossformerpp.data.split import Split


class Evaluation(Protocol):
    """What an evaluation found. Shares such as accuracy, AP or IoU are from 0 to 1."""

    @property
    def metrics(self) -> dict[str, float]:
        """Flat: printed as a table, written to metrics.json, logged."""

    @property
    def num_images(self) -> int:
        """Images that were evaluated by this process, in the order of their split."""

    def score(self, images: Sequence[int] | np.ndarray) -> float:
        """The metric that chooses the best checkpoint, over some of these images by number; one may come twice."""

    def write(self, folder: Path, split: Split) -> list[Path]:
        """Write tables and pictures (confusion.png, predictions.png, …) of `split` into `folder`."""
