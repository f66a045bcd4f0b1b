"""Groups by their literal definition, padded and masked, for graphs whose H and W are symbols.

Legend: B batch, C channels, H W map, L = H·W tokens of an image, I interval, gh gw sides of a group, N = gh·gw its
tokens, S groups per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Sides = tuple[int, int]  # height, width in tokens


class Groups(NamedTuple):
    """Equal groups as attention takes them: `tokens` (B·S, N, ·), and `mask` (B·S, 1, 1, N), False for padded keys;
    None where nothing is padded."""

    tokens: Tensor
    sides: Sides
    mask: Tensor | None = None


@dataclass(frozen=True)
class PaddedGrouping:
    """The literal definition, in gathers, for exported graphs whose H and W are symbols: they cannot tell the parts of
    a map apart, and padding and cropping by symbolic amounts would restrict the sizes that a graph takes. So would
    elementwise functions of transposed views, hence the arithmetic on flat indices."""

    height: int
    width: int
    region: Sides  # gh, gw
    interval: int
    num_regions: tuple[int, int]  # along height and width

    def gather(self, x: Tensor) -> Tensor:
        """B H W C -> B L C, as on the map."""
        return x.flatten(1, 2)

    def split(self, rows: Tensor) -> list[Groups]:
        """B L C -> B·S N C and which keys are real."""
        (gh, gw), I, (_, columns) = self.region, self.interval, self.num_regions  # noqa: E741
        B, S, N = rows.shape[0], self._num_groups, gh * gw
        places = torch.arange(S * N, device=rows.device)
        group, member = places // N, _rest(places, N)
        region = group // (I * I)
        y = (region // columns * gh + member // gw) * I + group // I % I
        x = (_rest(region, columns) * gw + _rest(member, gw)) * I + group % I
        is_real = (y < self.height) & (x < self.width)
        tokens = rows.index_select(1, torch.where(is_real, y * self.width + x, 0))
        mask = is_real.view(S, 1, 1, N).repeat(B, 1, 1, 1)
        return [Groups(tokens.reshape(B * S, N, rows.shape[2]), self.region, mask)]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        """B·S N C -> B L C."""
        (tokens,) = groups
        (gh, gw), I, (_, columns) = self.region, self.interval, self.num_regions  # noqa: E741
        positions = torch.arange(self.height * self.width, device=tokens.device)
        y, x = positions // self.width, _rest(positions, self.width)
        region = y // (gh * I) * columns + x // (gw * I)
        group = (region * I + y % I) * I + x % I
        places = (group * gh + _rest(y, gh * I) // I) * gw + _rest(x, gw * I) // I
        S, (_, N, C) = self._num_groups, tokens.shape
        return tokens.reshape(tokens.shape[0] // S, S * N, C).index_select(1, places)

    def scatter(self, rows: Tensor) -> Tensor:
        """B L C -> B H W C."""
        return rows.view(-1, self.height, self.width, rows.shape[-1])

    @property
    def _num_groups(self) -> int:
        rows, columns = self.num_regions
        return rows * columns * self.interval * self.interval


def _rest(values: Tensor, divisor: int) -> Tensor:
    """`values % divisor`. The ONNX exporter has no remainder by a symbol."""
    return values - values // divisor * divisor
