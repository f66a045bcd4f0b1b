"""The backbone as the paper writes it down, to measure the product against. Not for use.

Group attention is taken literally: the map is padded with zeros to a multiple of the group (SDA), of group times
interval (regional LDA) or of the interval (spanning LDA), padded keys are masked, the attention map is computed,
soft-maxed and multiplied step by step, and the position bias is computed in every forward pass. Linear layers are
`torch.nn.Linear`.

Legend: B batch, C channels, H W map, G group side, I interval, N tokens of a group, h heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LiteralPositionBias(nn.Module):
    """DPB on every offset of a group, then a gather over all pairs of tokens (Sec. 3.2.2)."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, hidden_dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out))
            for out in (hidden_dim, hidden_dim, num_heads)
        )

    def forward(self, height: int, width: int) -> Tensor:
        device = self.embed.weight.device
        y, x = torch.arange(1 - height, height, device=device), torch.arange(1 - width, width, device=device)
        offsets = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).view(-1, 2).to(self.embed.weight.dtype)
        table = self.embed(offsets)
        for layer in self.layers:
            table = layer(table)
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 2)
        relative = positions[:, None] - positions[None, :]  # query − key
        index = (relative[..., 0] + height - 1) * (2 * width - 1) + relative[..., 1] + width - 1
        return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()  # h N N


class LiteralAttention(nn.Module):
    """Explicit softmax(QKᵀ/√d + B)V (Eq. 1)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_bias = LiteralPositionBias(dim // 16, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int, mask: Tensor | None) -> Tensor:
        n, N, C = x.shape
        qkv = self.qkv(x).view(n, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q * (C // self.num_heads) ** -0.5) @ k.transpose(-2, -1)  # B·S h N N
        attention = attention + self.position_bias(height, width).unsqueeze(0)
        if mask is not None:  # S N, True where a key is real
            S = mask.shape[0]
            attention = attention.view(n // S, S, self.num_heads, N, N)
            attention = attention.masked_fill(~mask[None, :, None, None, :], torch.finfo(attention.dtype).min)
            attention = attention.view(n, self.num_heads, N, N)
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, N, C))


class LiteralCooling(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class LiteralMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LiteralBlock(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        is_long: bool,
        group_size: int,
        interval: int,
        spans: bool,
        cooled: bool,
    ) -> None:
        super().__init__()
        self.is_long, self.group_size, self.interval, self.spans = is_long, group_size, interval, spans
        self.norm1, self.attn = nn.LayerNorm(dim), LiteralAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), LiteralMlp(dim)
        self.cooling = LiteralCooling(dim) if cooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._group_attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x if self.cooling is None else self.cooling(x)

    def _group_attention(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        if min(H, W) <= self.group_size:
            return self.attn(x.reshape(B, H * W, C), H, W, None).view(B, H, W, C)
        I = self.interval if self.is_long else 1  # noqa: E741
        spans = self.is_long and self.spans
        gh, gw = (-(-H // I), -(-W // I)) if spans else (self.group_size, self.group_size)
        x = F.pad(x, (0, 0, 0, -W % (gw * I), 0, -H % (gh * I)))
        Hp, Wp = x.shape[1:3]
        mask = None
        if (Hp, Wp) != (H, W):
            real = torch.zeros(1, Hp, Wp, 1, device=x.device, dtype=torch.bool)
            real[:, :H, :W] = True
            mask = self._group(real, gh, gw, I)[..., 0]
        x = self.attn(self._group(x, gh, gw, I), gh, gw, mask)
        x = x.view(B, Hp // (gh * I), Wp // (gw * I), I, I, gh, gw, C).permute(0, 1, 5, 3, 2, 6, 4, 7)
        return x.reshape(B, Hp, Wp, C)[:, :H, :W].contiguous()

    @staticmethod
    def _group(x: Tensor, gh: int, gw: int, I: int) -> Tensor:  # noqa: E741
        """B H W C -> B·S N C."""
        B, H, W, C = x.shape
        x = x.view(B, H // (gh * I), gh, I, W // (gw * I), gw, I, C).permute(0, 1, 4, 3, 6, 2, 5, 7)
        return x.reshape(-1, gh * gw, C)


class LiteralEmbedding(nn.Module):
    def __init__(
        self, in_chans: int, dim: int, kernel_sizes: Sequence[int], stride: int, norm_first: bool
    ) -> None:
        super().__init__()
        n = len(kernel_sizes)
        dims = [dim // 2 ** min(i + 1, n - 1) for i in range(n)]
        self.norm_first = norm_first
        self.projections = nn.ModuleList(
            nn.Conv2d(in_chans, d, k, stride, (k - stride) // 2)
            for k, d in zip(kernel_sizes, dims, strict=True)
        )
        self.norm = nn.LayerNorm(in_chans if norm_first else dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) if self.norm_first else x
        x = x.permute(0, 3, 1, 2)
        x = torch.cat([projection(x) for projection in self.projections], dim=1).permute(0, 2, 3, 1)
        return x if self.norm_first else self.norm(x)


class LiteralStage(nn.Module):
    def __init__(self, embedding: LiteralEmbedding, blocks: Sequence[LiteralBlock]) -> None:
        super().__init__()
        self.embedding, self.blocks = embedding, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.embedding(x))


class LiteralHead(nn.Module):
    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(1, 2)))


class LiteralCrossFormer(nn.Module):
    """Takes the arguments and the state dict of `crossformerpp.CrossFormer`; sizes must be multiples of 32."""

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        group_sizes: Sequence[int],
        intervals: Sequence[int],
        lda: str,
        cooling: int | None,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        stages = []
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            embedding = (
                LiteralEmbedding(3, dim, (4, 8, 16, 32), 4, norm_first=False)
                if i == 0
                else LiteralEmbedding(dim // 2, dim, (2, 4), 2, norm_first=True)
            )
            blocks = [
                LiteralBlock(
                    dim,
                    num_heads[i],
                    is_long=j % 2 == 1,
                    group_size=group_sizes[i],
                    interval=intervals[i],
                    spans=lda == "spanning",
                    cooled=cooling is not None and (j + 1) % cooling == 0 and j + 1 < depth,
                )
                for j in range(depth)
            ]
            stages.append(LiteralStage(embedding, blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.head = LiteralHead(dim, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the four stages' maps, B C H W."""
        maps, x = [], x.permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2).contiguous())
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x.permute(0, 2, 3, 1))))
