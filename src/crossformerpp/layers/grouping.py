"""Which tokens attend to each other: groups of short (SDA) and long (LDA) distance attention, Sec. 3.2.1.

Legend: B batch, C channels, H W map, G group side, I interval, N = gh·gw tokens of a group, S groups per image,
L = H·W tokens of an image, T = B·L rows.

Both attentions are one rule. The map is cut into regions of (G·I)×(G·I) positions; inside a region, positions with
the same offset modulo I form a G×G group. SDA is I = 1. A map whose shorter side is at most G is one group.

Any size, exactly and without padding
-------------------------------------
The literal definition pads the map with zeros to a multiple of G·I and masks the padded keys. A masked key takes no
part and a padded query is thrown away, so what remains of a group is the attention among its real tokens. Along one
axis the last, incomplete region of length r = q·I + c (c < I) holds groups of q + 1 tokens for its first c offsets
and of q tokens for the other I − c. An axis has thus at most three kinds of groups and a map at most nine (four for
SDA); each kind is a `Part`, a batch of equal rectangles that needs neither padding nor mask. Relative offsets in a
smaller rectangle are among those of the full one, so the position bias is the same too.

Order of tokens
---------------
A `Grouping` keeps the tokens of a batch as T rows: part after part, in a part image after image and group after
group, so that the groups of a part are consecutive rows. Everything but attention acts on single tokens, so rows stay
in that order from block to block and one gather (`regroup`) leads from one grouping to the next; there is none
between groupings that order the tokens alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Part(NamedTuple):
    """Equal groups of one map: `groups` (S) rectangles of `height`×`width` tokens each."""

    groups: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens of one image in this part, S·N."""
        return self.groups * self.height * self.width


class Groups(NamedTuple):
    """Groups as attention takes them: `tokens` (B·S, N, C) of `height`×`width` each; `is_real` (B·S, 1, 1 or N, N) says
    which keys a query may attend to, because they are no padding; None where it may to all."""

    tokens: Tensor
    height: int
    width: int
    is_real: Tensor | None = None


@dataclass(frozen=True)
class _GroupedMaps:
    """`batch` maps of `height`×`width` and the groups that they are cut into."""

    batch: int
    height: int
    width: int
    group_size: int
    interval: int = 1

    def as_tuple(self) -> tuple[int, int, int, int, int]:
        return self.batch, self.height, self.width, self.group_size, self.interval


