"""Diagrams of a run, drawn by matplotlib: learning curve, confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from crossformerpp.analysis.fonts import font_families
from crossformerpp.data.names import without_controls

MAX_NAMED_CLASSES = 60  # beyond these, axis labels could not be read


def draw_learning_curve(rows: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Loss (train, val), the metric that chooses the best checkpoint, and the learning rate, over epochs.

    Args:
        rows: Of metrics.csv: `epoch`, and any of `train_loss`, `lr`, `val_loss`, `val_<metric>`.
        metric: Name of the metric, without `val_`.
    """
    figure = Figure(figsize=(13, 4))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.13, top=0.92)  # far quicker than a computed layout
    loss_axes, metric_axes, lr_axes = figure.subplots(1, 3)
    panels = [
        (loss_axes, [("train_loss", "train"), ("val_loss", "validation")], "loss"),
        (metric_axes, [(f"val_{metric}", "validation")], metric),
        (lr_axes, [("lr", "learning rate")], "learning rate"),
    ]
    for axes, curves, title in panels:
        for key, label in curves:
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    if loss_axes.lines:
        loss_axes.legend(framealpha=0)
    best = max((row[f"val_{metric}"] for row in rows if f"val_{metric}" in row), default=None)
    if best is not None:
        metric_axes.set_title(f"{metric} (best {best:.4f})")
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Counts by true class (rows) and predicted class (columns), shaded by the row's share.

    Args:
        counts: (K, K) integers.
    """
    size = len(names)
    few = size <= MAX_NAMED_CLASSES
    side = min(16.0, 3 + 0.45 * size)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, shrink=0.8, format=PercentFormatter(1), label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    total = max(int(counts.sum()), 1)
    axes.set_title(f"{int(np.trace(counts))} of {total} right ({np.trace(counts) / total:.2%})")
    if few:
        shown = [_shortened(without_controls(name)) for name in names]
        fonts: Any = {"parse_math": False, "family": font_families(shown)}  # a $ is no formula
        axes.set_xticks(range(size), shown, rotation=90 if max(map(len, shown)) > 2 else 0, **fonts)
        axes.set_yticks(range(size), shown, **fonts)
    if size <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    figure.savefig(path, dpi=110)


def bars(labels: Sequence[str], values: Sequence[float], quantity: str, path: Path) -> None:
    """Horizontal bars, each with its value."""
    figure = Figure(figsize=(9, 1 + 0.6 * len(labels)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(range(len(labels)), values)
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.set_yticks(range(len(labels)), labels, parse_math=False, family=font_families(labels))
    axes.invert_yaxis()
    axes.set_xlabel(quantity)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=100)


def _shortened(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
