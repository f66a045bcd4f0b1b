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
    a map apart, and padding and cropping by symbolic amounts would restrict the sizes that a graph takes."""

    height: int
    width: int
    region: Sides
    interval: int
    num_regions: tuple[int, int]  # along height and width

    def gather(self, x: Tensor) -> Tensor:
        """B H W C -> B L C, as on the map."""
        return x.flatten(1, 2)

    def split(self, rows: Tensor) -> list[Groups]:
        """B L C -> B·S N C and which keys are real."""
        y, x = (self._axis(i, rows.device) for i in range(2))
        y, x = (
            y[:, None, :, None, :, None],
            x[None, :, None, :, None, :],
        )  # regions y x, offsets y x, members y x
        positions = torch.where((y < self.height) & (x < self.width), y * self.width + x, -1).flatten()
        N = self.region[0] * self.region[1]
        mask = (positions >= 0).view(-1, 1, 1, N).repeat(rows.shape[0], 1, 1, 1)
        tokens = rows.index_select(1, positions.clamp(min=0))
        return [Groups(tokens.reshape(-1, N, rows.shape[2]), self.region, mask)]

    def join(self, groups: Sequence[Tensor]) -> Tensor:
        """B·S N C -> B L C."""
        (gh, gw), (_, columns), interval = self.region, self.num_regions, self.interval
        y = torch.arange(self.height, device=groups[0].device)[:, None]
        x = torch.arange(self.width, device=groups[0].device)
        group = y // (gh * interval) * columns + x // (gw * interval)
        group = (group * interval + y % interval) * interval + x % interval
        member = y % (gh * interval) // interval * gw + x % (gw * interval) // interval
        batch = groups[0].shape[0] // (self.num_regions[0] * columns * interval * interval)
        rows = groups[0].reshape(batch, -1, groups[0].shape[-1])
        return rows.index_select(1, (group * gh * gw + member).flatten())

    def scatter(self, rows: Tensor) -> Tensor:
        """B L C -> B H W C."""
        return rows.view(-1, self.height, self.width, rows.shape[-1])

    def _axis(self, axis: int, device: torch.device) -> Tensor:
        """The positions along an axis: (regions, I, members)."""
        regions, side = self.num_regions[axis], self.region[axis]
        positions = torch.arange(regions * side * self.interval, device=device)
        return positions.view(regions, side, self.interval).transpose(1, 2)
