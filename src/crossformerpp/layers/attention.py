"""Attention within groups and the block around it, Sec. 3.2.

Legend: T rows of tokens in a grouping's order (see grouping.py), C channels, S groups per image, N tokens of a group,
h heads, d = C/h head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformerpp.layers.execution import is_plain_eager
from crossformerpp.layers.grouping import (
    AnyGrouping,
    Grouping,
    Groups,
    OpaqueGrouping,
    join_padded,
    map_order,
    regroup,
    split_padded,
)
from crossformerpp.layers.position import DynamicPositionBias, PositionBias, dynamic_bias_table, spread_table
from crossformerpp.layers.projection import Linear


class GroupAttention(nn.Module):
    """Multi-head self-attention within each group, softmax(QKᵀ/√d + B)V (Eq. 1); short or long distance is the
    grouping's affair.

    Args:
        position_bias: Maps group sizes to biases, see position.py; None for no bias.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`.
    """

    takes_maps = False  # but rows in the order of a grouping

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: PositionBias | None,
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

    @torch.jit.unused
    def forward(self, x: Tensor, grouping: AnyGrouping | OpaqueGrouping) -> Tensor:
        """Rows (T, C) in the order of `grouping` -> rows (T, C)."""
        qkv = self.qkv(x)
        if isinstance(grouping, OpaqueGrouping):
            out = attend_opaquely(qkv, self.num_heads, self.position_bias, grouping)
        else:
            dropout = self.attn_drop if self.training else 0.0
            out = attend_in_groups(qkv, self.num_heads, self.position_bias, grouping, dropout)
        return self.proj_drop(self.proj(out))

    def scriptable_forward(self, x: Tensor, group_size: int, interval: int) -> Tensor:
        """Maps (B, H, W, C) -> (B, H, W, C), in padded groups."""
        B, H, W, C = x.shape
        tokens, is_real = split_padded(self.qkv(x).flatten(1, 2), H, W, group_size, interval)
        height, width = (H, W) if is_real is None else (group_size, group_size)
        bias = torch.zeros([1, 1, 1], dtype=x.dtype, device=x.device)
        if self.position_bias is not None:
            bias = self.position_bias.scriptable_forward(height, width)  # type: ignore[attr-defined]
        if is_real is not None:
            lowest = torch.full_like(bias, -float("inf")).nan_to_num()  # of its precision
            bias = torch.where(is_real, bias, lowest)
        qkv = tokens.view(-1, height * width, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B·S N 3 h d -> 3 of B·S h N d
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout).transpose(1, 2)
        out = join_padded(out.reshape(B, -1, C), H, W, group_size, interval)
        return self.proj_drop(self.proj(out)).view(B, H, W, C)


def attend_in_groups(
    qkv: Tensor,
    num_heads: int,
    position_bias: PositionBias | None,
    grouping: AnyGrouping,
    dropout: float = 0.0,
) -> Tensor:
    """Eq. 1 within every group: rows T 3C in the order of `grouping` -> T C."""
    parts = grouping.split(qkv)
    biases: Sequence[Tensor | None] = [None] * len(parts)
    if position_bias is not None:
        biases = position_bias([(part.height, part.width) for part in parts], qkv.dtype)
    out = [attend_within(part, num_heads, bias, dropout) for part, bias in zip(parts, biases, strict=True)]
    return grouping.join(out)


def attend_within(group: Groups, num_heads: int, bias: Tensor | None, dropout: float) -> Tensor:
    """Eq. 1 within equal groups: B·S N 3C, h N N -> B·S N C.

    Whatever the kernel, the softmax is in float32. On a CPU PyTorch's fused kernel has no gradient for the bias, and in
    bfloat16 it takes nearly as long as in float32: products take its place there (docs/performance.md).
    """
    n, N, width = group.tokens.shape
    if (
        group.is_real is None
        and bias is not None
        and dropout == 0.0
        and _takes_products(group.tokens, num_heads)
    ):
        if not torch.is_grad_enabled():
            return _infer_by_products(group.tokens, num_heads, bias)
        out = _AttentionByProducts.apply(_heads(group.tokens, num_heads).contiguous(), bias)
    else:
        if group.is_real is not None:
            bias = _masked(bias, group.is_real, group.tokens.dtype)
        elif bias is not None:
            bias = bias[None]  # without the batch's dimension PyTorch's fused CPU kernel is passed over
        q, k, v = _heads(group.tokens, num_heads).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():
        # else the graph would hold the memory layout of the kernel that this machine chose
        out = out.clone(memory_format=torch.contiguous_format)
    return out.reshape(n, N, width // 3)


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    """B·S N 3C -> 3 B·S h N d."""
    n, N, _ = tokens.shape
    return tokens.view(n, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4)


def _takes_products(tokens: Tensor, num_heads: int) -> bool:
    if tokens.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not is_plain_eager(tokens):
        return False
    N = tokens.shape[1]
    if torch.is_grad_enabled():
        return tokens.dtype == torch.float32 and N <= _MAX_TOKENS_OF_PRODUCTS
    return tokens.dtype == torch.bfloat16 and num_heads * N * N <= _MAX_SCORES


_MAX_TOKENS_OF_PRODUCTS = 256
_MAX_SCORES = 1 << 19  # of an attention map in float32, 2 MB: stays in the cache, and takes no fresh pages


def _infer_by_products(tokens: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """Eq. 1, as many groups at a time as there is room for: B·S N 3C, h N N -> B·S N C.

    Scores are rounded to the tokens' precision, as under autocast; the bias is added and the softmax taken in float32.
    """
    n, N, width = tokens.shape
    bias = bias.float()
    out = tokens.new_empty(n, N, num_heads, width // 3 // num_heads)
    step = max(1, _MAX_SCORES // bias.numel())
    for some, place in zip(tokens.split(step), out.split(step), strict=True):
        q, k, v = _heads(some, num_heads).contiguous().flatten(1, 2).unbind(0)  # B·S·h N d
        scores = torch.bmm(q, k.transpose(1, 2)).view(-1, *bias.shape).float()
        attention = torch.add(bias, scores, alpha=q.shape[-1] ** -0.5, out=scores).softmax(-1)
        values = torch.bmm(attention.to(v.dtype).flatten(0, 1), v)
        place.copy_(values.view(-1, num_heads, N, v.shape[-1]).transpose(1, 2))
    return out.flatten(2)


class _AttentionByProducts(torch.autograd.Function):
    """qkv (3, B·S, h, N, d), bias (h, N, N) -> (B·S, h, N, d). The attention map is computed again for the backward
    pass instead of being kept: it is what most of a training step's memory would go to."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        _, n, h, N, d = qkv.shape
        q, k, v = qkv.reshape(3, n * h, N, d).unbind(0)
        return torch.bmm(_attention_map(q, k, bias), v).view(n, h, N, d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        _, n, h, N, d = qkv.shape
        q, k, v = qkv.reshape(3, n * h, N, d).unbind(0)
        attention = _attention_map(q, k, bias)
        grad = grad.reshape(n * h, N, d)
        for_attention = torch.bmm(grad, v.transpose(1, 2))
        for_scores = attention * (for_attention - (for_attention * attention).sum(-1, keepdim=True))
        for_q = torch.bmm(for_scores, k) * d**-0.5
        for_k = torch.bmm(for_scores.transpose(1, 2), q) * d**-0.5
        for_v = torch.bmm(attention.transpose(1, 2), grad)
        return torch.stack([for_q, for_k, for_v]).view_as(qkv), for_scores.view(n, h, N, N).sum(0)


def _attention_map(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """q, k (B·S·h, N, d), bias (h, N, N) -> softmax(qkᵀ/√d + bias), (B·S·h, N, N)."""
    scores = bias.expand(len(q) // len(bias), *bias.shape).clone(memory_format=torch.contiguous_format)
    scores = scores.view(-1, *bias.shape[1:])  # a copy of our own, to which products are added in place
    return scores.baddbmm_(q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(-1)


def _masked(bias: Tensor | None, is_real: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias with the lowest finite number at padded keys; −inf would make a group of padding alone NaN."""
    bias = torch.zeros((), dtype=dtype, device=is_real.device) if bias is None else bias
    return torch.where(is_real, bias, torch.finfo(dtype).min)


_AUTOGRAD_KEYS = torch._C._dispatch_keyset_full() - torch._C._after_autograd_keyset


def attend_opaquely(
    qkv: Tensor, num_heads: int, position_bias: PositionBias | None, grouping: OpaqueGrouping
) -> Tensor:
    """`attend_in_groups` as one operator that a compiler does not look into: rows T 3C in map order -> T C."""
    assert isinstance(position_bias, DynamicPositionBias)
    return _opaque_attention(
        qkv, position_bias.weights(), position_bias.residual, num_heads, grouping.as_tuple()
    )


def _eager_attention(
    qkv: Tensor, bias_parameters: Sequence[Tensor], residual: bool, num_heads: int, sizes: Sequence[int]
) -> Tensor:
    grouping = Grouping(*sizes)
    in_map_order = map_order(*sizes[:3])

    def position_bias(sides: Sequence[tuple[int, int]], dtype: torch.dtype | None) -> list[Tensor]:
        return spread_table(lambda h, w: dynamic_bias_table(bias_parameters, residual, h, w), sides, dtype)

    out = attend_in_groups(regroup(qkv, in_map_order, grouping), num_heads, position_bias, grouping)
    return regroup(out, grouping, in_map_order)


@torch.library.custom_op("crossformerpp::group_attention", mutates_args=())
def _opaque_attention(
    qkv: Tensor,
    bias_parameters: list[Tensor],
    residual: bool,
    num_heads: int,
    sizes: Sequence[int],  # `Grouping.as_tuple`
) -> Tensor:
    # the operator must not hand out its input's memory, nor a view of it
    return _eager_attention(qkv, bias_parameters, residual, num_heads, sizes).contiguous()


@torch.library.custom_op("crossformerpp::group_attention_backward", mutates_args=())
def _opaque_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bias_parameters: list[Tensor],
    residual: bool,
    num_heads: int,
    sizes: Sequence[int],
) -> list[Tensor]:
    # An operator's kernel runs below autograd; recomputing with gradients needs it back.
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(keys[0], keys[1] - _AUTOGRAD_KEYS), torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (qkv, *bias_parameters)]
        out = _eager_attention(inputs[0], inputs[1:], residual, num_heads, sizes)
        return [g.contiguous() for g in torch.autograd.grad(out, inputs, grad)]


@_opaque_attention.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@_opaque_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, bias_parameters: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (qkv, *bias_parameters)]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias_parameters, *ctx.settings = inputs
    ctx.save_for_backward(qkv, *bias_parameters)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    qkv, *bias_parameters = ctx.saved_tensors
    for_qkv, *for_bias = _opaque_attention_backward(grad, qkv, bias_parameters, *ctx.settings)
    return for_qkv, for_bias, *[None] * len(ctx.settings)


_opaque_attention.register_autograd(_backward, setup_context=_save_for_backward)


class Mlp(nn.Module):
    """Linear, GELU, Linear: (T, C) -> (T, C).

    In training GELU's output, the widest tensor of a block, is computed again from its input in the backward pass.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self._forward(x)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

    def _forward(self, x: Tensor) -> Tensor:
        if self.is_plain_inference():
            return self.fc2(self.fc1.with_gelu(x))
        hidden = self.fc1(x)
        active = self.act(hidden)
        if (
            not torch.is_grad_enabled()
            or not is_plain_eager(active)
            or (self.drop.training and self.drop.p > 0.0)
        ):
            return self.drop(self.fc2(self.drop(active)))
        place, shape = active.data_ptr(), active.shape  # not the tensor itself, which a closure would keep

        def pack(saved: Tensor) -> Tensor | None:
            return None if saved.data_ptr() == place and saved.shape == shape else saved

        def unpack(kept: Tensor | None) -> Tensor:
            return self.act(hidden.detach()) if kept is None else kept

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return self.fc2(active)

    def is_plain_inference(self) -> bool:
        """Whether this is an inference, with the parts as they were built and nobody watching them."""
        parts = (self.fc1, self.act, self.drop)
        return (
            not (torch.is_grad_enabled() or self.training or self.drop.training)
            and [type(part) for part in parts] == [Linear, nn.GELU, nn.Dropout]
            and self.act.approximate == "none"
            and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        )
