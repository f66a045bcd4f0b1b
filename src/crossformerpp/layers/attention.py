"""Self-attention within groups, Sec. 3.2.

Legend: B batch, C channels, H W map, S groups per image, N = gh·gw tokens of a group, T = B·H·W rows of tokens,
h heads, d = C/h head dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from crossformerpp import kernels
from crossformerpp.layers.grouping import GroupRule, rule_of
from crossformerpp.layers.linear import Linear
from crossformerpp.layers.padding import Sides


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√d + B) of Eq. 1: q and k (…, h, N, d), bias (h, N, N) -> (…, h, N, N).

    `kernels.attention` computes its product with V, in whatever way is fastest.
    """
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1)


@kernels.differentiable_operator(
    "group_attention", like=lambda qkv, *_: qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
)
def _attend_on_map(
    qkv: Tensor,
    table: Tensor | None,
    num_heads: int,
    distance: str,
    group_size: int,
    interval: int,
    lda: str,
) -> Tensor:
    """What `GroupAttention` does between qkv and proj, at real sizes: B H W 3C -> B H W C."""
    grouping = rule_of(distance, group_size, interval, lda).on(*qkv.shape[1:3])
    groups = grouping.split(grouping.gather(qkv))
    out = [kernels.attention(g.tokens, table, num_heads, g.sides) for g in groups]
    return grouping.scatter(grouping.join(out))


class GroupAttention(nn.Module):
    """SDA or LDA: multi-head self-attention within each group of a map, softmax(QKᵀ/√d + B)·V (Eq. 1).

    Args:
        position_bias: Maps the sides of a group to the bias of every offset, see position.py; None for no bias.
        rule: Its distance, G, I and kind of LDA.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: nn.Module | None,
        rule: GroupRule,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dimension {dim} is no multiple of the {num_heads} heads")
        self.num_heads = num_heads
        self.position_bias = position_bias
        self.rule = rule
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        H, W = x.shape[1:3]
        dropout = self.attn_drop if self.training else 0.0
        gh, gw, interval = self.rule.cells(H, W)
        if dropout == 0.0 and kernels.takes_maps(x, self.num_heads, gh, gw):
            table = self.offset_biases((gh, gw))
            attended = kernels.map_attention(self.qkv(x), table, self.num_heads, gh, gw, interval)
            return self.proj_drop(self.proj(attended))
        if kernels.is_compiled() and dropout == 0.0:
            table = self.offset_biases((gh, gw))
            return self.proj_drop(
                self.proj(_attend_on_map(self.qkv(x), table, self.num_heads, *self.rule.flat()))
            )
        grouping = self.rule.padded_on(H, W) if kernels.needs_padding(H, W) else self.rule.on(H, W)
        table = self.offset_biases(grouping.region)
        groups = grouping.split(self.qkv(grouping.gather(x)))  # B H W C -> per part B·S N 3C
        out = [kernels.attention(g.tokens, table, self.num_heads, g.sides, g.mask, dropout) for g in groups]
        return self.proj_drop(grouping.scatter(self.proj(grouping.join(out))))  # -> B H W C

    def is_as_built(self) -> bool:
        """Whether `kernels.block` computes the same in inference, and no layer would miss a call."""
        layers = (self.qkv, Linear), (self.proj, Linear), (self.proj_drop, nn.Dropout)
        is_training = self.training or self.proj_drop.training
        return kernels.are_untouched(layers) and not is_training and self.qkv.bias is not None

    def offset_biases(self, sides: Sides) -> Tensor | None:
        """The position bias of every offset in groups of up to `sides`: (h, ≥ 2gh−1, ≥ 2gw−1)."""
        return None if self.position_bias is None else self.position_bias(*sides)
