"""Figures 1, 3 and 6 of the paper, drawn from the modules of a model: everything they show is read from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from torch import nn

from crossformerpp.layers.cooling import AmplitudeCoolingLayer
from crossformerpp.layers.embedding import CrossScaleEmbedding
from crossformerpp.models.crossformer import CrossFormer

_COLORS = {
    "CEL": "#2a9d5c",
    "SDA": "#1f77b4",
    "LDA": "#e08a1e",
    "MLP": "#7a6fb0",
    "ACL": "#c0392b",
    "": "#8a8a8a",
}
_KERNEL_COLORS = ("#1f77b4", "#2a9d5c", "#e08a1e", "#c0392b", "#7a6fb0")
_BLOCKS_PER_ROW = 6


def architecture(model: CrossFormer, size: int = 224) -> Figure:
    """Fig. 1, and Fig. 6 for a model with cooling layers: the stages above, the parts of two blocks below.

    Args:
        size: Side of the images, from which the sizes of the maps follow.
    """
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    stages, blocks = figure.subplots(2, 1, height_ratios=(1.5, 1))
    _draw_stages(stages, model, size)
    _draw_blocks(blocks, model)
    return figure


def embedding(cel: CrossScaleEmbedding, image: Image.Image | None = None) -> Figure:
    """Fig. 3: the patches of one embedding, and the table of a CEL's convolutions.

    Args:
        image: Laid under the patches; its middle is shown.
    """
    rows = convolutions(cel)
    largest = max(kernel for kernel, _, _ in rows)
    stride = rows[0][1]
    side = largest + 2 * stride
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    patches, table = figure.subplots(1, 2, width_ratios=(1, 1.2))
    patches.set(
        xlim=(0, side), ylim=(side, 0), aspect="equal", xticks=[], yticks=[], title="one embedding's patches"
    )
    if image is not None:
        left, top = ((length - side) // 2 for length in image.size)
        patches.imshow(image.crop((left, top, left + side, top + side)), extent=(0, side, side, 0))
    for (kernel, _, _), color in zip(rows, _KERNEL_COLORS, strict=False):
        corner = (side - kernel) / 2
        patches.add_patch(
            Rectangle((corner, corner), kernel, kernel, fill=False, edgecolor=color, linewidth=2.5)
        )
    total = sum(dim for _, _, dim in rows)
    cells = [
        ["Conv.", f"{kernel}×{kernel}", f"{step}×{step}", f"{dim} = {dim / total:g} D"]
        for kernel, step, dim in rows
    ]
    table.set_axis_off()
    drawn = table.table(cells, colLabels=["type", "kernel", "stride", "dim"], loc="center", cellLoc="center")
    drawn.scale(1, 1.8)
    for row, color in enumerate(_KERNEL_COLORS[: len(rows)], start=1):
        drawn[row, 1].get_text().set_color(color)
    table.set_title(f"embedding layer, D = {total}")
    return figure


def convolutions(cel: CrossScaleEmbedding) -> list[tuple[int, int, int]]:
    """Kernel size, stride and output channels of each convolution of a CEL."""
    found = []
    for module in cel.modules():
        if isinstance(module, nn.Conv2d):
            found.append((int(module.kernel_size[0]), int(module.stride[0]), module.out_channels))
    return found


def block_kinds(stage: Any) -> list[tuple[str, bool]]:
    """Of each block of a stage "SDA" or "LDA", and whether an ACL follows."""
    return [
        ("SDA" if number % 2 == 0 else "LDA", block.cooling is not None)
        for number, block in enumerate(stage.blocks)
    ]


def _draw_stages(axes: Axes, model: CrossFormer, size: int) -> None:
    stages: Sequence[Any] = list(model.stages)
    shapes = _map_shapes(model, size)
    axes.set(xlim=(-0.35, len(stages) + 0.75), ylim=(-0.35, 2.2))
    axes.set_axis_off()
    axes.text(-0.2, 1.1, f"image\n{size}×{size}×{model.in_chans}", ha="center", va="center", fontsize=9)
    for place, (stage, (height, width, dim)) in enumerate(zip(stages, shapes, strict=True)):
        axes.text(place + 0.5, 2.08, f"stage {place + 1}: {height}×{width}×{dim}", ha="center", fontsize=10)
        kernels = "\n".join(f"{kernel}×{kernel}" for kernel, _, _ in convolutions(stage.embedding))
        stride = convolutions(stage.embedding)[0][1]
        _box(axes, place + 0.06, 0.3, 0.2, 1.6, "CEL", f"CEL\n\n{kernels}\n\nstride {stride}")
        _draw_squares(axes, place + 0.31, stage)
        _arrow(axes, (place - 0.05, 1.1), (place + 0.05, 1.1))
    end = len(stages)
    classes = model.num_classes
    _arrow(axes, (end - 0.05, 1.1), (end + 0.08, 1.1))
    _box(
        axes,
        end + 0.1,
        0.3,
        0.5,
        1.6,
        "",
        f"LayerNorm\nmean over\ntokens\nLinear\n{classes} classes" if classes else "maps",
    )
    has_cooling = any(cooled for stage in stages for _, cooled in block_kinds(stage))
    labels = {"SDA": "block with SDA", "LDA": "block with LDA"} | ({"ACL": "ACL"} if has_cooling else {})
    for kind, label in labels.items():
        axes.plot([], [], "s", color=_COLORS[kind], label=label)
    axes.legend(loc="lower left", ncols=3, frameon=False, fontsize=9)


def _draw_squares(axes: Axes, left: float, stage: Any) -> None:
    """The blocks of a stage, a square each, row by row; a red bar for the ACL after a block."""
    kinds = block_kinds(stage)
    pitch = 0.62 / _BLOCKS_PER_ROW
    num_rows = -(-len(kinds) // _BLOCKS_PER_ROW)
    for number, (kind, cooled) in enumerate(kinds):
        row, column = divmod(number, _BLOCKS_PER_ROW)
        x, y = left + column * pitch, 1.1 + 0.36 * (num_rows / 2 - row) - 0.3
        axes.add_patch(Rectangle((x, y), 0.62 * pitch, 0.26, color=_COLORS[kind]))
        if cooled:
            axes.add_patch(Rectangle((x + 0.7 * pitch, y), 0.2 * pitch, 0.26, color=_COLORS["ACL"]))
    axes.text(left + 0.31, 0.18, f"{len(kinds)} blocks", ha="center", fontsize=9)


def _draw_blocks(axes: Axes, model: CrossFormer) -> None:
    """The parts of an SDA and an LDA block with their residual connections, and of the ACL if there is one."""
    stages: Sequence[Any] = list(model.stages)
    stage = next((stage for stage in stages if any(cooled for _, cooled in block_kinds(stage))), stages[-1])
    block = stage.blocks[0]
    cooling = next((block.cooling for block in stage.blocks if block.cooling is not None), None)
    axes.set_axis_off()
    x = 0.0
    for kind in ("SDA", "LDA") if len(stage.blocks) > 1 else ("SDA",):
        for norm, part in ((block.norm1, kind), (block.norm2, "MLP")):
            start = x
            x = _chain(axes, x, ["", part], [_name(norm), part])
            if part == kind and block.attn.position_bias is not None:
                _box(axes, x - 0.98, 1.12, 0.86, 0.42, "", _name(block.attn.position_bias, short=True))
                _arrow(axes, (x - 0.55, 1.1), (x - 0.55, 0.72))
            _residual(axes, start - 0.1, x + 0.12)
            axes.text(x + 0.12, 0.41, "⊕", ha="center", va="center", fontsize=15)
            x += 0.45
    if isinstance(cooling, AmplitudeCoolingLayer):
        side = cooling.conv.kernel_size[0]
        start = x
        x = _chain(axes, x, ["ACL", "ACL"], [f"depth-wise\nconv {side}×{side}", _name(cooling.norm)])
        axes.text(
            (start + x) / 2, 0.95, "ACL, without residual", ha="center", fontsize=9, color=_COLORS["ACL"]
        )
    axes.set(xlim=(-0.5, max(x, 9.5) + 0.3), ylim=(-0.5, 1.7))


def _chain(axes: Axes, x: float, kinds: Sequence[str], names: Sequence[str]) -> float:
    for kind, name in zip(kinds, names, strict=True):
        _arrow(axes, (x - 0.12, 0.41), (x + 0.02, 0.41))
        _box(axes, x + 0.04, 0.1, 0.9, 0.6, kind, name)
        x += 1.1
    return x


def _residual(axes: Axes, start: float, end: float) -> None:
    style = "arc,angleA=-90,angleB=-90,armA=32,armB=28,rad=8"  # around the boxes, below
    arrow = FancyArrowPatch(
        (start, 0.38), (end, 0.3), connectionstyle=style, arrowstyle="-|>", mutation_scale=9
    )
    axes.add_patch(arrow)


def _box(axes: Axes, x: float, y: float, width: float, height: float, kind: str, text: str) -> None:
    color = _COLORS[kind]
    style = "round,pad=0,rounding_size=0.04"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, alpha=0.25, edgecolor=color)
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1})


def _name(module: nn.Module, short: bool = False) -> str:
    name = type(module).__name__
    return "DPB" if short and name == "DynamicPositionBias" else name


def _map_shapes(model: CrossFormer, size: int) -> list[tuple[int, int, int]]:
    """Height, width and channels of the maps of all stages."""
    side, shapes = size, []
    for info, stage in zip(model.feature_info, model.stages, strict=True):
        stride = convolutions(stage.embedding)[0][1]  # type: ignore[arg-type]
        side = -(-side // stride)
        shapes.append((side, side, int(info["num_chs"])))
    return shapes
