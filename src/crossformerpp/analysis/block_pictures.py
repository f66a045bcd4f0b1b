"""Figures 4 and 5 of the paper, and attention distances, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from crossformerpp.analysis.amplitude import BlockAmplitude
from crossformerpp.analysis.attention_maps import BlockAttention

_COLUMNS = 8


def amplitude_curves(models: Mapping[str, Sequence[BlockAmplitude]], path: Path) -> None:
    """Fig. 5: maximal and mean |output| of every block, a curve per model; dotted lines begin a stage."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    maximum, mean = figure.subplots(1, 2)
    for axes, quantity in ((maximum, "maximum"), (mean, "mean")):
        for name, blocks in models.items():
            values = [getattr(block, quantity) for block in blocks]
            axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
        starts = {n for blocks in models.values() for n, block in enumerate(blocks, 1) if block.block == 1}
        for start in starts - {1}:
            axes.axvline(start - 0.5, color="grey", linestyle=":", linewidth=0.8)
        axes.set(xlabel="block", title=f"{quantity} |output|", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
    maximum.legend()
    figure.savefig(path, dpi=100)


def attention_pictures(
    blocks: Sequence[BlockAttention], tokens: Sequence[tuple[float, float]], path: Path
) -> None:
    """Fig. 4: the averaged attention maps of some tokens (shares of the group's sides) in every block.

    The cross is the token itself; each map has its own scale, from no attention (dark) to its largest.
    """
    rows_of_blocks = -(-len(blocks) // _COLUMNS)
    figure = Figure(figsize=(1.4 * _COLUMNS, 1.75 * rows_of_blocks * len(tokens)), layout="constrained")
    grid = figure.subplots(rows_of_blocks * len(tokens), _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, block in enumerate(blocks):
        for place, token in enumerate(tokens):
            axes = grid[number // _COLUMNS * len(tokens) + place, number % _COLUMNS]
            (y, x), values = block.token_map(*token)
            axes.imshow(values, cmap="magma", vmin=0)
            axes.plot(x, y, "+", color="deepskyblue")
            apart = f", I={block.interval}" if block.interval > 1 else ""
            axes.set_title(
                f"{block.stage}.{block.block}: {block.height}×{block.width}{apart}", fontsize=8, pad=3
            )
    figure.savefig(path, dpi=90)


def attention_distances(blocks: Sequence[BlockAttention], path: Path) -> None:
    """The mean attention distance of every head, of their mean, and of even attention, in pixels of the image."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, len(blocks) + 1)
    for number, block in zip(numbers, blocks, strict=True):
        distances = block.head_distances * block.stride
        axes.scatter([number] * len(distances), distances, s=10, color="tab:blue", alpha=0.6)
    means = [block.head_distances.mean().item() * block.stride for block in blocks]
    even = [block.uniform_distance * block.stride for block in blocks]
    axes.plot(numbers, means, color="tab:blue", label="mean of the heads")
    axes.plot(numbers, even, color="grey", linestyle="--", label="attention spread evenly over the group")
    axes.set_xticks(numbers, [f"{block.stage}.{block.block}" for block in blocks], rotation=90, fontsize=8)
    axes.set(xlabel="stage.block", ylabel="attention distance, pixels")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
