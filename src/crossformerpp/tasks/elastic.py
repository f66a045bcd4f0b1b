"""Elastic training: which groupings a step trains. No weight depends on them, so all of them train the same network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.group_size import Groups
from crossformerpp.models import CrossFormer
from crossformerpp.recipes.schema import ElasticSection

_STREAM = 0xE1A5  # sets these draws apart from the others of a seed


class Drawn(NamedTuple):
    """A setting that a step trains: groups, and the side that images are resized to; None leaves them as they are."""

    groups: Groups
    size: int | None

    def view(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the setting sees them: (B, C, size, size)."""
        if self.size is None or images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


class Elastic:
    """The groupings of an `ElasticSection` on a network.

    Draws are functions of the seed and the step: all processes draw alike, and a resumed run goes on as it would have.
    """

    def __init__(self, section: ElasticSection, network: nn.Module, seed: int) -> None:
        """
        Raises:
            ValueError: The network has no CrossFormer with LSDA in it, or a range does not fit it.
        """
        self.section, self.seed = section, seed
        self.backbone = find_backbone(network)
        own = self.backbone.groups
        depths = [len(sizes) for sizes in own.group_sizes]
        sizes: list[Any] = list(section.group_sizes)
        gaps: list[Any] = [None] * len(depths) if section.intervals is None else list(section.intervals)
        for name, ranges in (("group_sizes", sizes), ("intervals", gaps)):
            if len(ranges) != len(depths):
                raise ValueError(
                    f"model.elastic.{name} has {len(ranges)} ranges for {len(depths)} stages: give one per stage"
                )
        # per stage and block the choices of G and of I, and per stage those of LDA's grouping
        self._sizes = [[choices] * depth for choices, depth in zip(sizes, depths, strict=True)]
        self._gaps = [
            [[interval] for interval in own.intervals[stage]] if choices is None else [choices] * depth
            for stage, (choices, depth) in enumerate(zip(gaps, depths, strict=True))
        ]
        self._lda = [section.lda or [word] for word in own.lda]

    @property
    def smallest(self) -> Drawn:
        """The first choice of every range."""
        return self._pick(lambda choices, _: choices[0])

    @property
    def largest(self) -> Drawn:
        """The last choice of every range."""
        return self._pick(lambda choices, _: choices[-1])

    def random(self, step: int, number: int) -> Drawn:
        """The `number`-th random setting of a step: every range drawn from evenly and by itself."""
        generator = np.random.default_rng([self.seed, _STREAM, step, number])
        shares = generator.random((2, sum(map(len, self._sizes)) + len(self._lda) + 1))
        return self._pick(lambda choices, place: choices[int(shares[place] * len(choices))])

    def each(self, step: int) -> Iterator[Drawn]:
        """Have the network take on the groups of each setting of a step in turn, and in the end its own again."""
        own = self.backbone.groups
        try:
            for number, kind in enumerate(self.section.draw):
                drawn = self.random(step, number) if kind == "random" else getattr(self, kind)
                with warnings.catch_warnings():  # of a size that spanning LDA does not use: drawn, not chosen
                    warnings.simplefilter("ignore")
                    self.backbone.set_groups(*drawn.groups)
                yield drawn
        finally:
            self.backbone.set_groups(*own)

    def _pick(self, choose: Any) -> Drawn:
        """A setting; `choose` gets the choices and a place (kind, number) that blocks of a stage share if they must."""

        def of_blocks(kind: int, stages: list[list[list[Any]]]) -> tuple[tuple[Any, ...], ...]:
            picked, first = [], 0
            for blocks in stages:
                places = [
                    first + (block if self.section.per == "block" else 0) for block in range(len(blocks))
                ]
                picked.append(
                    tuple(choose(own, (kind, place)) for own, place in zip(blocks, places, strict=True))
                )
                first += len(blocks)
            return tuple(picked)

        last = sum(map(len, self._sizes))
        words = tuple(choose(choices, (0, last + stage)) for stage, choices in enumerate(self._lda))
        size = choose(self.section.sizes, (0, last + len(self._lda))) if self.section.sizes else None
        return Drawn(Groups(of_blocks(0, self._sizes), of_blocks(1, self._gaps), words), size)


def find_backbone(network: nn.Module) -> CrossFormer:
    """The CrossFormer in a network of any task.

    Raises:
        ValueError: There is none.
    """
    for module in network.modules():
        if isinstance(module, CrossFormer):
            return module
    raise ValueError(f"{type(network).__name__}: no CrossFormer in it, whose groups could be set")
