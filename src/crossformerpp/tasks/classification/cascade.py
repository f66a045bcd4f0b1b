"""Classify each image at a small setting, and once more at a large one where the small one is unsure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from crossformerpp.analysis.predictions import ClassPrediction, Predictor
from crossformerpp.tasks.classification.predictor import ClassificationPredictor
from crossformerpp.tasks.elastic import find_backbone
from crossformerpp.tasks.points import Measured, SettingSection, at_setting, budget_folder, read_measured
from crossformerpp.tasks.saved import SavedRun


class CascadeSection(Measured):
    """cascade.json: two settings of the checkpoint, and what `analyze cascade` measured of them in the held-out images:
    `share` of them goes on to the large setting, `macs` are an image's in the mean."""

    small: SettingSection
    large: SettingSection
    threshold: float = Field(ge=0)
    share: float
    accuracy: float
    macs: float
    small_accuracy: float
    small_macs: int
    large_accuracy: float
    large_macs: int
    difference_low: float | None  # of the cascade's accuracy minus the large setting's, 95% interval
    difference_high: float | None


def read_cascade(path: Path, saved: SavedRun) -> CascadeSection:
    """The cascade of a run.

    Raises:
        ValueError: There is none, it is damaged, or it is of another checkpoint.
    """
    file = budget_folder(path) / "cascade.json"
    if not file.is_file():
        raise ValueError(f"--cascade: {path} has none yet; `crossformer analyze cascade {path}` makes {file}")
    command = "`crossformer analyze cascade`"
    return read_measured(
        file, CascadeSection, saved, command, "`crossformer analyze budget` and `analyze cascade` again"
    )


def open_cascade(path: Path, saved: SavedRun, **options: Any) -> CascadePredictor:
    """The predictor of a run's cascade.

    Raises:
        ValueError: The run is of another task or has no cascade.
    """
    if saved.recipe.task != "classification":
        raise ValueError(f"--cascade: {path} is a run of {saved.recipe.task}; cascades are for classifiers")
    if getattr(saved.recipe, "multi_label", False):
        raise ValueError(f"--cascade: {path} has several labels per image; cascades are for one")
    return CascadePredictor(saved, read_cascade(path, saved), **options)


@dataclass(frozen=True)
class _Views:
    """What each of two settings needs of an image."""

    small: Callable[[Any], Any]
    large: Callable[[Any], Any]

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.small(image), self.large(image)


class CascadePredictor(Predictor[ClassPrediction]):
    """One network at two settings. `prepare` gives an image as each of them sees it.

    Attributes:
        num_images, num_again: Images so far, and those of them that the large setting saw.
    """

    columns: Sequence[str] = ClassPrediction.columns
    batch_size = ClassificationPredictor.batch_size

    def __init__(self, saved: SavedRun, cascade: CascadeSection, **options: Any) -> None:
        """
        Args:
            options: As `ClassificationPredictor` takes them.

        Raises:
            ValueError: The weights do not fit the recipe.
        """
        self.threshold = cascade.threshold
        steps = [
            ClassificationPredictor(at_setting(saved, s), **options) for s in (cascade.small, cascade.large)
        ]
        self._steps = [(step, find_backbone(step.model).groups) for step in steps]
        for step in steps:  # one set of weights in memory
            step.model = steps[0].model
        self.pixels = steps[0].pixels
        self.prepare = _Views(steps[0].prepare, steps[1].prepare)
        self.num_images = self.num_again = 0

    def predict(self, prepared: Sequence[tuple[Any, Any]]) -> list[ClassPrediction]:
        """The small setting's answers, and the large one's where the small one's confidence is below the threshold."""
        found = self._ask(0, [small for small, _ in prepared])
        unsure = [number for number, one in enumerate(found) if one.top[0][1] < self.threshold]
        self.num_images, self.num_again = self.num_images + len(found), self.num_again + len(unsure)
        if unsure:
            again = self._ask(1, [prepared[number][1] for number in unsure])
            for number, answer in zip(unsure, again, strict=True):
                found[number] = answer
        return found

    def summary(self) -> str:
        """How many images needed the large setting."""
        return f"cascade: {self.num_again} of {self.num_images} images went on to the large setting"

    def _ask(self, number: int, prepared: Sequence[Any]) -> list[ClassPrediction]:
        predictor, groups = self._steps[number]
        find_backbone(predictor.model).set_groups(*groups)
        return predictor.predict(prepared)
