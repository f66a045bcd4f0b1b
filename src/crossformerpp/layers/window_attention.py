"""Self-attentions of other transformers within windows, stripes and patches, for Table VIII.

Legend: B batch, C channels, H W map, S windows per image, N tokens of a window, h heads, T = B·H·W rows.

They take part in a CrossFormer block in the place of `GroupAttention` (see self_attention.py), follow the papers that
they come from, and are written for clarity, not speed. Maps of any size: a window at the rim is padded, and no token
attends to padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.attention import attend_within
from crossformerpp.layers.grouping import AnyGrouping, Groups
from crossformerpp.layers.position import GroupSide, PositionBias
from crossformerpp.layers.projection import Linear


class MapAttention(nn.Module):
    """A self-attention that arranges whole maps by itself: rows (T, C) in map order -> rows (T, C)."""

    takes_maps = True

    def __init__(
        self, num_heads: int, position_bias: PositionBias | None, attn_drop: float, proj_drop: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_bias = position_bias
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grouping: AnyGrouping) -> Tensor:
        maps = x.view(-1, grouping.height, grouping.width, x.shape[-1])  # T C -> B H W C
        return self.proj_drop(self.attend(maps)).reshape(x.shape)

    def attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), projected."""
        raise NotImplementedError

    @property
    def dropout(self) -> float:
        """The attention map's dropout now."""
        return self.attn_drop if self.training else 0.0

    def bias(self, side: GroupSide, like: Tensor) -> Tensor | None:
        """The position bias of windows of `side`, (h, N, N)."""
        return None if self.position_bias is None else self.position_bias([side], like.dtype)[0]


def to_windows(x: Tensor, side: GroupSide, shift: GroupSide = (0, 0)) -> Groups:
    """Cut maps into windows: (B, H, W, C) -> (B·S, N, C).

    Args:
        shift: How far the first window starts from the map's corner; what lies before shares windows with the map's
            other end, and does not attend to it.
    """
    B, H, W, _ = x.shape
    n, m = _num_windows(x, side)
    x = _roll(F.pad(x, (0, 0, 0, m * side[1] - W, 0, n * side[0] - H)), shift)
    tokens = _cut(x, side)
    if (n * side[0], m * side[1]) == (H, W) and shift == (0, 0):
        return Groups(tokens, *side)
    y, x_ = (torch.arange(length, device=x.device) for length in x.shape[1:3])
    region = (y >= shift[0])[:, None] * 2 + (x_ >= shift[1])
    region = region.masked_fill((y >= H)[:, None] | (x_ >= W), -1)
    region = _cut(_roll(region[None, :, :, None], shift), side).squeeze(-1)  # S N
    may_attend = region[:, None, :, None] == region[:, None, None, :]  # S 1 N N
    return Groups(tokens, *side, may_attend.repeat(B, 1, 1, 1))


