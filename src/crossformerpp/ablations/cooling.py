"""Other ways to cool amplitudes, (B, H, W, C) -> (B, H, W, C).

The paper's ACL cuts the residual connection; "how to cool down the amplitude without cutting" it is left open there
(Sec. 6). These two keep it: one lets a learnt share of every channel through, the other shortens long vectors only.
Both bound what can add up; compared in docs/analysis.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from crossformerpp.layers.cooling import AmplitudeCoolingLayer

CoolingKind = Literal["acl", "gated", "limit"]


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
        relative = x.float() * (-self.log_limit.float()).exp()  # in float16 the square could overflow
        scale = (1 + relative.square().mean(-1, keepdim=True)).rsqrt()
        return x * scale.to(x.dtype)
