"""Amplitude cooling, Sec. 4.2."""

from __future__ import annotations

from torch import Tensor, nn


class AmplitudeCoolingLayer(nn.Module):
    """ACL: a depth-wise convolution and a norm without a residual connection (Fig. 6), (B, H, W, C) -> (B, H, W, C).

    It stops the growth of amplitude that residual connections add up, as a CEL does, at a small part of its cost.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))  # B H W C -> B C H W, in channels-last memory as it is
        return self.norm(x.permute(0, 2, 3, 1))


def is_cooled(block: int, depth: int, cooling_interval: int | None) -> bool:
    """Whether a cooling layer follows block number `block` of a stage of `depth`: after every `cooling_interval`-th
    block, never the last (a CEL follows there)."""
    if not cooling_interval:
        return False
    return (block + 1) % cooling_interval == 0 and block + 1 < depth
