"""Group sizes from measured attention: what every size would keep and cost, and the choice within a budget.

A token of a block measured with large groups spreads its attention over its group. Cutting the group into smaller
ones keeps the attention between tokens that stay together; the share that is kept, and the multiply-accumulates, are
known for every size before anything is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossformerpp.analysis.attention_maps import BlockAttention
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.layers.block import CrossFormerBlock
from crossformerpp.layers.grouping import Grouping, GroupRule
from crossformerpp.models.crossformer import CrossFormer


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


@dataclass(frozen=True)
class GroupChoice:
    """The choice for a block and its reason.

    Attributes:
        size: The group size; `before` is the model's own.
        attention_distance: Mean over heads, in tokens of the map, as measured.
        uniform_distance: The same if attention were spread evenly over the measured groups.
        kept: Share of the measured attention that stays inside groups of the chosen size.
        macs: Of the block.
        reason: Why no larger size.
    """

    stage: int
    block: int
    distance: str
    before: int
    size: int
    attention_distance: float
    uniform_distance: float
    kept: float
    macs: int
    reason: str


@dataclass(frozen=True)
class GroupChoices:
    """Choices of all blocks, and the multiply-accumulates of the whole model with them and before."""

    blocks: list[GroupChoice]
    macs: int
    macs_before: int

    @property
    def group_sizes(self) -> list[list[int]]:
        """As `CrossFormer` takes them: per stage, one per block."""
        stages = sorted({choice.stage for choice in self.blocks})
        return [[choice.size for choice in self.blocks if choice.stage == stage] for stage in stages]


def choose_groups(
    model: CrossFormer,
    attentions: Sequence[BlockAttention],
    image_size: int,
    smallest: int,
    largest: int,
    budget: int,
) -> GroupChoices:
    """Choose a group size for every block.

    Args:
        model: With its own group sizes.
        attentions: Measured on it with groups of `largest`, in the order of its blocks.
        image_size: Side of the images that `budget` (multiply-accumulates) is for.

    Raises:
        ValueError: The budget cannot be met; names the nearest.
    """
    meta = copy.deepcopy(model).to("meta")
    before = count_complexity(meta, (model.in_chans, image_size, image_size)).macs
    places = list(_places(meta, image_size))
    options = [
        [
            _option(place, size, attention)
            for size in range(min(smallest, place.side), min(largest, place.side) + 1)
        ]
        for place, attention in zip(places, attentions, strict=True)
    ]
    fixed = before - sum(place.macs() for place in places)
    chosen = choose_group_sizes(options, budget, fixed)
    return GroupChoices(
        [
            GroupChoice(
                stage=attention.stage,
                block=attention.block,
                distance=place.rule.distance,
                before=place.rule.group_size,
                size=choice.size,
                attention_distance=attention.head_distances.mean().item(),
                uniform_distance=attention.uniform_distance,
                kept=choice.kept,
                macs=choice.macs,
                reason=_reason(choice, own),
            )
            for place, attention, choice, own in zip(places, attentions, chosen, options, strict=True)
        ],
        macs=fixed + sum(choice.macs for choice in chosen),
        macs_before=before,
    )


def kept_share(attention: Tensor, grouping: Grouping) -> float:
    """The share of attention that stays inside the groups of a map.

    Args:
        attention: (L, L) of the map's L tokens, a row per query that sums to 1.
    """
    kept = 0.0
    for part in grouping.parts:
        members = torch.from_numpy(part.positions)  # S N
        kept += attention[members[:, :, None], members[:, None, :]].sum().item()
    return kept / (grouping.height * grouping.width)


class _Place(NamedTuple):
    """A block, and the map that it works on: `side` × `side` tokens of `dim` channels."""

    block: CrossFormerBlock
    side: int
    dim: int

    @property
    def rule(self) -> GroupRule:
        return self.block.attn.rule

    def macs(self) -> int:
        return count_complexity(
            self.block, torch.empty(1, self.side, self.side, self.dim, device="meta")
        ).macs


def _places(model: Any, image_size: int) -> Iterator[_Place]:
    for stage, info in zip(model.stages, model.feature_info, strict=True):
        for block in stage.blocks:
            yield _Place(block, -(-image_size // info["reduction"]), info["num_chs"])


def _option(place: _Place, size: int, attention: BlockAttention) -> GroupSizeOption:
    place = place._replace(block=copy.deepcopy(place.block))
    place.block.attn.rule = place.rule._replace(group_size=size)
    grouping = place.rule.on(place.side, place.side)
    is_whole_map = attention.height == attention.width == place.side
    if not is_whole_map:  # neighbours in the measured group lie an interval apart already
        grouping = GroupRule("short", size).on(attention.height, attention.width)
    return GroupSizeOption(size, place.macs(), kept_share(attention.mean_map, grouping))


def _reason(choice: GroupSizeOption, options: Sequence[GroupSizeOption]) -> str:
    steps = choice.steps(options)
    if not steps:
        return "keeps most of what was measured"
    _, after = max(steps)
    gain, cost = after.kept - choice.kept, after.macs - choice.macs
    return f"{after.size} would keep {gain:.1%} more for {cost / 1e6:.3g}M: over the budget"
