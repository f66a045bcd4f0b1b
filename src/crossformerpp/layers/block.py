"""The CrossFormer block, Sec. 3.2 and 4.2.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from crossformerpp import kernels
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.layers.grouping import rule_of
from crossformerpp.layers.linear import Linear


class Mlp(nn.Module):
    """Linear, GELU, Linear: (…, C) -> (…, C)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_as_built():
            return kernels.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

    def is_as_built(self) -> bool:
        """Whether `kernels.mlp` computes the same, and no layer would miss a call."""
        layers = (self.fc1, Linear), (self.act, nn.GELU), (self.fc2, Linear), (self.drop, nn.Dropout)
        is_exact = getattr(self.act, "approximate", None) == "none"
        return kernels.are_untouched(layers) and is_exact and not (self.drop.training and self.drop.p > 0.0)


class CrossFormerBlock(nn.Module):
    """Attention and MLP with residual connections, pre-norm (Fig. 1b), and the cooling layer that follows some blocks
    (Fig. 6): (B, H, W, C) -> (B, H, W, C).

    Args:
        attn: Its self-attention on maps.
        drop_path: Rate of stochastic depth, per image and branch.
        cooling: The cooling layer; None for none.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        cooling: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn: Any = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()
        self.cooling = cooling

    def forward(self, x: Tensor) -> Tensor:
        if self._takes_kernel(x):
            x = self._kernel(x)
        else:
            x = x + self.drop_path(self.attn(self.norm1(x)))
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x if self.cooling is None else self.cooling(x)

    def _kernel(self, x: Tensor) -> Tensor:
        """The two lines of `forward` in inference on a CPU."""
        layers: Any = (self.norm1, self.attn.qkv, self.attn.proj, self.norm2, self.mlp.fc1, self.mlp.fc2)
        weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        table = self.attn.offset_biases(self.attn.rule.sides(*x.shape[1:3]))
        eps = [self.norm1.eps, self.norm2.eps]
        run = _operator if torch.compiler.is_compiling() else _run_kernel
        return run(x, table, weights, eps, self.attn.num_heads, *self.attn.rule.flat())

    def _takes_kernel(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and not (torch.is_grad_enabled() or self.training)
            and kernels.takes_blocks(x)
            and kernels.are_untouched(
                (
                    (self.norm1, nn.LayerNorm),
                    (self.attn, GroupAttention),
                    (self.norm2, nn.LayerNorm),
                    (self.mlp, Mlp),
                    (self.drop_path, DropPath if isinstance(self.drop_path, DropPath) else nn.Identity),
                )
            )
            and not (self.drop_path.training and isinstance(self.drop_path, DropPath))
            and not any(
                part is None for norm in (self.norm1, self.norm2) for part in (norm.weight, norm.bias)
            )
            and self.attn.is_as_built()
            and self.mlp.is_as_built()
        )


def _run_kernel(
    x: Tensor,
    table: Tensor | None,
    weights: list[Tensor],
    eps: list[float],
    num_heads: int,
    distance: str,
    group_size: int,
    interval: int,
    lda: str,
) -> Tensor:
    B, H, W, C = x.shape
    grouping = rule_of(distance, group_size, interval, lda).on(H, W)
    chunks = grouping.chunks(B, x.device, max(1, kernels.CHUNK_ELEMENTS // C))
    return kernels.block(x.reshape(-1, C), weights, eps, table, num_heads, chunks).view(B, H, W, C)


_operator = kernels.operator("block", like=lambda x, *_: x.new_empty(x.shape))(_run_kernel)
