"""Draw the pictures of docs/layers.md, docs/analysis.md and the README: `make pictures`.

Weights are random (seed 0) with a standard deviation of fan_in^-½, which keeps the scale of what goes through a
layer; the trained ones of the paper were not at hand.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from crossformerpp import VARIANTS, CrossFormer
from crossformerpp.analysis import architecture_pictures, layer_pictures
from crossformerpp.analysis.amplitude import block_amplitudes
from crossformerpp.data.photographs import open_photographs
from crossformerpp.layers import DynamicPositionBias, GroupRule

HERE = Path(__file__).parent
GROUPS = [GroupRule("short", 4), GroupRule("long", 3, 2, "spanning"), GroupRule("long", 3, 2, "regional")]


def main() -> None:
    """Write all of them beside this file."""
    pictures = {
        "architecture": architecture_pictures.architecture(CrossFormer(**VARIANTS["crossformerpp_small"])),
        "embedding_layer": embedding_layer(),
        "embedding": layer_pictures.embedding(),
        "groups": layer_pictures.groups([(8, 8), (11, 9)], GROUPS),
        "position_bias": layer_pictures.bias_surfaces(bias_tables()),
        "cooling": layer_pictures.amplitudes(
            {"without ACL": amplitudes(cooling=None), "with ACL": amplitudes(cooling=3)}, (3, 6, 9, 12, 15)
        ),
    }
    for name, figure in pictures.items():
        path = HERE / f"{name}.png"
        drawn = BytesIO()
        figure.savefig(drawn, dpi=120)
        Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def embedding_layer() -> Figure:
    """The first CEL of CrossFormer-S, on a photograph."""
    model: Any = CrossFormer(**VARIANTS["crossformer_small"])
    return architecture_pictures.embedding(model.stages[0].embedding, next(iter(open_photographs("train"))))


def bias_tables() -> dict[str, np.ndarray]:
    """One DPB of CrossFormer++-S's stage 3, in groups of three sizes."""
    torch.manual_seed(0)
    bias = scaled(DynamicPositionBias(hidden_dim=16, num_heads=8))
    with torch.no_grad():
        return {f"G = {size}: {2 * size - 1}² offsets": bias(size, size)[0].numpy() for size in (7, 14, 21)}


def amplitudes(cooling: int | None) -> list[float]:
    """Mean |output| of each block of CrossFormer++-S's stage 3, for noise of 112×112 pixels."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {**VARIANTS["crossformerpp_small"], "cooling": cooling}
    model = scaled(CrossFormer(**arguments)).eval()
    found = block_amplitudes(model, [torch.randn(1, 3, 112, 112)])
    return [block.mean for block in found if block.stage == 3]


def scaled(module: Any) -> Any:
    """The module with its linear layers drawn again."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return module


if __name__ == "__main__":
    main()
