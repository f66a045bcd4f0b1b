"""Self-attentions of other transformers within windows, stripes and patches, for Table VIII.

Legend: B batch, C channels, H W map, h heads.

They stand in a CrossFormer block in the place of `GroupAttention` (see build.py) and follow the papers that they come
from. Maps of any size: a window at the rim is as large as what is left there, which equals padding and masking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp import kernels
from crossformerpp.layers.grouping import Grouping
from crossformerpp.layers.linear import Linear


class MapAttention(nn.Module):
    """Base of these self-attentions: (B, H, W, C) -> (B, H, W, C).

    Args:
        position_bias: Maps sides to the bias of every offset, see layers/position.py; None for no bias.
        size: Of a window, patch or stripe in tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: nn.Module | None = None,
        size: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_bias = position_bias
        self.size = size
        self.attn_drop = attn_drop
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(self.qkv(x))))

    def attend(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3C) -> (B, H, W, C)."""
        raise NotImplementedError

    @property
    def dropout(self) -> float:
        """The attention map's dropout now."""
        return self.attn_drop if self.training else 0.0

    def attend_within(self, qkv: Tensor, grouping: Grouping, heads: slice = slice(None)) -> Tensor:
        """Eq. 1 in every group, of some of the heads: (B, H, W, 3·h·d) -> (B, H, W, h·d)."""
        table = None if self.position_bias is None else self.position_bias(*grouping.region)[heads]
        num_heads = len(range(self.num_heads)[heads])
        groups = grouping.split(grouping.gather(qkv))
        out = [kernels.attention(g.tokens, table, num_heads, g.sides, dropout=self.dropout) for g in groups]
        return grouping.scatter(grouping.join(out))


@dataclass(frozen=True)
class Windows(Grouping):
    """Windows of `region` tokens; where an axis has several and `is_shifted`, the first ends after half of one."""

    is_shifted: bool = False

    def along(self, length: int, side: int) -> list[tuple[list[int], int]]:
        first = side // 2 if self.is_shifted and side < length else 0
        full = list(range(first, length - side + 1, side))
        last = first + len(full) * side
        kinds = [([0], first), (full, side), ([last], length - last)]
        return [(starts, size) for starts, size in kinds if starts and size]


class WindowAttention(MapAttention):
    """W-MSA of Swin (Liu et al., 2021, Sec. 3.2), also CAT's inner-patch and DaViT's spatial window attention."""

    is_shifted = False

    def attend(self, qkv: Tensor) -> Tensor:
        _, H, W, _ = qkv.shape
        side = min(self.size, H), min(self.size, W)
        return self.attend_within(qkv, Windows(H, W, side, is_shifted=self.is_shifted))


class ShiftedWindowAttention(WindowAttention):
    """SW-MSA of Swin: windows start at ⌊M/2⌋. Its cyclic shift and masks are a way to compute the same in a batch."""

    is_shifted = True


class InteractiveWindowAttention(WindowAttention):
    """IWSA of ScalableViT (Yang et al., 2022, Sec. 3.3): windows, and a depth-wise 3×3 convolution over the values of
    the whole map that lets neighbouring windows interact."""

    def __init__(self, dim: int, *args: Any, **options: Any) -> None:
        super().__init__(dim, *args, **options)
        self.interaction = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def attend(self, qkv: Tensor) -> Tensor:
        values = qkv.chunk(3, dim=-1)[2].permute(0, 3, 1, 2)  # B H W C -> B C H W
        return super().attend(qkv) + self.interaction(values).permute(0, 2, 3, 1)


class CrossPatchAttention(MapAttention):
    """CPSA of CAT (Lin et al., 2021, Sec. 3.2): every channel is a map of its own, whose patches of M×M values are the
    tokens; all patches of the map attend to each other.

    One head of M² channels, with weights shared by all channels of the map.
    """

    def __init__(self, position_bias: nn.Module | None, patch_size: int, **options: Any) -> None:
        super().__init__(patch_size**2, 1, position_bias, patch_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        (B, H, W, C), M = x.shape, self.size
        x = F.pad(x, (0, 0, 0, -W % M, 0, -H % M))
        n, m = x.shape[1] // M, x.shape[2] // M
        patches = x.view(B, n, M, m, M, C).permute(0, 5, 1, 3, 2, 4)  # -> B C n m M M
        out = super().forward(patches.reshape(B * C, n, m, M * M))
        out = out.view(B, C, n, m, M, M).permute(0, 2, 4, 3, 5, 1)  # -> B n M m M C
        return out.reshape(x.shape)[:, :H, :W]

    def attend(self, qkv: Tensor) -> Tensor:
        _, n, m, _ = qkv.shape
        return self.attend_within(qkv, Grouping(n, m, (n, m)))


class CrossShapedAttention(MapAttention):
    """Cross-shaped window attention of CSWin (Dong et al., 2022, Sec. 3.2): half of the heads attend within horizontal
    stripes as wide as the map, the other half within vertical ones as high as the map.

    Its own position encoding (LePE) gives way to the position bias. Of an odd number of heads the horizontal stripes
    have one more.

    Raises:
        ValueError: There is one head only.
    """

    def __init__(self, dim: int, num_heads: int, *args: Any, **options: Any) -> None:
        if num_heads < 2:
            raise ValueError(
                "attention 'cswin' shares its heads out among two directions: num_heads must be 2 or more"
            )
        super().__init__(dim, num_heads, *args, **options)

    def attend(self, qkv: Tensor) -> Tensor:
        _, H, W, _ = qkv.shape
        by_head = qkv.unflatten(3, (3, self.num_heads, -1))
        half, out = (self.num_heads + 1) // 2, []
        for heads, side in (
            (slice(half), (min(self.size, H), W)),
            (slice(half, None), (H, min(self.size, W))),
        ):
            own = by_head[:, :, :, :, heads].flatten(3)
            out.append(self.attend_within(own, Windows(H, W, side), heads))
        return torch.cat(out, dim=-1)
