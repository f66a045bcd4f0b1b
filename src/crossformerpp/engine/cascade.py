"""Measure a classifier's cascade: two settings of its front, and how sure the small one must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from crossformerpp.analysis.budget_report import interval
from crossformerpp.analysis.cascade import Answers, CascadePoint, cascade_at, cascade_curve, choose_threshold
from crossformerpp.engine.budget import draws, halves
from crossformerpp.tasks.classification.cascade import CascadeSection
from crossformerpp.tasks.points import SettingSection


@dataclass(frozen=True)
class MeasuredCascade:
    """A cascade in the held-out images: what cascade.json says, the curve over all thresholds, both settings alone."""

    section: CascadeSection
    chosen: CascadePoint
    curve: list[CascadePoint]
    small: Answers
    large: Answers


def measure_cascade(
    step: int, settings: Sequence[SettingSection], both: Sequence[Answers], resamples: int
) -> MeasuredCascade:
    """Choose the threshold in the images that a search looks at, and measure in the others what it gives.

    Args:
        step: Of the run's checkpoint.
        settings: The small and the large one, and
        both: what they say of all images.

    Raises:
        ValueError: The small setting costs no less than the large one.
    """
    if both[0].macs >= both[1].macs:
        raise ValueError(
            f"the small setting costs {both[0].macs / 1e6:.4g}M multiply-accumulates, no less than the large one's "
            f"{both[1].macs / 1e6:.4g}M"
        )
    search, held_out = halves(len(both[0].right))
    threshold = choose_threshold(both[0].of(search), both[1].of(search)).threshold
    ours, theirs = both[0].of(held_out), both[1].of(held_out)
    chosen = cascade_at(ours, theirs, threshold)
    low, high = interval(
        [
            cascade_at(both[0].of(drawn), both[1].of(drawn), threshold).accuracy - both[1].right[drawn].mean()
            for drawn in draws(held_out, resamples)
        ]
    )
    section = CascadeSection(
        step=step,
        small=settings[0],
        large=settings[1],
        **asdict(chosen),
        small_accuracy=float(ours.right.mean()),
        small_macs=ours.macs,
        large_accuracy=float(theirs.right.mean()),
        large_macs=theirs.macs,
        difference_low=low if resamples else None,
        difference_high=high if resamples else None,
    )
    return MeasuredCascade(section, chosen, cascade_curve(ours, theirs), ours, theirs)
