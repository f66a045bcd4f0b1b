"""Group-size policies: how large a group each block attends in (progressive group size, Sec. 4.1).

Pure functions from a policy to one group size per block. A policy is what users write:

- one size per stage, `(4, 4, 14, 7)` — the paper's progressive sizes, and the fixed ones of CrossFormer;
- one size per block of a stage, `(4, 4, (4, 7, 10, 14), 7)`;
- `linear(4, 14)`, a size that grows by equal steps over the blocks of the first stages (Table IX, 4 → 14).

`analysis.group_choice` chooses sizes from a trained model's attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch

PerBlock = int | Sequence[int]
Interval = int | Literal["adaptive"]  # "adaptive": see `adaptive_interval`


def linear_group_sizes(
    depths: Sequence[int], first: int = 4, last: int = 14, final_stage: int | None = 7
) -> tuple[tuple[int, ...], ...]:
    """Sizes that grow linearly from `first` to `last` over all blocks before the final stage, rounded to integers.

    Args:
        final_stage: Size of the last stage, where at 224 a group of 7 is the whole map; None counts it in.

    Raises:
        ValueError: A size is below 1.
    """
    growing = list(depths if final_stage is None else depths[:-1])
    steps = max(sum(growing) - 1, 1)
    sizes = [round(first + (last - first) * i / steps) for i in range(sum(growing))]
    per_stage, start = [], 0
    for depth in growing:
        per_stage.append(tuple(sizes[start : start + depth]))
        start += depth
    if final_stage is not None:
        per_stage.append((final_stage,) * depths[-1])
    return expand_per_block(per_stage, depths, "group size")


def adaptive_interval(height: int, width: int, group_size: int) -> int:
    """The least interval at which a long-distance group of side G spans a map: ceil(max(H, W) / G)."""
    longer = cast(int, torch.sym_max(height, width))  # a symbol where they are
    return (longer + group_size - 1) // group_size


def expand_per_block(
    values: Sequence[PerBlock | Interval | Sequence[Interval]],
    depths: Sequence[int],
    name: str,
    words: Sequence[str] = (),
) -> tuple[tuple[Any, ...], ...]:
    """One value per stage or per block -> one per block.

    Args:
        words: What may stand in a number's place; one alone is for all.

    Raises:
        ValueError: A stage or block is missing or too many, or a value is below 1.
    """
    per_stage: Sequence[Any] = (values,) * len(depths) if isinstance(values, str) else values
    if len(per_stage) != len(depths):
        raise ValueError(f"{len(per_stage)} {name}s given for {len(depths)} stages: give one per stage")
    expanded = []
    for stage, (value, depth) in enumerate(zip(per_stage, depths, strict=True), start=1):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        blocks = tuple(cast("Sequence[Any]", value)) if is_list else (value,) * depth
        if len(blocks) != depth:
            raise ValueError(
                f"stage {stage} has {depth} blocks but {len(blocks)} {name}s: give one for all or one per block"
            )
        for block in blocks:
            if block in words:
                continue
            if isinstance(block, bool) or not isinstance(block, int) or block < 1:
                wanted = " or ".join(["a whole number of at least 1", *map(repr, words)])
                raise ValueError(f"{name} {block!r} in stage {stage}: it must be {wanted}")
        expanded.append(blocks)
    return tuple(expanded)
