"""The results that a task returns to `engine`, `predict` and the command line. Nothing here imports the trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

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


class Prediction(Protocol):
    """The result for one image."""

    def rows(self) -> list[tuple[str, ...]]:
        """Rows of the printed table, under the predictor's `columns`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for --json and the JSON file."""

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        """File name suffix → picture; "" is the annotated image, "_mask" could be an index mask."""


class Predictor(Protocol):
    """From an RGB image of any size (shorter side ≥ 32) to a prediction."""

    columns: Sequence[str]

    def __call__(self, image: Image.Image) -> Prediction: ...
