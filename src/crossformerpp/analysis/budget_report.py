"""What a study of budgets found: confidence intervals, comparisons, a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from crossformerpp.analysis.budget import Point, pareto_front

_COVERED = 2.5, 97.5  # percentiles between which 95% of the draws lie


@dataclass(frozen=True)
class Comparison:
    """The front's point at a budget beside what else can be had for it, in the held-out images.

    Attributes:
        budget: Multiply-accumulates.
        rival: What it is compared with; "random" is the mean of `count` settings.
        macs, score: The rival's.
        front_macs, front_score: The front's.
        difference: Front minus rival, with its 95% interval from `low` to `high`: paired bootstrap over images.
    """

    budget: int
    rival: str
    count: int
    macs: int
    score: float
    front_macs: int
    front_score: float
    difference: float
    low: float
    high: float


def interval(resampled: Sequence[float]) -> tuple[float, float]:
    """The 95% percentile bootstrap interval; NaN without draws."""
    known = np.asarray(resampled, dtype=float)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, _COVERED)
    return float(low), float(high)


def best_within(front: Sequence[Point], macs: int) -> Point | None:
    """The most accurate point of a front that costs no more; None if there is none."""
    within = [point for point in front if point.macs <= macs]
    return max(within, key=lambda point: point.search, default=None)


def compare(front: Sequence[Point], rivals: Mapping[tuple[int, str], Sequence[Point]]) -> list[Comparison]:
    """The front beside its rivals, given by budget and name; of several points of a name the mean."""
    rows = []
    for (budget, name), points in rivals.items():
        best = best_within(front, budget)
        if best is None:
            continue
        drawn = np.mean([point.resampled for point in points], axis=0)
        low, high = interval(np.asarray(best.resampled) - drawn)
        score = mean(point.held_out for point in points)
        rows.append(
            Comparison(
                budget,
                name,
                len(points),
                round(mean(point.macs for point in points)),
                score,
                best.macs,
                best.held_out,
                best.held_out - score,
                low,
                high,
            )
        )
    return rows


def quantile_budgets(front: Sequence[Point], published: int) -> list[int]:
    """Budgets at which to compare: the published setting's, and those of two points of the front below it."""
    below = [point.macs for point in front if point.macs < published]
    thirds = {below[len(below) * part // 3] for part in (1, 2)} if below else set()
    return sorted(thirds | {published})


def write_table(points: Sequence[Point], front: Sequence[Point], metric: str, path: Path) -> None:
    """A row per measured setting, cheapest first, as CSV."""
    rows = [
        {
            "macs": point.macs,
            "ms": round(point.ms, 4),
            metric: point.score,
            "search": point.search,
            "held_out": point.held_out,
            **dict(zip(("low", "high"), interval(point.resampled), strict=True)),
            "is_front": int(point in front),
            **point.setting.to_json(),
        }
        for point in sorted(points, key=lambda point: point.macs)
    ]
    write_rows(rows, path)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of the same columns as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def draw_front(
    points: Sequence[Point],
    front: Sequence[Point],
    rivals: Mapping[tuple[int, str], Sequence[Point]],
    metric: str,
) -> Figure:
    """Score in the held-out images over multiply-accumulates and over milliseconds; bars are 95% intervals."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    marks = {
        "published": ("*", 130, "tab:red"),
        "attention kept": ("^", 50, "tab:green"),
        "random": ("x", 30, "grey"),
    }
    for axes, cost, unit, title in zip(
        panels, ("macs", "ms"), (1e6, 1.0), ("MMACs per image", "milliseconds per image"), strict=True
    ):
        axes.scatter(
            *_places(points, cost, unit),
            s=14,
            color="lightsteelblue",
            label="measured by the search",
            zorder=1,
        )
        kept = pareto_front(front, cost)  # type: ignore[arg-type]
        x, y = _places(kept, cost, unit)
        bars = np.abs(np.array([interval(point.resampled) for point in kept]).T - np.array(y))
        axes.errorbar(x, y, yerr=bars, marker="o", capsize=2, color="tab:blue", label="front", zorder=3)
        for name, (marker, size, color) in marks.items():
            own = [point for (_, rival), found in rivals.items() if rival == name for point in found]
            axes.scatter(*_places(own, cost, unit), s=size, marker=marker, color=color, label=name, zorder=2)
        axes.set(xlabel=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{metric}, held-out images")
    panels[1].legend(fontsize=8)
    return figure


def _places(points: Sequence[Point], cost: str, unit: float) -> tuple[list[float], list[float]]:
    return [getattr(point, cost) / unit for point in points], [point.held_out for point in points]
