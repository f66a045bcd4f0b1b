"""Dynamic position bias, Sec. 3.2.2.

Legend: gh gw sides of a group, h heads, p hidden width.

The bias B of Eq. 1 between two tokens depends on their offset (Δy, Δx) = position of query − position of key alone. A
position bias is therefore a module that maps the sides of a group to a table of the (2gh−1)·(2gw−1) offsets that occur:
O(G²) evaluations in place of O(G⁴). The offset 0 lies in the table's centre, so a table serves smaller groups too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossformerpp import kernels


class DynamicPositionBias(nn.Module):
    """DPB: an MLP from an offset to one bias per head (Fig. 2c, Eq. 2), for groups of any size.

    Linear 2→p, then three times LayerNorm, ReLU, Linear: p→p, p→p, p→h. Offsets are plain integers.

    Args:
        hidden_dim: Width p; D/16 in the released models, for dimension D.
        residual: Add the input of the two middle layers to their output ("DPB-residual", Table X).

    Raises:
        ValueError: `hidden_dim` is 0: the bias would be the same for every offset.
    """

    def __init__(self, hidden_dim: int, num_heads: int, residual: bool = False) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(
                f"hidden_dim {hidden_dim} of DynamicPositionBias: it is a 16th of a stage's dimension, so that "
                "embed_dim must be at least 16"
            )
        self.num_heads = num_heads
        self.residual = residual
        self.embed = nn.Linear(2, hidden_dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, outputs))
            for outputs in (hidden_dim, hidden_dim, num_heads)
        )

    def forward(self, height: int, width: int) -> Tensor:
        """The bias of every offset in groups of up to `height`×`width`: (h, 2·height−1, 2·width−1)."""
        return kernels.remember(self, (height, width), lambda: self._table(height, width))

    def _table(self, height: int, width: int) -> Tensor:
        weight = self.embed.weight
        y = torch.arange(1 - height, height, device=weight.device, dtype=weight.dtype)
        x = torch.arange(1 - width, width, device=weight.device, dtype=weight.dtype)
        offsets = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        with kernels.without_autocast(weight.device):  # it is small, and every attention hangs on it
            hidden = self.embed(offsets)  # 2gh−1 2gw−1 p
            for i, layer in enumerate(self.layers):
                out = layer(hidden)
                hidden = hidden + out if self.residual and i < 2 else out
        return hidden.permute(2, 0, 1)

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicPositionBias:
        kernels.forget(self)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> DynamicPositionBias:
        kernels.forget(self)  # a strategy that moves weights about, as FSDP does, shows in no version counter
        return super().train(mode)
