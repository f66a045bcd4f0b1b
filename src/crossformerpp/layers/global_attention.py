"""Self-attentions of other transformers that reach the whole map by reducing something, for Table VIII.

Legend: B batch, C channels, H W map, L = H·W tokens, R reduction, M = ceil(H/R)·ceil(W/R) reduced tokens, h heads,
d = C/h head dim.

Like those of window_attention.py they stand in a CrossFormer block in the place of `GroupAttention`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.projection import Linear
from crossformerpp.layers.window_attention import MapAttention


class SpatialReduction(nn.Module):
    """R×R patches become one token each, by a convolution and a norm: (B, H, W, C) -> (B, M, C)."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[1] % self.ratio, -x.shape[2] % self.ratio
        x = self.conv(F.pad(x, (0, 0, 0, right, 0, bottom)).permute(0, 3, 1, 2))  # -> B C H/R W/R
        return self.norm(x.flatten(2).transpose(1, 2))


class SpatialReductionAttention(MapAttention):
    """SRA of PVT (Wang et al., 2021, Sec. 3.3): every token attends to all of the map, reduced R-fold in height and
    width. It has no position bias.

    Args:
        reduction: R; with 1 it is plain global attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(num_heads, None, attn_drop, proj_drop)
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.reduce = SpatialReduction(dim, reduction) if reduction > 1 else nn.Flatten(1, 2)
        self.proj = Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        k, v = self.kv(self.reduce(x)).chunk(2, dim=-1)
        return self.proj(_attend_globally(self.q(x), k, v, self.num_heads, self.dropout))


class ScalableAttention(MapAttention):
    """SSA of ScalableViT (Yang et al., 2022, Sec. 3.2): keys and values of a map reduced R-fold, queries and keys of
    r_c·C channels. It has no position bias.

    The reduction is a convolution with a norm, as in PVT, and a GELU.

    Args:
        reduction: R; the paper's r_n is 1/R².
        channel_ratio: r_c.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        channel_ratio: float = 1.25,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(num_heads, None, attn_drop, proj_drop)
        scaled = int(dim // num_heads * channel_ratio) * num_heads
        self.q = Linear(dim, scaled, bias=qkv_bias)
        self.k = Linear(dim, scaled, bias=qkv_bias)
        self.v = Linear(dim, dim, bias=qkv_bias)
        self.reduce = (
            nn.Sequential(SpatialReduction(dim, reduction), nn.GELU()) if reduction > 1 else nn.Flatten(1, 2)
        )
        self.proj = Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        out = _attend_globally(self.q(x), self.k(reduced), self.v(reduced), self.num_heads, self.dropout)
        return self.proj(out)


class ChannelAttention(MapAttention):
    """Channel group attention of DaViT (Ding et al., 2022, Sec. 3.3): within each head the d channels attend to each
    other, every one of them a token that spans the map. It has no position bias.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(num_heads, None, attn_drop, proj_drop)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).view(B, H * W, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # B L 3 h d -> 3 of B h d L
        scale = (C // self.num_heads) ** -0.5
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, scale=scale)
        return self.proj(out.permute(0, 3, 1, 2).reshape(B, H, W, C))  # B h d L -> B H W C


def _attend_globally(q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout: float) -> Tensor:
    """Queries (B, H, W, ·) of keys and values (B, M, ·) -> (B, H, W, C)."""
    B, H, W, _ = q.shape
    q, k, v = (t.reshape(B, -1, num_heads, t.shape[-1] // num_heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # B h L d
    return out.transpose(1, 2).reshape(B, H, W, -1)
