"""The released implementation as the tests see it: its key tables, weights drawn by rule, its outputs.

`golden/checkpoint_keys.json` lists the keys and shapes of the authors' checkpoints. Equal blocks of a stage
share a row: `layers.2.blocks.[0-17].norm1.weight` stands for blocks 0 to 17, `[2,5,8]` for those three.
`golden/outputs.json` holds what the released implementation answers for weights and inputs drawn by the rules
below (so that no weights need shipping): mean, standard deviation, largest magnitude and some samples. Its dense cases
are of the later released code, with regional LDA; `golden/spanning.json` has those of the first, with spanning LDA.
"""

import json
import math
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = (
    "crossformer_tiny",
    "crossformer_small",
    "crossformer_base",
    "crossformer_large",
    "crossformerpp_small",
    "crossformerpp_base",
    "crossformerpp_large",
    "crossformerpp_huge",
)


@cache
def released_outputs() -> dict[str, Any]:
    """What the released implementation answers, by variant."""
    return json.loads((GOLDEN / "outputs.json").read_text())


@cache
def spanning_outputs() -> dict[str, Any]:
    """What the first released code answers on dense maps, with spanning LDA, by variant: a list of cases each."""
    return json.loads((GOLDEN / "spanning.json").read_text())


@cache
def released_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Every key of the variant's released checkpoint with its shape."""
    rows = json.loads((GOLDEN / "checkpoint_keys.json").read_text())[variant]
    return {name: tuple(shape) for row, shape in rows.items() for name in _expand(row)}


def _expand(row: str) -> list[str]:
    """`a.[0-2].b` -> a.0.b, a.1.b, a.2.b; a row without brackets stands for itself."""
    match = re.search(r"\[(.+)\]", row)
    if match is None:
        return [row]
    numbers: list[int] = []
    for part in match[1].split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return [f"{row[: match.start()]}{number}{row[match.end() :]}" for number in numbers]


def released_weights(variant: str) -> dict[str, Tensor]:
    """The weights that the golden outputs were computed with, under the released keys."""
    return {name: _draw(name, shape) for name, shape in released_shapes(variant).items()}


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter from its name and shape alone: noise about 1 for norms, fan-in scaled for the rest."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    z = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    if not name.endswith(".weight"):
        return 0.05 * z
    return 1 + 0.1 * z if len(shape) == 1 else z * math.sqrt(1 / math.prod(shape[1:]))


@cache
def dense_outputs() -> dict[str, Any]:
    """What MMDetection 2.8.0 and MMSegmentation 0.12.0 answer with CrossFormer-S, by head (test_tasks_released.py)."""
    return json.loads((GOLDEN / "dense.json").read_text())


def dense_weights(head: str, variant: str = "crossformer_small") -> dict[str, Tensor]:
    """A released detector's or segmenter's weights under the released keys, drawn by rule."""
    keys = {
        f"backbone.{name}": shape
        for name, shape in released_shapes(variant).items()
        if not name.startswith(("norm.", "head."))
    }
    keys |= {name: tuple(shape) for name, shape in dense_outputs()[head]["keys"].items()}
    return {name: draw_dense(name, shape) for name, shape in keys.items()}


# What makes a head at random answer like a trained one: few classes are likely, boxes move by a fraction of their size.
_SHIFTS = {"bbox_head.retina_cls.bias": -4.0}
_GAINS = {
    "neck.fpn_convs.3.conv.weight": 3.0,  # else nothing is found on coarse levels
    "neck.fpn_convs.4.conv.weight": 3.0,
    "bbox_head.retina_cls.weight": 2.0,
    "bbox_head.retina_reg.weight": 1.5,
    "rpn_head.rpn_reg.weight": 0.25,
    "roi_head.bbox_head.fc_cls.weight": 1.5,
    "roi_head.mask_head.conv_logits.weight": 10.0,
    "decode_head.conv_seg.weight": 3.0,
}


def draw_dense(name: str, shape: tuple[int, ...]) -> Tensor:
    """As `_draw`; variances of batch norms are near 1, and some layers of heads are scaled or shifted."""
    if name.endswith(".num_batches_tracked"):
        return torch.tensor(7)
    drawn = _draw(name, shape)
    if name.endswith(".running_var"):
        return (2 * drawn).exp()
    return drawn * _GAINS.get(name, 1.0) + _SHIFTS.get(name, 0.0)


def drawn_picture(height: int, width: int, seed: int) -> np.ndarray:
    """An RGB image of waves, H × W × 3 bytes."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / 100.0
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(8):
            along_y, along_x, phase = random.uniform(-20, 20, 3)
            pixels[..., channel] += np.cos(along_y * y + along_x * x + phase)
    return (127.5 + 30 * pixels).clip(0, 255).astype(np.uint8)


def drawn_input(shape: list[int], seed: int) -> Tensor:
    """An image batch of standard normal noise, B 3 H W."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
