"""Attention within groups and the block around it, Sec. 3.2.

Legend: T rows of tokens in a grouping's order (see grouping.py), C channels, S groups per image, N tokens of a group,
h heads, d = C/h head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.execution import is_plain_eager
from crossformerpp.layers.grouping import AnyGrouping, Groups
from crossformerpp.layers.projection import Linear


class GroupAttention(nn.Module):
    """Multi-head self-attention within each group, softmax(QKᵀ/√d + B)V (Eq. 1); short or long distance is the
    grouping's affair.

    Args:
        position_bias: Maps group sizes to biases, see position.py; None for no bias.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: nn.Module | None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dimension {dim} is no multiple of the {num_heads} heads")
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.position_bias = position_bias
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grouping: AnyGrouping) -> Tensor:
        """Rows (T, C) in the order of `grouping` -> rows (T, C)."""
        parts = grouping.split(self.qkv(x))
        sizes = [(part.height, part.width) for part in parts]
        dtype = parts[0].tokens.dtype
        biases = self.position_bias(sizes, dtype) if self.position_bias is not None else [None] * len(parts)
        out = [self._attend(part, bias) for part, bias in zip(parts, biases, strict=True)]
        return self.proj_drop(self.proj(grouping.join(out)))

    def _attend(self, group: Groups, bias: Tensor | None) -> Tensor:
        """B·S N 3C, h N N -> B·S N C."""
        n, N, width = group.tokens.shape
        qkv = group.tokens.view(n, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # -> 3 B·S h N d
        if group.is_real is not None:
            bias = _masked(bias, group.is_real, group.tokens.dtype)
        dropout = self.attn_drop if self.training else 0.0
        if (
            bias is not None
            and bias.dim() == 3
            and dropout == 0.0
            and takes_batched_products(group.tokens, N)
        ):
            out = _attention_by_products(qkv, bias)
        else:
            q, k, v = qkv.unbind(0)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return out.transpose(1, 2).reshape(n, N, width // 3)


def takes_batched_products(tokens: Tensor, group_tokens: int) -> bool:
    """Whether two batched matrix products beat the fused kernel: small groups in float32 on a CPU, for inference.

    PyTorch's fused CPU kernel works group by group and head by head, which costs more than the products themselves
    when a group has few tokens (docs/performance.md). Beyond that the attention map should not be stored.
    """
    return (
        group_tokens <= _MAX_TOKENS_OF_PRODUCTS
        and tokens.device.type == "cpu"
        and tokens.dtype == torch.float32
        and not torch.is_grad_enabled()
        and is_plain_eager(tokens)
    )


_MAX_TOKENS_OF_PRODUCTS = 256


def _attention_by_products(qkv: Tensor, bias: Tensor) -> Tensor:
    """3 B·S h N d, h N N -> B·S h N d."""
    _, n, h, N, d = qkv.shape
    q, k, v = qkv.reshape(3, n * h, N, d).unbind(0)
    scores = bias.expand(n, h, N, N).reshape(n * h, N, N)
    attention = torch.baddbmm(scores, q, k.transpose(1, 2), alpha=d**-0.5).softmax(-1)
    return torch.bmm(attention, v).view(n, h, N, d)


def _masked(bias: Tensor | None, is_real: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias with the lowest finite number at padded keys; −inf would make a group of padding alone NaN."""
    bias = torch.zeros((), dtype=dtype, device=is_real.device) if bias is None else bias
    return torch.where(is_real, bias, torch.finfo(dtype).min)


class Mlp(nn.Module):
    """Linear, GELU, Linear: (T, C) -> (T, C)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
