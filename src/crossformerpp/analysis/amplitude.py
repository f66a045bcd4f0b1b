"""Amplitudes of blocks' outputs (Sec. 4.2, Fig. 5), for any timm model whose stages consist of blocks.

A block's output is taken after the cooling layer that may follow the block, as in Fig. 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """A block of a model; stages and blocks within a stage are counted from 1."""

    stage: int
    number: int
    name: str
    module: nn.Module


@dataclass(frozen=True)
class BlockAmplitude:
    """Largest and mean |output| of a block over images, tokens and channels, after its cooling layer."""

    stage: int
    block: int
    name: str
    maximum: float
    mean: float


def find_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model in order: the members of containers called `blocks`, as timm names them, or where there are
    none in the modules that it takes features from (a ResNet's layer1, …).

    Raises:
        ValueError: There are none.
    """
    containers = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "blocks" and ".blocks." not in name
    ]
    if not containers:
        features: Any = getattr(model, "feature_info", ())
        containers = [(info["module"], model.get_submodule(info["module"])) for info in features]
    stages = [stage for container in containers for stage in _stages(*container) if any(stage[1].children())]
    if not stages:
        raise ValueError(f"{type(model).__name__} has no stages of blocks to measure; choose another model")
    return [
        Block(stage, number, f"{name}.{key}", block)
        for stage, (name, members) in enumerate(stages, start=1)
        for number, (key, block) in enumerate(members.named_children(), start=1)
    ]


def _stages(name: str, container: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A container of blocks, or those inside it."""
    members = dict(container.named_children())
    if members and all(isinstance(member, nn.Sequential | nn.ModuleList) for member in members.values()):
        for key, member in members.items():
            yield from _stages(f"{name}.{key}", member)
    else:
        yield name, container


class _Statistics:
    """A forward hook that sums up |output|."""

    def __init__(self) -> None:
        self.maximum, self.total, self.count = 0.0, 0.0, 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        values = output if isinstance(output, Tensor) else output[0]
        values = values.detach().abs()
        value = values.max().item()
        if value > self.maximum or math.isnan(value):  # `max` would lose a NaN
            self.maximum = value
        self.total += values.sum(dtype=torch.float64).item()
        self.count += values.numel()


def block_amplitudes(model: nn.Module, batches: Iterable[Tensor]) -> list[BlockAmplitude]:
    """The amplitude of every block's output, after the cooling layer that may follow it.

    Args:
        model: In evaluation mode.
        batches: Images, (B, C, H, W) each.
    """
    blocks = find_blocks(model)
    statistics = [_Statistics() for _ in blocks]
    with ExitStack() as hooks, torch.inference_mode():
        for block, found in zip(blocks, statistics, strict=True):
            # `add_cooling` cools by a hook, which comes before this one
            hooks.callback(block.module.register_forward_hook(found).remove)
        for batch in batches:
            model(batch)
    return [
        BlockAmplitude(block.stage, block.number, block.name, found.maximum, found.total / found.count)
        for block, found in zip(blocks, statistics, strict=True)
        if found.count
    ]
