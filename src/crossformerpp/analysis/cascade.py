"""Two settings of one classifier in a row: all images at the small one, those it is unsure of at the large one too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Answers:
    """What a setting says of M images, and its price.

    Attributes:
        confidence: (M,) the highest class probability.
        right: (M,) whether its class is the true one.
        macs: Multiply-accumulates of an image.
    """

    confidence: np.ndarray
    right: np.ndarray
    macs: int

    def of(self, images: np.ndarray) -> Answers:
        """For some of the images."""
        return Answers(self.confidence[images], self.right[images], self.macs)


@dataclass(frozen=True)
class CascadePoint:
    """A cascade at a threshold.

    Attributes:
        threshold: Images whose confidence is below it go on to the large setting.
        share: Of the images that go on.
        accuracy: Share of right answers.
        macs: Multiply-accumulates of an image, in the mean.
    """

    threshold: float
    share: float
    accuracy: float
    macs: float


def cascade_at(small: Answers, large: Answers, threshold: float) -> CascadePoint:
    """What a threshold gives on images that both settings answered."""
    goes_on = small.confidence < threshold
    share = float(goes_on.mean())
    return CascadePoint(
        threshold,
        share,
        float(np.where(goes_on, large.right, small.right).mean()),
        small.macs + share * large.macs,
    )


def cascade_curve(small: Answers, large: Answers, num_points: int = 200) -> list[CascadePoint]:
    """From no image that goes on to all of them, at thresholds between the confidences that occur."""
    levels = np.unique(np.append(small.confidence, 1.0))
    between = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [np.nextafter(1.0, 2.0)]])
    taken = between[np.unique(np.linspace(0, len(between) - 1, num_points).round().astype(int))]
    return [cascade_at(small, large, float(threshold)) for threshold in taken]


def choose_threshold(small: Answers, large: Answers) -> CascadePoint:
    """The cheapest cascade that is as accurate as the large setting alone on these images."""
    good = [p for p in cascade_curve(small, large, len(small.right) + 2) if p.accuracy >= large.right.mean()]
    return min(good, key=lambda point: (point.macs, point.threshold))


def draw_cascade(
    curve: Sequence[CascadePoint], chosen: CascadePoint, small: Answers, large: Answers
) -> Figure:
    """Accuracy over mean cost of all thresholds, with the chosen one and the two settings alone."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.macs / 1e6 for p in curve], [p.accuracy for p in curve], color="tab:blue", label="cascade")
    for name, macs, accuracy, marker in (
        ("small alone", small.macs, small.right.mean(), "s"),
        ("large alone", large.macs, large.right.mean(), "D"),
        (f"chosen: below {chosen.threshold:.3f} again", chosen.macs, chosen.accuracy, "*"),
    ):
        axes.scatter([macs / 1e6], [accuracy], marker=marker, s=60, label=name, zorder=3)
    axes.set(xlabel="MMACs per image, mean", ylabel="accuracy, held-out images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
