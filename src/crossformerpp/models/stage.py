"""A CrossFormer block and a stage of them (Sec. 3.2, 4.2).

TorchScript compiles no groupings. Where `forward` takes one, a module has a `scriptable_forward` beside it that takes a
map and gives the same result, in the padded groups that exported graphs have.

Legend: B batch, C channels, D channels out, H W map, T = B·H·W rows of tokens in a grouping's order (grouping.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers import drop_path
from timm.models import checkpoint
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import has_static_value

from crossformerpp.layers.attention import GroupAttention, Mlp
from crossformerpp.layers.cooling import CoolingKind, cooling_layer
from crossformerpp.layers.embedding import CrossScaleEmbedding
from crossformerpp.layers.execution import is_plain_eager
from crossformerpp.layers.group_size import Interval, adaptive_interval
from crossformerpp.layers.grouping import (
    AnyGrouping,
    Grouping,
    MapGrouping,
    OpaqueGrouping,
    PaddedGrouping,
    map_order,
    regroup,
)
from crossformerpp.layers.position import AbsolutePositionEmbedding, DynamicPositionBias
from crossformerpp.layers.self_attention import Distance
from crossformerpp.layers.window_attention import MapAttention
from crossformerpp.models.compiled_block import CHUNK_ELEMENTS, run_operator, takes_operator


class CrossFormerBlock(nn.Module):
    """Attention and MLP with residual connections, pre-norm (Fig. 1b); rows (T, C) -> rows (T, C).

    Args:
        attn: Its self-attention, of `build_self_attention`.
        distance: "short" for SDA, "long" for LDA.
        interval: I of LDA, or "adaptive" for the least one at which a group spans the map; SDA has none.
        cooling: The cooling layer that follows the block; None for none.
    """

    def __init__(
        self,
        dim: int,
        attn: GroupAttention | MapAttention,
        distance: Distance,
        group_size: int,
        interval: Interval,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        cooling: CoolingKind | None = None,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.group_size = group_size
        self.interval = interval
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.cooling = None if cooling is None else cooling_layer(cooling, dim)

    def grouping(self, batch: int, height: int, width: int) -> MapGrouping:
        """How this block groups `batch` maps of `height`×`width`."""
        if self.attn.takes_maps:
            return map_order(batch, height, width)
        kind: type[MapGrouping] = Grouping
        if sizes_are_symbols(height, width):
            is_plain = self.attn.attn_drop == 0.0 and isinstance(self.attn.position_bias, DynamicPositionBias)
            kind = OpaqueGrouping if is_plain and not torch.compiler.is_exporting() else PaddedGrouping
        return kind(batch, height, width, self.group_size, self._interval_on(height, width))

    def _interval_on(self, height: int, width: int) -> int:
        if self.distance == "short":
            return 1
        return (
            self.interval
            if isinstance(self.interval, int)
            else adaptive_interval(height, width, self.group_size)
        )

    def scriptable_forward(self, x: Tensor) -> Tensor:
        """This block and the cooling layer after it: (B, H, W, C) -> (B, H, W, C)."""
        interval = self._interval_on(x.shape[1], x.shape[2])
        branch = self.attn.scriptable_forward(self.norm1(x), self.group_size, interval)  # type: ignore[operator]
        x = x + drop_path(branch, self.drop_path, self.training)
        x = x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)
        return x if self.cooling is None else self.cooling(x)

    @torch.jit.unused
    def forward(self, x: Tensor, grouping: MapGrouping) -> Tensor:
        if isinstance(grouping, Grouping) and self._runs_in_chunks(x):
            return self._forward_in_chunks(x, grouping)
        parts = self.norm1, self.attn, self.norm2, self.mlp
        if not isinstance(grouping, PaddedGrouping) and takes_operator(*parts, x):
            return run_operator(*parts, x, grouping)
        return self._forward(x, grouping, self._keep(x, grouping), self._keep(x, grouping))

    def _forward(
        self,
        x: Tensor,
        grouping: AnyGrouping | MapGrouping,
        keep1: Tensor | None = None,
        keep2: Tensor | None = None,
    ) -> Tensor:
        x = _add(x, self.attn(self.norm1(x), grouping), keep1)
        return _add(x, self.mlp(self.norm2(x)), keep2)

    def _forward_in_chunks(self, x: Tensor, grouping: Grouping) -> Tensor:
        """Some groups at a time through the whole block, so that what lies between stays in the cache."""
        out = torch.empty_like(x)
        for start, stop, part in grouping.chunks(max(1, CHUNK_ELEMENTS // x.shape[-1])):
            out[start:stop] = self._forward(x[start:stop], part)
        return out

    def _runs_in_chunks(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.numel() > CHUNK_ELEMENTS
            and not torch.is_grad_enabled()
            and is_plain_eager(x)
            and (not self.training or self.drop_path == 0.0)
            # whoever hooks a layer expects to see all of its tokens at once
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules() if m is not self)
        )

    def _keep(self, x: Tensor, grouping: MapGrouping) -> Tensor | None:
        """Stochastic depth per image: the factor of every row's branch, (T, 1); 0 or 1 / P(keep)."""
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        per_image = x.new_empty(grouping.batch).bernoulli_(keep)
        return grouping.per_row(per_image.div_(keep) if keep > 0.0 else per_image)


def _add(x: Tensor, branch: Tensor, keep: Tensor | None) -> Tensor:
    return x + branch if keep is None else torch.addcmul(x, branch, keep)


def sizes_are_symbols(height: int, width: int) -> bool:
    """Whether a compiler or exporter is at work that leaves the size of maps open."""
    return torch.compiler.is_compiling() and not (has_static_value(height) and has_static_value(width))


class CrossFormerStage(nn.Module):
    """A CEL and the blocks on its tokens; (B, H, W, C) -> (B, ceil(H/s), ceil(W/s), D).

    Args:
        position: What is added to the tokens before the blocks; None for nothing.
    """

    def __init__(
        self,
        embedding: CrossScaleEmbedding,
        blocks: Sequence[CrossFormerBlock],
        position: AbsolutePositionEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.position = position
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        if self.position is not None:
            x = self.position(x)
        if not torch.jit.is_scripting():
            return self._through_blocks(x)
        for block in self.blocks:
            x = block.scriptable_forward(x)  # type: ignore[operator]
        return x

    def _through_blocks(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        order: MapGrouping
        order = in_map_order = map_order(B, H, W)
        x = x.reshape(B * H * W, C)
        for block in cast("list[CrossFormerBlock]", self.blocks):
            grouping = block.grouping(B, H, W)
            x = regroup(x, order, grouping)
            x = checkpoint(block, x, grouping) if self.grad_checkpointing else block(x, grouping)
            order = grouping
            if block.cooling is not None:
                x = regroup(x, order, in_map_order).view(B, H, W, C)
                x, order = block.cooling(x).reshape(B * H * W, C), in_map_order
        return regroup(x, order, in_map_order).view(B, H, W, C)
