"""Group sizes from measured attention: what every size would keep and cost, and the choice within a budget.

A token of a block measured with large groups spreads its attention over its group. Cutting the group into smaller
ones keeps the attention between tokens that stay together; the share that is kept, and the multiply-accumulates, are
known for every size before anything is trained. See `layers.group_size.choose_group_sizes` for the policy.
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
from crossformerpp.layers.group_size import GroupSizeOption, choose_group_sizes
from crossformerpp.layers.grouping import Grouping, map_order, regroup
from crossformerpp.models.crossformer import CrossFormer
from crossformerpp.models.stage import CrossFormerBlock


@dataclass(frozen=True)
class GroupChoice:
    """What was chosen for a block, and why.

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
                distance=place.block.distance,
                before=place.block.group_size,
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


def kept_share(attention: Tensor, height: int, width: int, size: int, interval: int) -> float:
    """The share of attention that stays inside groups when height × width tokens are grouped by `size`, `interval`.

    Args:
        attention: (N, N), a row per query that sums to 1, N = height·width.
    """
    grouping = Grouping(1, height, width, size, interval)
    places = torch.arange(height * width)[:, None]
    kept = 0.0
    for groups in grouping.split(regroup(places, map_order(1, height, width), grouping)):
        members = groups.tokens[..., 0]  # S N
        kept += attention[members[:, :, None], members[:, None, :]].sum().item()
    return kept / (height * width)


class _Place(NamedTuple):
    """A block, and the map that it works on: `side` × `side` tokens of `dim` channels."""

    block: CrossFormerBlock
    side: int
    dim: int

    def grouping(self) -> Grouping:
        grouping = self.block.grouping(1, self.side, self.side)
        assert isinstance(grouping, Grouping)
        return grouping

    def macs(self) -> int:
        rows = torch.empty(self.side**2, self.dim, device="meta")
        return count_complexity(self.block, (rows, self.grouping())).macs


def _places(model: Any, image_size: int) -> Iterator[_Place]:
    for stage, info in zip(model.stages, model.feature_info, strict=True):
        for block in stage.blocks:
            yield _Place(block, -(-image_size // info["reduction"]), info["num_chs"])


def _option(place: _Place, size: int, attention: BlockAttention) -> GroupSizeOption:
    place = place._replace(block=copy.copy(place.block))
    place.block.group_size = size
    # Where less than the map was measured, neighbours in the group lie an interval apart already.
    is_whole_map = attention.height == attention.width == place.side
    interval = place.grouping().interval if is_whole_map else 1
    kept = kept_share(attention.mean_map, attention.height, attention.width, size, interval)
    return GroupSizeOption(size, place.macs(), kept)


def _reason(choice: GroupSizeOption, options: Sequence[GroupSizeOption]) -> str:
    steps = choice.steps(options)
    if not steps:
        return "keeps most of what was measured"
    _, after = max(steps)
    gain, cost = after.kept - choice.kept, after.macs - choice.macs
    return f"{after.size} would keep {gain:.1%} more for {cost / 1e6:.3g}M: over the budget"
