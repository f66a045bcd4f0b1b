"""The tasks. `engine`, `predict` and the command line use them only through `Task`.

Nothing here imports the trainer, so that `predict` works without it.
"""

from typing import TYPE_CHECKING, Any, Protocol

from crossformerpp.data.split import Split, Which
from crossformerpp.recipes.schema import BaseRecipe

if TYPE_CHECKING:
    from crossformerpp.analysis.predictions import Predictor
    from crossformerpp.tasks.module import TaskModule
    from crossformerpp.tasks.saved import SavedRun


class Task(Protocol):
    """One kind of learning: classification, detection or segmentation."""

    def split(self, recipe: BaseRecipe, which: Which, class_names: list[str] | None = None) -> Split:
        """Open one split.

        Args:
            class_names: The names that a trained model knows; labels follow their order.

        Raises:
            ValueError: The data cannot be used; says which file or folder and what to do.
        """

    def module(self, recipe: BaseRecipe, class_names: list[str]) -> "TaskModule":
        """A module ready to be trained, its model built and started from `recipe.model.checkpoint`."""

    def predictor(self, saved: "SavedRun", **options: Any) -> "Predictor[Any]":
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
    raise AssertionError(f"no task {name!r}")
