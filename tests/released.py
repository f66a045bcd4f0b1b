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


def drawn_input(shape: list[int], seed: int) -> Tensor:
    """An image batch of standard normal noise, B 3 H W."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