@dataclass(frozen=True)
class Grouping(_GroupedMaps):
    """Groups of real tokens, without padding; the module's text says how."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(*part) for part in _parts(*self._map))

    @property
    def is_map_order(self) -> bool:
        """Whether rows lie as in a (B, H, W) map: the whole map is one group."""
        return min(self.height, self.width) <= self.group_size

    def split(self, rows: Tensor) -> list[Groups]:
        """T C -> per part B·S N C."""
        pieces = rows.split([self.batch * part.tokens for part in self.parts])
        return [
            Groups(piece.view(-1, part.height * part.width, rows.shape[-1]), part.height, part.width)
            for piece, part in zip(pieces, self.parts, strict=True)
        ]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        """Per part B·S N C -> T C."""
        rows = [group.flatten(0, 1) for group in groups]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def per_row(self, per_image: Tensor) -> Tensor:
        """A value per image, (B,) -> the value of every row's image, (T, 1)."""
        return torch.cat([per_image.repeat_interleave(part.tokens) for part in self.parts])[:, None]

    def chunks(self, max_rows: int) -> Iterator[tuple[int, int, SamePart]]:
        """(first row, last row + 1, grouping of these rows) of whole groups, about `max_rows` rows at a time."""
        start = 0
        for part in self.parts:
            tokens = part.height * part.width
            stop, step = start + self.batch * part.tokens, max(1, max_rows // tokens) * tokens
            for first in range(start, stop, step):
                yield first, min(first + step, stop), SamePart(part.height, part.width)
            start = stop

    @property
    def _map(self) -> tuple[int, int, int, int]:
        return self.height, self.width, self.group_size, self.interval


@dataclass(frozen=True)
class SamePart:
    """Rows that are groups of one size: what a chunk of a part is."""

    height: int
    width: int

    def split(self, rows: Tensor) -> list[Groups]:
        return [Groups(rows.view(-1, self.height * self.width, rows.shape[-1]), self.height, self.width)]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        return groups[0].flatten(0, 1)


@dataclass(frozen=True)
class _InMapOrder(_GroupedMaps):
    """Maps of sizes that may be symbols, with rows that lie as in a (B, H, W) map."""

    @property
    def is_map_order(self) -> bool:
        return True

    def per_row(self, per_image: Tensor) -> Tensor:
        """A value per image, (B,) -> the value of every row's image, (T, 1)."""
        return per_image.repeat_interleave(self.height * self.width)[:, None]


@dataclass(frozen=True)
class PaddedGrouping(_InMapOrder):
    """The literal definition: rows in map order, padded for attention, the padded keys masked.

    For exported graphs whose H and W are symbols, where the parts of a map cannot be told apart; TorchScript calls the
    two functions below. They are written with gathers: padding and cropping by symbolic amounts would restrict the
    sizes that an exported graph takes.
    """

    def split(self, rows: Tensor) -> list[Groups]:
        """T C -> B·S G·G C."""
        H, W, G = self.height, self.width, self.group_size
        tokens, is_real = split_padded(rows.view(self.batch, H * W, -1), H, W, G, self.interval)
        return [Groups(tokens, H, W) if is_real is None else Groups(tokens, G, G, is_real)]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        """B·S G·G C -> T C."""
        (tokens,) = groups
        maps = tokens.reshape(self.batch, -1, tokens.shape[-1])
        maps = join_padded(maps, self.height, self.width, self.group_size, self.interval)
        return maps.reshape(self.batch * self.height * self.width, tokens.shape[-1])


def split_padded(
    maps: Tensor, height: int, width: int, group_size: int, interval: int
) -> tuple[Tensor, Tensor | None]:
    """Cut maps into padded groups: (B, L, C) -> B·S G·G C and `Groups.is_real`. One group: the same and None."""
    if min(height, width) <= group_size:
        return maps, None
    positions = _padded_members(height, width, group_size, interval, maps.device)
    N = group_size * group_size
    is_real = (positions >= 0).view(-1, 1, 1, N).repeat(maps.shape[0], 1, 1, 1)
    tokens = maps.index_select(1, positions.clamp(min=0))
    return tokens.reshape(-1, N, maps.shape[2]), is_real


def join_padded(groups: Tensor, height: int, width: int, group_size: int, interval: int) -> Tensor:
    """What `split_padded` did, undone and cropped: (B, S·G·G, C) -> (B, L, C)."""
    if min(height, width) <= group_size:
        return groups
    return groups.index_select(1, _padded_places(height, width, group_size, interval, groups.device))


def _num_regions(length: int, region: int) -> int:
    return (length + region - 1) // region


def _padded_members(height: int, width: int, group_size: int, interval: int, device: torch.device) -> Tensor:
    """The map position of every member of every group of a padded map, −1 for padding: (S·G·G,)."""
    y = _padded_axis(height, group_size, interval, device)[:, None, :, None, :, None]
    x = _padded_axis(width, group_size, interval, device)[None, :, None, :, None, :]
    return torch.where((y < height) & (x < width), y * width + x, -1).flatten()  # n m I I G G


def _padded_axis(length: int, group_size: int, interval: int, device: torch.device) -> Tensor:
    """The positions along one padded axis: (regions, I, G)."""
    region = group_size * interval
    positions = torch.arange(_num_regions(length, region) * region, device=device)
    return positions.view(-1, group_size, interval).transpose(1, 2)


def _padded_places(height: int, width: int, group_size: int, interval: int, device: torch.device) -> Tensor:
    """The place of every map position among the members of all groups of a padded map: (H·W,)."""
    region = group_size * interval
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    groups = (y // region * _num_regions(width, region) + x // region) * interval + y % interval
    groups = groups * interval + x % interval
    return ((groups * group_size + y % region // interval) * group_size + x % region // interval).flatten()


@dataclass(frozen=True)
class OpaqueGrouping(_InMapOrder):
    """What `Grouping` does, left to run time: rows in map order, grouped inside one opaque operator.

    For `torch.compile` with symbolic H and W. The operator sees real sizes, so one graph serves all of them, and
    nothing is padded.
    """


MapGrouping = Grouping | PaddedGrouping | OpaqueGrouping
AnyGrouping = Grouping | PaddedGrouping | SamePart


def map_order(batch: int, height: int, width: int) -> Grouping:
    """The order of a (B, H, W) map."""
    return Grouping(batch, height, width, group_size=max(height, width))


def regroup(rows: Tensor, source: MapGrouping, target: MapGrouping) -> Tensor:
    """Rows (T, C) in the order of `source` -> in the order of `target`: the same tensor where the orders agree."""
    if source == target or (source.is_map_order and target.is_map_order):
        return rows
    assert isinstance(source, Grouping)
    assert isinstance(target, Grouping)
    index = _regroup_index if torch.compiler.is_compiling() else _cached_regroup_index
    return _Permute.apply(rows, index(source, target, rows.device), index(target, source, rows.device))


class _Permute(torch.autograd.Function):
    """A gather whose gradient is the inverse gather: autograd's own would scatter-add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def _regroup_index(source: Grouping, target: Grouping, device: torch.device) -> Tensor:
    """For every row of `target` its row in `source`, (T,).

    A token of image b that is number `local` of a part of n tokens, `before` tokens coming before this part in one
    image, has row B·before + b·n + local. The three are the same for every image.
    """
    before, tokens, local = _rows_of_order(source._map, target._map, device)
    images = torch.arange(target.batch, device=device)[:, None]
    index = source.batch * before + images * tokens + local  # B L, tokens in the target's order of one image
    pieces = index.split([part.tokens for part in target.parts], dim=1)
    return torch.cat([piece.flatten() for piece in pieces])


@lru_cache(maxsize=128)
def _cached_regroup_index(source: Grouping, target: Grouping, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could never take part in training
        return _regroup_index(source, target, device)


def _axis(length: int, group_size: int, interval: int) -> list[tuple[list[int], int]]:
    """The groups along one axis: [(first positions of equal groups, tokens of each), …]."""
    region = group_size * interval
    regions, rest = divmod(length, region)
    q, c = divmod(rest, interval)
    segments = [
        ([r * region + offset for r in range(regions) for offset in range(interval)], group_size),
        ([regions * region + offset for offset in range(c)], q + 1),
        ([regions * region + offset for offset in range(c, interval)], q),
    ]
    return [(starts, size) for starts, size in segments if starts and size]


@lru_cache(maxsize=512)
def _partition(
    height: int, width: int, group_size: int, interval: int
) -> tuple[tuple[Part, ...], np.ndarray]:
    """The parts of a map, and the map position (row-major) of its tokens part after part, (L,)."""
    if min(height, width) <= group_size:
        return (Part(1, height, width),), np.arange(height * width)
    positions: dict[tuple[int, int], list[np.ndarray]] = {}
    for tops, gh in _axis(height, group_size, interval):
        for lefts, gw in _axis(width, group_size, interval):
            y = np.array(tops)[:, None, None, None] + interval * np.arange(gh)[:, None]
            x = np.array(lefts)[:, None, None] + interval * np.arange(gw)
            positions.setdefault((gh, gw), []).append((y * width + x).reshape(-1, gh * gw))
    groups = {size: np.concatenate(found) for size, found in positions.items()}
    parts = tuple(Part(len(found), *size) for size, found in groups.items())
    return parts, np.concatenate([found.ravel() for found in groups.values()])


@torch.compiler.assume_constant_result
def _parts(height: int, width: int, group_size: int, interval: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(part) for part in _partition(height, width, group_size, interval)[0])


@torch.compiler.allow_in_graph
def _rows_of_order(
    source: tuple[int, int, int, int], target: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """`before`, `tokens` and `local` (see `_regroup_index`) in the source of the tokens in the target's order.

    A compiler takes the result as a constant: the work is numpy's, which it does not look into.
    """
    (parts, order), (_, wanted) = _partition(*source), _partition(*target)
    tokens = np.array([part.tokens for part in parts])
    before = tokens.cumsum() - tokens
    rows = np.empty((3, len(order)), dtype=np.int64)
    rows[0, order] = before.repeat(tokens)
    rows[1, order] = tokens.repeat(tokens)
    rows[2, order] = np.arange(len(order)) - before.repeat(tokens)
    return torch.from_numpy(rows[:, wanted]).to(device)
