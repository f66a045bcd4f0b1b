"""Pictures of a run, drawn by matplotlib: learning curve, confusion matrix, a grid of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

RIGHT, WRONG = "#1a1a1a", "#c0392b"
MAX_NAMED_CLASSES = 60  # beyond these, axis labels could not be read


def learning_curve(rows: Sequence[Mapping[str, float]], metric: str, path: Path) -> None:
    """Loss (train, val), the metric that chooses the best checkpoint, and the learning rate, over epochs.

    Args:
        rows: Of metrics.csv: `epoch`, and any of `train_loss`, `lr`, `val_loss`, `val_<metric>`.
        metric: Name of the metric, without `val_`.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
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
    loss_axes.legend()
    best = max((row[f"val_{metric}"] for row in rows if f"val_{metric}" in row), default=None)
    if best is not None:
        metric_axes.set_title(f"{metric} (best {best:.4f})")
    figure.savefig(path, dpi=120)


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
        axes.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(size), names)
    if size <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    figure.savefig(path, dpi=110)


def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str], truths: Sequence[str | None], path: Path
) -> None:
    """Images with what was predicted above them; mistakes in red, with the true class.

    Args:
        truths: None where the prediction is right, otherwise the true class.
    """
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(columns * 1.6, rows * 1.9), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, title, truth in zip(grid, images, titles, truths, strict=False):
        axes.imshow(np.asarray(image.resize(_within(image.size, 160))))
        text = title if truth is None else f"{title}\nis {truth}"
        axes.set_title(text, fontsize=8, color=RIGHT if truth is None else WRONG)
    figure.savefig(path, dpi=110)


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
