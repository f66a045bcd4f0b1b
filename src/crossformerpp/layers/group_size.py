"""Group-size policies: how large a group each block attends in (progressive group size, Sec. 4.1).

Pure functions from a policy to one group size per block. A policy is what users write:

- one size per stage, `(4, 4, 14, 7)` — the paper's progressive sizes, and the fixed ones of CrossFormer;
- one size per block of a stage, `(4, 4, (4, 7, 10, 14), 7)`;
- `linear(4, 14)`, a size that grows by equal steps over the blocks of the first stages (Table IX, 4 → 14);
- `choose_group_sizes`, what keeps most of a trained model's attention within a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

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


class GroupSizeOption(NamedTuple):
    """A group size that a block may have: its multiply-accumulates, and the share of attention that stays inside."""

    size: int
    macs: int
    kept: float

    def steps(self, options: Sequence[GroupSizeOption]) -> list[tuple[float, GroupSizeOption]]:
        """Those of a block's options that keep more, each with what it keeps more per additional multiply-accumulate.

        This one is the cheapest, or the best such step from a cheaper one, so that whatever keeps more costs more.
        """
        return [
            ((option.kept - self.kept) / (option.macs - self.macs), option)
            for option in options
            if option.kept > self.kept
        ]


def choose_group_sizes(
    options: Sequence[Sequence[GroupSizeOption]], budget: int, fixed_macs: int = 0
) -> list[GroupSizeOption]:
    """An automatic group size policy: the most attention kept, summed over blocks, within a budget.

    From the cheapest option of every block on, the step that keeps most per multiply-accumulate is taken as long as
    one fits. The sum falls short of the best possible by less than what one step adds.

    Args:
        options: Per block, in any order.
        budget: Multiply-accumulates of the whole model.
        fixed_macs: Those outside of the blocks.

    Raises:
        ValueError: The budget cannot be met; names the least that can.
    """
    chosen = [min(own, key=lambda option: (option.macs, -option.kept, option.size)) for own in options]
    least = fixed_macs + sum(option.macs for option in chosen)
    if least > budget:
        raise ValueError(
            f"a budget of {budget / 1e6:,.1f}M multiply-accumulates cannot be met; the nearest is {least / 1e6:,.1f}M, "
            f"with group sizes {sorted({option.size for option in chosen})}"
        )
    spare = budget - least
    while True:
        steps = [
            (worth, -block, option)  # of equal steps the first block's
            for block, (own, now) in enumerate(zip(options, chosen, strict=True))
            for worth, option in now.steps(own)
            if option.macs - now.macs <= spare
        ]
        if not steps:
            return chosen
        _, block, option = max(steps)
        spare -= option.macs - chosen[-block].macs
        chosen[-block] = option


def adaptive_interval(height: int, width: int, group_size: int) -> int:
    """The least interval at which a long-distance group of side G spans a map: ceil(max(H, W) / G)."""
    # sym_max gives a symbol where they are
    longer = max(height, width) if torch.jit.is_scripting() else cast(int, torch.sym_max(height, width))
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
