"""Which tokens attend to each other: short (SDA) and long (LDA) distance attention, Sec. 3.2.1.

Legend: B batch, C channels, H W map, G group side, I interval, gh gw sides of a group, N = gh·gw its tokens, S groups
per image, L = H·W tokens of an image, T = B·L rows of tokens.

    short             G×G neighbours
    long, spanning    every I-th token of the whole map: ceil(H/I)×ceil(W/I) tokens, so that groups grow with the image
    long, regional    every I-th token of a region of (G·I)×(G·I): G×G tokens
    any of them       the whole map, where its shorter side is at most G

All are one rule: the map is cut into regions of gh·I × gw·I, and tokens of a region with equal offsets modulo I are a
group of gh×gw.

Any size, exactly and without padding. The literal definition pads the map with zeros to a multiple of the region and
masks the padded keys. A masked key takes no part and a padded query is thrown away, so what remains of a group is the
attention among its real tokens. Along one axis an incomplete region of q·I + c tokens (c < I) holds groups of q + 1
tokens for its first c offsets and of q for the other I − c. An axis thus has at most three kinds of groups and a map at
most nine. Each kind is a `Part`, a batch of equal rectangles without padding or mask. Relative offsets in a smaller
rectangle are among those of the full one, so the position bias is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossformerpp import kernels
from crossformerpp.layers.padding import Groups, PaddedGrouping, Sides

Distance = Literal["short", "long"]
Lda = Literal["spanning", "regional"]
Interval = int | Literal["adaptive"]  # "adaptive": see `adaptive_interval`


def adaptive_interval(height: int, width: int, group_size: int) -> int:
    """The least interval at which G tokens span a map: ceil(max(H, W) / G)."""
    return _ceil(kernels.larger(height, width), group_size)


class GroupRule(NamedTuple):
    """How maps of any size are grouped.

    Attributes:
        group_size: G. Spanning groups have sides of their own; for them it only decides which maps are one group.
        interval: I of LDA; SDA has none.
        lda: How far LDA reaches.
    """

    distance: Distance
    group_size: int
    interval: Interval = 1
    lda: Lda = "regional"

    def flat(self) -> tuple[str, int, int, str]:
        """As operators of compiled graphs take it; `rule_of` is the inverse."""
        return self.distance, self.group_size, 0 if self.interval == "adaptive" else self.interval, self.lda

    def sides(self, height: int, width: int) -> Sides:
        """Height and width of the largest group on a map."""
        gh, gw, _ = self.cells(height, width)
        return gh, gw

    def cells(self, height: int, width: int) -> tuple[int, int, int]:
        """(gh, gw, I) of a map whose sides may be symbols; gh = H, gw = W, I = 1 where it is one group."""
        (gh, gw), interval = self._regions(height, width)
        shorter = kernels.smaller(height, width)
        return (
            kernels.if_at_most(shorter, self.group_size, height, gh),
            kernels.if_at_most(shorter, self.group_size, width, gw),
            kernels.if_at_most(shorter, self.group_size, 1, interval),
        )

    def on(self, height: int, width: int) -> Grouping:
        """The groups of a map."""
        if min(height, width) <= self.group_size:
            return Grouping(height, width, (height, width))
        return Grouping(height, width, *self._regions(height, width))

    def padded_on(self, height: int, width: int) -> PaddedGrouping:
        """The groups of a map whose sides may be symbols."""
        if min(height, width) <= self.group_size:
            return PaddedGrouping(height, width, (height, width), 1, (1, 1))
        (gh, gw), interval = self._regions(height, width)
        spans = self.distance == "long" and self.lda == "spanning"
        regions = (1, 1) if spans else (_ceil(height, gh * interval), _ceil(width, gw * interval))
        return PaddedGrouping(height, width, (gh, gw), interval, regions)

    def _regions(self, height: int, width: int) -> tuple[Sides, int]:
        """(gh, gw) and I of a map that is more than one group."""
        G = self.group_size
        if self.distance == "short":
            return (G, G), 1
        interval = self.interval if self.interval != "adaptive" else adaptive_interval(height, width, G)
        if self.lda == "regional":
            return (G, G), interval
        return (_ceil(height, interval), _ceil(width, interval)), interval


def rule_of(distance: Any, group_size: int, interval: int, lda: Any) -> GroupRule:
    """The rule from its flat form."""
    return GroupRule(distance, group_size, interval or "adaptive", lda)


def _ceil(length: int, divisor: int) -> int:
    return (length + divisor - 1) // divisor


class Part(NamedTuple):
    """Equal groups of one map: rectangles of `sides` tokens, at `positions` (S, N) of the row-major map."""

    sides: Sides
    positions: np.ndarray


@dataclass(frozen=True)
class Grouping:
    """A map of `height`×`width` and its groups, without padding; the module's text says how.

    Grouped, the tokens of a batch are T rows: part after part, in a part image after image and group after group.
    """

    height: int
    width: int
    region: Sides  # gh, gw of a complete one
    interval: int = 1

    @property
    def parts(self) -> tuple[Part, ...]:
        return _partition(self)

    def gather(self, x: Tensor) -> Tensor:
        """Tokens in groups: B H W C -> T C."""
        rows, (index, inverse) = x.flatten(0, 2), self.order(x.shape[0], x.device)
        return rows if index is None or inverse is None else kernels.permute(rows, index, inverse)

    def split(self, rows: Tensor) -> list[Groups]:
        """T C -> per part B·S N C."""
        batch = rows.shape[0] // (self.height * self.width)
        pieces = rows.split([batch * part.positions.size for part in self.parts])
        return [
            Groups(piece.unflatten(0, (-1, part.positions.shape[1])), part.sides)
            for piece, part in zip(pieces, self.parts, strict=True)
        ]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        """Per part B·S N C -> T C."""
        rows = [group.flatten(0, 1) for group in groups]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def scatter(self, rows: Tensor) -> Tensor:
        """Tokens back on the map: T C -> B H W C."""
        batch = rows.shape[0] // (self.height * self.width)
        index, inverse = self.order(batch, rows.device)
        if index is not None and inverse is not None:
            rows = kernels.permute(rows, inverse, index)
        return rows.unflatten(0, (batch, self.height, self.width))

    def chunks(self, batch: int, device: torch.device, max_rows: int) -> Iterator[kernels.Chunk]:
        """Whole groups, about `max_rows` tokens at a time."""
        index, _ = self.order(batch, device)
        stop = 0
        for part in self.parts:
            start, stop = stop, stop + batch * part.positions.size
            N = part.positions.shape[1]
            step = max(1, max_rows // N) * N
            for first in range(start, stop, step):
                rows = slice(first, min(first + step, stop))
                yield kernels.Chunk(rows if index is None else index[rows], part.sides)

    def along(self, length: int, side: int) -> list[tuple[list[int], int]]:
        """The groups along an axis: [(first positions of equal groups, tokens of each), …]."""
        I, region = self.interval, side * self.interval  # noqa: E741
        regions, rest = divmod(length, region)
        q, c = divmod(rest, I)
        kinds = [
            ([r * region + offset for r in range(regions) for offset in range(I)], side),
            ([regions * region + offset for offset in range(c)], q + 1),
            ([regions * region + offset for offset in range(c, I)], q),
        ]
        return [(starts, size) for starts, size in kinds if starts and size]

    def order(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Where on the maps the T rows lie, and the inverse, (T,) each; None where rows lie as on the maps."""
        if self.region == (self.height, self.width) and self.interval == 1:
            return None, None
        return (_kept_order if kernels.is_plain_eager() else _order)(self, batch, device)


@lru_cache(maxsize=512)
def _partition(grouping: Grouping) -> tuple[Part, ...]:
    (gh, gw), interval = grouping.region, grouping.interval
    found: dict[Sides, list[np.ndarray]] = {}
    for tops, rows in grouping.along(grouping.height, gh):
        for lefts, columns in grouping.along(grouping.width, gw):
            y = np.array(tops)[:, None, None, None] + interval * np.arange(rows)[:, None]
            x = np.array(lefts)[:, None, None] + interval * np.arange(columns)
            found.setdefault((rows, columns), []).append((y * grouping.width + x).reshape(-1, rows * columns))
    return tuple(Part(sides, np.concatenate(positions)) for sides, positions in found.items())


def _order(grouping: Grouping, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.arange(batch, device=device)[:, None] * (grouping.height * grouping.width)
    positions = [torch.from_numpy(part.positions.ravel()).to(device) for part in grouping.parts]
    index = torch.cat([(images + own).flatten() for own in positions])
    rows = torch.arange(index.shape[0], device=device)
    return index, torch.zeros_like(index).scatter(0, index, rows)


@lru_cache(maxsize=64)
def _kept_order(grouping: Grouping, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a tensor made in inference mode could never take part in training
        return _order(grouping, batch, device)
