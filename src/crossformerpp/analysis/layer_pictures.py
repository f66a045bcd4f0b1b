"""Pictures of the paper's layers, drawn from the layers themselves with matplotlib.

Colours of text and axes come from matplotlib's settings, so that a page in dark colours can have them its way.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from crossformerpp.layers import GroupRule, allocate_dims
from crossformerpp.layers.embedding import Allocation

KERNEL_COLORS = ("#1f77b4", "#2a9d5c", "#e08a1e", "#c0392b")


def embedding(kernel_sizes: Sequence[int] = (4, 8, 16, 32), stride: int = 4, dim: int = 64) -> Figure:
    """A CEL (Sec. 3.1): the patches of one token, and how channels and work are shared among the kernels."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    patches, shares = figure.subplots(1, 2, width_ratios=(1, 1.3))
    side = max(kernel_sizes) + 2 * stride
    first = (side - stride) / 2
    patches.set(
        xlim=(0, side), ylim=(side, 0), aspect="equal", title=f"patches of one token, stride {stride}"
    )
    patches.set_xticks(np.arange(first % stride, side, stride), [])
    patches.set_yticks(np.arange(first % stride, side, stride), [])
    patches.grid(alpha=0.35)
    patches.tick_params(length=0)
    for size, color in zip(kernel_sizes, KERNEL_COLORS, strict=False):
        corner = first - (size - stride) / 2
        patches.add_patch(
            Rectangle((corner, corner), size, size, facecolor=color, alpha=0.22, label=f"{size}×{size}")
        )
        patches.add_patch(Rectangle((corner, corner), size, size, fill=False, edgecolor=color, linewidth=2))

    rows: dict[str, list[int]] = {}
    allocations: tuple[Allocation, ...] = ("halving", "equal")
    for allocation in allocations:
        dims = allocate_dims(dim, len(kernel_sizes), allocation)
        rows[f"channels, {allocation}"] = dims
        rows[f"work, {allocation}"] = [d * size**2 for d, size in zip(dims, kernel_sizes, strict=True)]
    _stacked_bars(shares, rows, [f"{size}×{size}" for size in kernel_sizes])
    shares.set_title(f"who gets the {dim} channels, and what that costs")
    return figure


def _stacked_bars(axes: Axes, rows: Mapping[str, Sequence[int]], labels: Sequence[str]) -> None:
    """A bar per row, as long as its sum beside the largest row of its kind, cut in the shares of each label."""
    whole = {
        kind: max(sum(v) for k, v in rows.items() if k.startswith(kind)) for kind in ("channels", "work")
    }
    for place, (name, values) in enumerate(rows.items()):
        left = 0.0
        for value, label, color in zip(values, labels, KERNEL_COLORS, strict=False):
            width = value / whole[name.split(",")[0]]
            axes.barh(place, width, left=left, color=color, label=label if place == 0 else None)
            if width > 0.07:
                text = str(value) if name.startswith("channels") else f"{value / sum(values):.0%}"
                axes.text(left + width / 2, place, text, ha="center", va="center", color="white", fontsize=9)
            left += width
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.legend(title="kernel", ncols=4, loc="upper center", bbox_to_anchor=(0.45, 0), frameon=False)


def group_numbers(height: int, width: int, rule: GroupRule) -> np.ndarray:
    """Which group each position of a map belongs to: (height, width), groups numbered by their first position."""
    groups = [members for part in rule.on(height, width).parts for members in part.positions]
    numbers = np.empty(height * width, dtype=int)
    for number, members in enumerate(sorted(groups, key=lambda members: int(members.min()))):
        numbers[members] = number
    return numbers.reshape(height, width)


def groups(
    maps: Sequence[tuple[int, int]], rules: Sequence[GroupRule], image: Image.Image | None = None
) -> Figure:
    """Groups (Sec. 3.2.1) on maps of the given (height, width), a row per map and a column per rule: tokens of a group
    share number and colour.

    Args:
        image: Laid under the maps.
    """
    size = (3.2 * len(rules), 4 * len(maps))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(maps), len(rules), squeeze=False)
    for (height, width), row in zip(maps, panels, strict=True):
        for rule, axes in zip(rules, row, strict=True):
            numbers = group_numbers(height, width, rule)
            _tokens(axes, numbers, image)
            sides = sorted({_sides(numbers == number) for number in range(numbers.max() + 1)}, reverse=True)
            kinds = ", ".join(f"{h}×{w}" for h, w in sides)
            count = f"map {height}×{width}: {numbers.max() + 1} groups of"
            axes.set_title(f"{_name(rule, height, width)}\n{count}\n{kinds}", fontsize=9)
    return figure


def _name(rule: GroupRule, height: int, width: int) -> str:
    if rule.distance == "short":
        return f"SDA, G = {rule.group_size}"
    interval = rule.on(height, width).interval
    if rule.lda == "spanning":
        return f"spanning LDA, I = {interval}"
    return f"regional LDA, G = {rule.group_size}, I = {interval}"


def _tokens(axes: Axes, numbers: np.ndarray, image: Image.Image | None) -> None:
    height, width = numbers.shape
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if image is not None:
        axes.imshow(image, extent=(0, width, height, 0))
    palette = colormaps["tab20"]
    for (y, x), number in np.ndenumerate(numbers):
        order = number % 20
        color = palette(
            2 * order if order < 10 else 2 * order - 19
        )  # its ten strong colours first, then pale ones
        axes.add_patch(
            Rectangle(
                (x + 0.06, y + 0.06), 0.88, 0.88, color=color, alpha=0.75 if image else 0.9, linewidth=0
            )
        )
        ink = "white" if order < 10 else "black"
        axes.text(x + 0.5, y + 0.52, str(number + 1), ha="center", va="center", color=ink, fontsize=9)


def _sides(members: np.ndarray) -> tuple[int, int]:
    return int(members.any(axis=1).sum()), int(members.any(axis=0).sum())


def bias_surfaces(tables: Mapping[str, np.ndarray]) -> Figure:
    """Position biases as surfaces over the relative offset (Sec. 3.2.2).

    Args:
        tables: By title; (2·gh−1, 2·gw−1), offset (0, 0) in the middle.
    """
    figure = Figure(figsize=(5 * len(tables), 4.4))
    figure.subplots_adjust(left=0.01, right=0.96, bottom=0.06, top=0.92, wspace=0.08)
    for place, (title, table) in enumerate(tables.items(), start=1):
        axes = figure.add_subplot(1, len(tables), place, projection="3d")
        dy, dx = ((np.arange(length) - length // 2) for length in table.shape)
        x, y = np.meshgrid(dx, dy)
        axes.plot_surface(
            x, y, table, cmap="viridis", rcount=40, ccount=40, linewidth=0.2, edgecolor="#00000040"
        )
        axes.set(xlabel="Δx", ylabel="Δy", title=title)
        axes.tick_params(labelsize=8)
        axes.patch.set_alpha(0)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color((0.5, 0.5, 0.5, 0.08))
    return figure


def amplitudes(curves: Mapping[str, Sequence[float]], cooled: Sequence[int] = ()) -> Figure:
    """Amplitude after each block (Sec. 4.2).

    Args:
        curves: By label; one value per block.
        cooled: Blocks, counted from 1, that an ACL follows.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    for place in cooled:
        axes.axvline(
            place, color="tab:blue", alpha=0.25, linewidth=6, label="ACL" if place == cooled[0] else None
        )
    for (label, values), color in zip(curves.items(), ("#c0392b", "#1f77b4"), strict=False):
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=label, color=color)
    axes.set(xlabel="block", ylabel="mean |output|", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
