"""Self-attentions of other transformers that reach the whole map by reducing something, for Table VIII.

Legend: B batch, C channels, H W map, L = H·W tokens, R reduction, M = ceil(H/R)·ceil(W/R) reduced tokens, h heads,
d = C/h head dim.

Like those of windows.py they stand in a CrossFormer block in the place of `GroupAttention`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.ablations.windows import MapAttention
from crossformerpp.layers.linear import Linear


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


class ReducedAttention(nn.Module):
    """Every token attends to all of the map, reduced R-fold in height and width; no position bias:
    (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._by_head(t) for t in self.project(x))
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # B h L d
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, C) -> queries (B, H, W, ·), keys and values (B, M, ·)."""
        raise NotImplementedError

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)


class SpatialReductionAttention(ReducedAttention):
    """SRA of PVT (Wang et al., 2021, Sec. 3.3).

    Args:
        reduction: R; with 1 it is plain global attention.
    """

    def __init__(
        self, dim: int, num_heads: int, reduction: int, qkv_bias: bool = True, **drops: float
    ) -> None:
        super().__init__(dim, num_heads, **drops)
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.reduce = SpatialReduction(dim, reduction) if reduction > 1 else nn.Flatten(1, 2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.kv(self.reduce(x)).chunk(2, dim=-1)
        return self.q(x), k, v


class ScalableReduction(nn.Module):
    """R×R patches become one token each of more channels: a depth-wise and a 1×1 convolution, a norm and a GELU;
    (B, H, W, C) -> (B, M, D)."""

    def __init__(self, dim: int, dim_out: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(dim, dim, ratio, ratio, groups=dim)
        self.widen = nn.Conv2d(dim, dim_out, 1)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[1] % self.ratio, -x.shape[2] % self.ratio
        x = self.widen(self.conv(F.pad(x, (0, 0, 0, right, 0, bottom)).permute(0, 3, 1, 2)))  # -> B D H/R W/R
        return F.gelu(self.norm(x.flatten(2).transpose(1, 2)))


class ScalableAttention(ReducedAttention):
    """SSA of ScalableViT (Yang et al., 2022, Sec. 3.2): keys and values of reduced tokens with r_c·C channels, queries
    and keys of r_c·C channels.

    Args:
        reduction: R; the paper's r_n is 1/R². With 1, as in the paper's last stage, it is plain global attention of C
            channels.
        channel_ratio: r_c.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        channel_ratio: float = 1.25,
        qkv_bias: bool = True,
        **drops: float,
    ) -> None:
        super().__init__(dim, num_heads, **drops)
        scaled = dim if reduction == 1 else int(dim // num_heads * channel_ratio) * num_heads
        self.reduce = nn.Flatten(1, 2) if reduction == 1 else ScalableReduction(dim, scaled, reduction)
        self.q = Linear(dim, scaled, bias=qkv_bias)
        self.k = Linear(scaled, scaled, bias=qkv_bias)
        self.v = Linear(scaled, dim, bias=qkv_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reduced = self.reduce(x)
        return self.q(x), self.k(reduced), self.v(reduced)


class ChannelAttention(MapAttention):
    """Channel group attention of DaViT (Ding et al., 2022, Sec. 3.3): within each head the d channels attend to each
    other, every one of them a token that spans the map. It has no position bias.

    DaViT's own layer has the three projections in other roles: see `from_davit`.
    """

    def attend(self, qkv: Tensor) -> Tensor:
        B, H, W, _ = qkv.shape
        q, k, v = qkv.view(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1).unbind(0)  # 3 of B h d L
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, scale=q.shape[2] ** -0.5)
        return out.permute(0, 3, 1, 2).reshape(B, H, W, -1)  # B h d L -> B H W C


def from_davit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of DaViT's channel attention (the original's or timm's) for `ChannelAttention`, with equal outputs.

    The original computes softmax(KᵀV/√d)·Qᵀ, so that what it calls k, v and q are queries, keys and values of
    attention as it is usually written. The rows of `qkv` are reordered accordingly; all else stays as it is.
    """
    ours = dict(state)
    for name, value in state.items():
        if name.startswith("qkv."):
            q, k, v = value.chunk(3)
            ours[name] = torch.cat([k, v, q])
    return ours
