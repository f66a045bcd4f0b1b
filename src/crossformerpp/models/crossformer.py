"""CrossFormer and CrossFormer++ (Sec. 3, 4) with timm's model contract.

Legend: B batch, C channels, H W map, T = B·H·W rows of tokens in a grouping's order (layers/grouping.py).
Maps are B H W C inside the model and B C H W at its border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint, named_apply
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import has_static_value

from crossformerpp.layers.attention import GroupAttention, Mlp
from crossformerpp.layers.cooling import AmplitudeCoolingLayer, is_cooled
from crossformerpp.layers.embedding import Allocation, CrossScaleEmbedding
from crossformerpp.layers.execution import is_plain_eager
from crossformerpp.layers.group_size import Interval, PerBlock, adaptive_interval, expand_per_block
from crossformerpp.layers.grouping import (
    AnyGrouping,
    Grouping,
    MapGrouping,
    OpaqueGrouping,
    PaddedGrouping,
    map_order,
    regroup,
)
from crossformerpp.layers.position import DynamicPositionBias

# Deviation: the paper gives the DPB a width of D/4; its own parameter counts and the released models have D/16.
_DPB_RATIO = 16
_MIN_SIZE = 32


class CrossFormerBlock(nn.Module):
    """Attention and MLP with residual connections, pre-norm (Fig. 1b); rows (T, C) -> rows (T, C).

    Args:
        distance: "short" for SDA, "long" for LDA.
        interval: I of LDA, or "adaptive" for the least one at which a group spans the map; SDA has none.
        cooling: Whether an ACL follows the block (`cool`).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        distance: Literal["short", "long"],
        group_size: int,
        interval: Interval,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        cooling: bool = False,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.group_size = group_size
        self.interval = interval
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GroupAttention(
            dim,
            num_heads,
            DynamicPositionBias(dim // _DPB_RATIO, num_heads),
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.cooling = AmplitudeCoolingLayer(dim) if cooling else None

    def grouping(self, batch: int, height: int, width: int) -> MapGrouping:
        """How this block groups `batch` maps of `height`×`width`."""
        interval = self.interval if self.distance == "long" else 1
        if interval == "adaptive":
            interval = adaptive_interval(height, width, self.group_size)
        kind: type[MapGrouping] = Grouping
        if _sizes_are_symbols(height, width):
            opaque = not torch.compiler.is_exporting() and self.attn.attn_drop == 0.0
            kind = OpaqueGrouping if opaque else PaddedGrouping
        return kind(batch, height, width, self.group_size, interval)

    def forward(self, x: Tensor, grouping: MapGrouping) -> Tensor:
        if isinstance(grouping, Grouping) and self._runs_in_chunks(x):
            return self._forward_in_chunks(x, grouping)
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
        for start, stop, part in grouping.chunks(max(1, _CHUNK_ELEMENTS // x.shape[-1])):
            out[start:stop] = self._forward(x[start:stop], part)
        return out

    def _runs_in_chunks(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.numel() > _CHUNK_ELEMENTS
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


# Elements of a chunk's rows (T·C). Its widest intermediate, the MLP's hidden layer, is four times that: 4 MB.
_CHUNK_ELEMENTS = 1 << 18


def _add(x: Tensor, branch: Tensor, keep: Tensor | None) -> Tensor:
    return x + branch if keep is None else torch.addcmul(x, branch, keep)


def _sizes_are_symbols(height: int, width: int) -> bool:
    return torch.compiler.is_compiling() and not (has_static_value(height) and has_static_value(width))


class CrossFormerStage(nn.Module):
    """A CEL and the blocks on its tokens; (B, H, W, C) -> (B, ceil(H/s), ceil(W/s), D)."""

    def __init__(self, embedding: CrossScaleEmbedding, blocks: Sequence[CrossFormerBlock]) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        B, H, W, C = x.shape
        order: MapGrouping
        order = in_map_order = map_order(B, H, W)
        x = x.reshape(B * H * W, C)
        for block in cast("list[CrossFormerBlock]", self.blocks):
            grouping = block.grouping(B, H, W)
            x = regroup(x, order, grouping)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grouping)
            else:
                x = block(x, grouping)
            order = grouping
            if block.cooling is not None:
                x = regroup(x, order, in_map_order).view(B, H, W, C)
                x, order = block.cooling(x).reshape(B * H * W, C), in_map_order
        return regroup(x, order, in_map_order).view(B, H, W, C)


class CrossFormer(nn.Module):
    """The backbone and its classification head: final LayerNorm, mean over tokens, Linear.

    Any image of at least 32×32 is taken; a size that is no multiple of 32 is padded by each CEL as needed,
    so that the stages' maps have ceil(H/4), ceil(H/8), ceil(H/16) and ceil(H/32) rows.

    Args:
        embed_dim: D1, doubled from stage to stage.
        depths: Blocks per stage.
        num_heads: Heads per stage.
        group_sizes: G per stage, or per block of a stage (a sequence in its place). It changes no weight.
        intervals: I per stage or block, used by LDA; "adaptive" for ceil(max(H, W) / G) of each map. It changes no
            weight.
        kernel_sizes: Kernels of each stage's CEL.
        allocation: How a CEL shares its channels out among kernels.
        cooling: k, the ACL's interval in blocks; None for no ACL.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.

    Raises:
        ValueError: An argument is out of range or does not fit the others.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        group_sizes: Sequence[PerBlock] = (4, 4, 14, 7),
        intervals: Sequence[Interval | Sequence[Interval]] = (4, 2, 1, 1),
        kernel_sizes: Sequence[Sequence[int]] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4)),
        allocation: Allocation = "halving",
        cooling: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stages(len(depths), num_heads=num_heads, kernel_sizes=kernel_sizes)
        if cooling is not None and cooling < 1:
            raise ValueError(
                f"cooling {cooling!r}: it must be at least 1 block, or None for no cooling layers"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        sizes = expand_per_block(group_sizes, depths, "group size")
        gaps = expand_per_block(intervals, depths, "interval", words=("adaptive",))
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))

        stages: list[CrossFormerStage] = []
        self.feature_info: list[dict[str, Any]] = []
        dim_in, reduction = in_chans, 1
        for i, depth in enumerate(depths):
            dim, stride = embed_dim * 2**i, 4 if i == 0 else 2
            embedding = CrossScaleEmbedding(
                dim_in,
                dim,
                kernel_sizes[i],
                stride,
                norm="after" if i == 0 else "before",
                allocation=allocation,
            )
            blocks = [
                CrossFormerBlock(
                    dim,
                    num_heads[i],
                    distance="short" if j % 2 == 0 else "long",
                    group_size=sizes[i][j],
                    interval=gaps[i][j],
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop_path=float(rates[i][j]),
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    cooling=is_cooled(j, depth, cooling),
                )
                for j in range(depth)
            ]
            stages.append(CrossFormerStage(embedding, blocks))
            dim_in, reduction = dim, reduction * stride
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = dim_in
        self.norm: nn.Module = nn.LayerNorm(dim_in)
        self.head = ClassifierHead(
            dim_in, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC"
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Linear: truncated normal, std 0.02, bias 0; LayerNorm 1, 0; convolutions: PyTorch's default."""
        named_apply(_init_weights, self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases, which timm knows by their shape."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that put parameters in layers, for layer-wise learning rates."""
        return {
            "stem": r"^stages\.0\.embedding",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.embedding", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass in place of storing their activations."""
        for stage in cast("list[CrossFormerStage]", self.stages):
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The final Linear (Identity where `num_classes` is 0)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` classes; 0 for none."""
        self.num_classes = num_classes
        self.global_pool = global_pool or self.global_pool
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The stages' maps, and the final features.

        Args:
            x: (B, in_chans, H, W).
            indices: Stages to return; an int for the last n, None for all.
            norm: Apply the final norm to the last stage's map.
            stop_early: Leave out the stages after the last one asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Leave out the final features.

        Returns:
            Maps (B, D·2^i, ceil(H/2^(i+2)), ceil(W/2^(i+2))), and unless `intermediates_only` first the final
            features (B, H/32, W/32, D4).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt {output_fmt!r}: choose 'NCHW' or 'NHWC'")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self._check(x).permute(0, 2, 3, 1)
        stages = self.stages[: last + 1] if stop_early else self.stages
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                y = self.norm(x) if norm and i == len(self.stages) - 1 else x
                maps.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return maps
        return self.norm(x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the norm and head if asked to."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H/32), ceil(W/32), D4), normed."""
        return self.norm(self.stages(self._check(x).permute(0, 2, 3, 1)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features -> logits (B, num_classes), or pooled features (B, D4) if `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _check(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.in_chans}, height, width); "
                f"a model for other channels is made with in_chans=…"
            )
        if not _sizes_are_symbols(*x.shape[2:]) and min(x.shape[2:]) < _MIN_SIZE:
            raise ValueError(
                f"image of {x.shape[2]}x{x.shape[3]}: at least {_MIN_SIZE}x{_MIN_SIZE} is needed; enlarge it"
            )
        return x


def _check_stages(num_stages: int, **per_stage: Sequence[Any]) -> None:
    for name, values in per_stage.items():
        if len(values) != num_stages:
            raise ValueError(f"{name} has {len(values)} entries for {num_stages} stages: give one per stage")


def _init_weights(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
