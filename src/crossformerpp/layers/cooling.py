"""Amplitude cooling, Sec. 4.2: layers between blocks, (B, H, W, C) -> (B, H, W, C).

The paper's layer cuts the residual connection, "how to cool down the amplitude without cutting" it is left open there
(Sec. 6). The other two keep it: one lets a learnt share of every channel through, the other shortens long vectors
only. Both bound what can add up; compared in docs/analysis.md.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

CoolingKind = Literal["acl", "gated", "limit"]


class AmplitudeCoolingLayer(nn.Module):
    """ACL: a depth-wise convolution and a norm without a residual connection, Fig. 6.

    It stops the growth of amplitude that residual connections add up, as a CEL does, at a small part of its cost.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))  # B H W C -> B C H W, in channels-last memory as it is
        return self.norm(x.permute(0, 2, 3, 1))


class GatedCoolingLayer(nn.Module):
    """a·x + (1 − a)·ACL(x), with a share a in (0, 1) learnt per channel, 1/2 at first.

    Between no cooling (a = 1) and the ACL (a = 0). The ACL's output is normalised, so what adds up decays with every
    layer, while a path without convolution or norm leads back to the stage's first block.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.acl = AmplitudeCoolingLayer(dim)
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate.sigmoid()
        return share * x + (1 - share) * self.acl(x)


class AmplitudeLimiter(nn.Module):
    """x / √(1 + mean (x/c)²) over the channels of each token, with limits c > 0 learnt per channel, 1 at first.

    The root mean square of the result in units of c is below 1. A token far below that passes as it is, any other
    keeps its direction: a norm that acts on large amplitudes only.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_limit = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        relative = (
            x.float() * (-self.log_limit.float()).exp()
        )  # the square of a large amplitude exceeds float16
        scale = (1 + relative.square().mean(-1, keepdim=True)).rsqrt()
        return x * scale.to(x.dtype)


_KINDS: dict[CoolingKind, type[nn.Module]] = {
    "acl": AmplitudeCoolingLayer,
    "gated": GatedCoolingLayer,
    "limit": AmplitudeLimiter,
}


def cooling_layer(kind: CoolingKind, dim: int) -> nn.Module:
    """The layer of a kind for maps of `dim` channels.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"cooling_kind {kind!r}: choose one of {', '.join(get_args(CoolingKind))}")
    return _KINDS[kind](dim)


def is_cooled(block: int, depth: int, cooling_interval: int | None) -> bool:
    """Whether a cooling layer follows block number `block` of a stage of `depth`: after every `cooling_interval`-th
    block, never the last (a CEL follows there)."""
    if not cooling_interval:
        return False
    return (block + 1) % cooling_interval == 0 and block + 1 < depth
