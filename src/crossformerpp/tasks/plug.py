"""The sockets that a task fills; `engine`, `predict` and the command line know tasks only through these.

Nothing here imports the trainer, so that `predict` works without it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from crossformerpp.data.split import Split, Which
from crossformerpp.recipes.schema import BaseRecipe

if TYPE_CHECKING:
    from crossformerpp.tasks.module import TaskModule
    from crossformerpp.tasks.saved import SavedRun


class Evaluation(Protocol):
    """What an evaluation found. Shares such as accuracy, AP or IoU are from 0 to 1."""

    @property
    def metrics(self) -> dict[str, float]:
        """Flat: printed as a table, written to metrics.json, logged."""

    def write(self, folder: Path, split: Split) -> list[Path]:
        """Write tables and pictures (confusion.png, predictions.png, …) of `split` into `folder`."""


class Prediction(Protocol):
    """What was found in one image."""

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


class Task(Protocol):
    """One kind of learning, as the engine sees it."""

    def split(self, recipe: BaseRecipe, which: Which, class_names: list[str] | None = None) -> Split:
        """Open one split.

        Args:
            class_names: The names that a trained model knows; labels follow their order.

        Raises:
            ValueError: The data cannot be used; says which file or folder and what to do.
        """

    def module(self, recipe: BaseRecipe, class_names: list[str]) -> "TaskModule":
        """A module ready to be trained, its model built and started from `recipe.model.checkpoint`."""

    def predictor(self, saved: "SavedRun", **options: Any) -> Predictor:
        """A predictor on the weights of a checkpoint; `options` are the task's own (top_k, min_score, …)."""


def find_task(name: str) -> Task:
    """The task that a recipe's `task` names."""
    if name == "classification":
        from crossformerpp.tasks.classification import Classification

        return Classification()
    if name == "detection":
        from crossformerpp.tasks.detection import Detection

        return Detection()
    if name == "segmentation":
        from crossformerpp.tasks.segmentation import Segmentation

        return Segmentation()
    raise AssertionError(f"recipe of task {name!r} has no plug")
