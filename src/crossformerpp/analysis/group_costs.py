"""Multiply-accumulates of one network under any grouping, from a single counted pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from crossformerpp.analysis.complexity import count_complexity, count_macs
from crossformerpp.layers.group_size import Groups
from crossformerpp.layers.grouping import GroupRule
from crossformerpp.models import CrossFormer


class GroupCosts:
    """What a pass costs with other groups: those change a block's cost alone, and each block is counted by itself."""

    def __init__(self, backbone: CrossFormer, call: Callable[[], Any]) -> None:
        """
        Args:
            backbone: Somewhere in the network, in evaluation mode.
            call: One pass through the network, for instance of an image.
        """
        stages = [list(stage.get_submodule("blocks").children()) for stage in backbone.stages.children()]
        blocks = [block for stage in stages for block in stage]
        self._seen: list[
            tuple[int, torch.Size]
        ] = []  # block and size of its map, (B, H, W, C), per call of a block
        with ExitStack() as hooks:
            for number, block in enumerate(blocks):
                hooks.callback(block.register_forward_pre_hook(self._see(number)).remove)
            total = count_macs(call)
        self._blocks: list[Any] = [copy.deepcopy(block).to("meta") for block in blocks]
        self._known: dict[Hashable, int] = {}
        self._stage_of = [number for number, stage in enumerate(stages) for _ in stage]
        self._outside = total - self._inside(backbone.groups)

    @property
    def sides(self) -> list[int]:
        """The longer side of the largest map of every stage, in tokens."""
        longest: dict[int, int] = {}
        for number, shape in self._seen:
            stage = self._stage_of[number]
            longest[stage] = max(longest.get(stage, 0), *shape[1:3])
        return [longest[stage] for stage in sorted(longest)]

    def macs(self, groups: Groups) -> int:
        """Of the pass with these groups."""
        return self._outside + self._inside(groups)

    def key(self, groups: Groups) -> Hashable:
        """Equal for settings that group every map of the pass alike: they are one and the same network."""
        rules = _flat(groups)
        return tuple(rules[number].on(*shape[1:3]) for number, shape in self._seen)

    def _see(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen.append((number, inputs[0].shape))

        return hook

    def _inside(self, groups: Groups) -> int:
        rules = _flat(groups)
        return sum(self._of_block(number, shape, rules[number]) for number, shape in self._seen)

    def _of_block(self, number: int, shape: torch.Size, rule: GroupRule) -> int:
        key = number, shape, rule.on(*shape[1:3])
        if key not in self._known:
            self._blocks[number].attn.rule = rule
            image = torch.empty(shape, device="meta")
            self._known[key] = count_complexity(self._blocks[number], image).macs
        return self._known[key]


def _flat(groups: Groups) -> list[GroupRule]:
    return [rule for stage in groups.rules() for rule in stage]
