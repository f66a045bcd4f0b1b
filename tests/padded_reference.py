"""Group attention by its literal definition: pad with zeros, group, mask the padded keys, attend, crop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crossformerpp.layers import GroupAttention


def padded_attention(attn: GroupAttention, x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C), with the weights and the grouping of `attn`."""
    B, H, W, C = x.shape
    distance, G, interval, lda = attn.rule
    gh = gw = G
    interval = interval if distance == "long" else 1
    if min(H, W) <= G:
        gh, gw, interval = H, W, 1
    elif distance == "long" and lda == "spanning":  # padded to a multiple of the interval only
        gh, gw = (H + -H % interval) // interval, (W + -W % interval) // interval
    x = F.pad(x, (0, 0, 0, -W % (gw * interval), 0, -H % (gh * interval)))
    is_real = torch.zeros(x.shape[1:3], dtype=torch.bool)
    is_real[:H, :W] = True
    out = torch.zeros_like(x)
    for top in range(0, x.shape[1], gh * interval):
        for left in range(0, x.shape[2], gw * interval):
            for dy in range(interval):
                for dx in range(interval):
                    ys = slice(top + dy, top + gh * interval, interval)
                    xs = slice(left + dx, left + gw * interval, interval)
                    group = x[:, ys, xs].reshape(B, gh * gw, C)
                    found = _attend(attn, group, is_real[ys, xs].flatten(), gh, gw)
                    out[:, ys, xs] = found.view(B, gh, gw, C)
    return out[:, :H, :W]


def _attend(attn: GroupAttention, group: Tensor, is_real: Tensor, height: int, width: int) -> Tensor:
    B, N, C = group.shape
    heads = attn.num_heads
    q, k, v = F.linear(group, attn.qkv.weight, attn.qkv.bias).view(B, N, 3, heads, C // heads).unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * (C // heads) ** -0.5
    scores = scores + direct_bias(attn.position_bias, height, width)
    scores = scores.masked_fill(~is_real, torch.finfo(scores.dtype).min)
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).reshape(B, N, C)
    return F.linear(out, attn.proj.weight, attn.proj.bias)


def direct_bias(dpb: torch.nn.Module, height: int, width: int) -> Tensor:
    """Eq. 2 pair by pair, without a table: (h, N, N)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([y.flatten(), x.flatten()], dim=1)
    hidden = dpb.embed((positions[:, None] - positions[None]).to(dpb.embed.weight.dtype))  # query − key
    for i, layer in enumerate(dpb.layers):
        out = layer(hidden)
        hidden = hidden + out if dpb.residual and i < 2 else out
    return hidden.permute(2, 0, 1)