def from_windows(
    tokens: Tensor, height: int, width: int, side: GroupSide, shift: GroupSide = (0, 0)
) -> Tensor:
    """What `to_windows` did, undone: (B·S, N, C) -> (B, H, W, C)."""
    n, m = -(-height // side[0]), -(-width // side[1])
    x = tokens.view(-1, n, m, *side, tokens.shape[-1]).transpose(2, 3)  # -> B n gh m gw C
    x = x.reshape(-1, n * side[0], m * side[1], tokens.shape[-1])
    return _roll(x, (-shift[0], -shift[1]))[:, :height, :width]


def _num_windows(x: Tensor, side: GroupSide) -> tuple[int, int]:
    return -(-x.shape[1] // side[0]), -(-x.shape[2] // side[1])


def _roll(x: Tensor, shift: GroupSide) -> Tensor:
    return x if shift == (0, 0) else x.roll((-shift[0], -shift[1]), (1, 2))


def _cut(x: Tensor, side: GroupSide) -> Tensor:
    """(B, n·gh, m·gw, C) -> (B·n·m, gh·gw, C)."""
    B, H, W, C = x.shape
    x = x.view(B, H // side[0], side[0], W // side[1], side[1], C).transpose(2, 3)
    return x.reshape(-1, side[0] * side[1], C)


class WindowAttention(MapAttention):
    """W-MSA and SW-MSA of Swin (Liu et al., 2021, Sec. 3.2); unshifted also CAT's inner-patch attention and DaViT's
    spatial window attention.

    Args:
        window_size: M; a shorter map is one window along that axis.
        is_shifted: Whether windows start at ⌊M/2⌋, along an axis that has several.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: PositionBias | None,
        window_size: int,
        is_shifted: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(num_heads, position_bias, attn_drop, proj_drop)
        self.window_size = window_size
        self.is_shifted = is_shifted
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        return self.proj(self.attend_in_windows(self.qkv(x)))

    def attend_in_windows(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3C) -> (B, H, W, C)."""
        _, H, W, _ = qkv.shape
        M = self.window_size
        side = min(M, H), min(M, W)
        shift = (M // 2 if H > M else 0, M // 2 if W > M else 0) if self.is_shifted else (0, 0)
        windows = to_windows(qkv, side, shift)
        out = attend_within(windows, self.num_heads, self.bias(side, qkv), self.dropout)
        return from_windows(out, H, W, side, shift)


class InteractiveWindowAttention(WindowAttention):
    """IWSA of ScalableViT (Yang et al., 2022, Sec. 3.3): windows, and a depth-wise 3×3 convolution over the values of
    the whole map that lets neighbouring windows interact."""

    def __init__(
        self, dim: int, num_heads: int, position_bias: PositionBias | None, *args: Any, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, position_bias, *args, **options)
        self.interaction = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        values = qkv.chunk(3, dim=-1)[2].permute(0, 3, 1, 2)  # B H W C -> B C H W
        return self.proj(self.attend_in_windows(qkv) + self.interaction(values).permute(0, 2, 3, 1))


class CrossPatchAttention(MapAttention):
    """CPSA of CAT (Lin et al., 2021, Sec. 3.2): every channel is a map of its own, whose patches of M×M values are the
    tokens; all patches of the map attend to each other.

    One head of M² channels, with weights shared by all channels of the map.
    """

    def __init__(
        self,
        patch_size: int,
        position_bias: PositionBias | None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(1, position_bias, attn_drop, proj_drop)
        self.patch_size = patch_size
        self.qkv = Linear(patch_size**2, 3 * patch_size**2, bias=qkv_bias)
        self.proj = Linear(patch_size**2, patch_size**2)

    def attend(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        side = self.patch_size, self.patch_size
        n, m = _num_windows(x, side)
        patches = to_windows(x, side).tokens.view(B, n * m, -1, C)  # B S M² C
        patches = patches.permute(0, 3, 1, 2).flatten(0, 1)  # -> B·C S M²
        out = attend_within(
            Groups(self.qkv(patches), n, m), self.num_heads, self.bias((n, m), x), self.dropout
        )
        out = self.proj(out).view(B, C, n * m, -1).permute(0, 2, 3, 1)  # B·C S M² -> B S M² C
        return from_windows(out.flatten(0, 1), H, W, side)


class CrossShapedAttention(MapAttention):
    """Cross-shaped window attention of CSWin (Dong et al., 2022, Sec. 3.2): half of the heads attend within horizontal
    stripes as wide as the map, the other half within vertical ones as high as the map.

    Its own position encoding (LePE) gives way to the position bias. Of an odd number of heads the horizontal stripes
    have one more.

    Args:
        stripe_width: sw.

    Raises:
        ValueError: There is one head only.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: PositionBias | None,
        stripe_width: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(num_heads, position_bias, attn_drop, proj_drop)
        if num_heads < 2:
            raise ValueError(
                "attention 'cswin' shares its heads out among two directions: num_heads must be 2 or more"
            )
        self.stripe_width = stripe_width
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        qkv = self.qkv(x).view(B, H, W, 3, self.num_heads, -1)
        half = (self.num_heads + 1) // 2
        rows = self._attend_in_stripes(qkv, slice(half), (min(self.stripe_width, H), W))
        columns = self._attend_in_stripes(qkv, slice(half, None), (H, min(self.stripe_width, W)))
        return self.proj(torch.cat([rows, columns], dim=-1))

    def _attend_in_stripes(self, qkv: Tensor, heads: slice, side: GroupSide) -> Tensor:
        """Of the chosen heads: (B, H, W, 3, h, d) -> (B, H, W, h'·d)."""
        chosen, bias = qkv[:, :, :, :, heads], self.bias(side, qkv)
        out = attend_within(
            to_windows(chosen.flatten(3), side),
            chosen.shape[4],
            None if bias is None else bias[heads].contiguous(),
            self.dropout,
        )
        return from_windows(out, qkv.shape[1], qkv.shape[2], side)
