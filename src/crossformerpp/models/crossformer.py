"""CrossFormer and CrossFormer++ (Sec. 3, 4) with timm's model contract.

Legend: B batch, C channels, D channels out, H W map, s stride. Maps are B H W C inside the model, B C H W at its
border.
"""

# Annotations stay types here: torch.fx would write a string's into a graph as `_Tensor_`, which its compiler refuses.
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Any, cast

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint, named_apply, register_notrace_function, register_notrace_module
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from crossformerpp import kernels
from crossformerpp.ablations.build import Attention, build_attention, build_cooling
from crossformerpp.ablations.cooling import CoolingKind
from crossformerpp.ablations.position import (
    AbsolutePositionEmbedding,
    InterpolatedPositionBias,
    Position,
    fold,
)
from crossformerpp.layers.attention import GroupAttention
from crossformerpp.layers.block import CrossFormerBlock
from crossformerpp.layers.embedding import Allocation, CrossScaleEmbedding
from crossformerpp.layers.group_size import Groups, PerBlock, expand_per_block, policy_sizes, rule_per_block
from crossformerpp.layers.grouping import GroupRule, Interval, Lda
from crossformerpp.layers.position import DynamicPositionBias


class CrossFormerStage(nn.Module):
    """A CEL and the blocks on its tokens: (B, H, W, C) -> (B, ceil(H/s), ceil(W/s), D).

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
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x


register_notrace_module(
    CrossFormerStage
)  # torch.fx takes a stage as one node: its groups follow from the size


class CrossFormer(nn.Module):
    """The backbone and its classification head: final LayerNorm, mean over tokens, Linear.

    Any image of at least 32×32 is taken; a size that is no multiple of 32 is padded by each CEL as needed,
    so that the stages' maps have ceil(H/4), ceil(H/8), ceil(H/16) and ceil(H/32) rows with the paper's strides.

    Args:
        embed_dim: D1, doubled from stage to stage.
        depths: Blocks per stage.
        num_heads: Heads per stage.
        group_sizes: G per stage, or per block of a stage (a sequence in its place); or the name of a policy, such as
            "linear" (`policy_group_sizes`). It changes no weight.
        intervals: I per stage or block, used by LDA; "adaptive" for ceil(max(H, W) / G) of each map. It changes no
            weight.
        lda: How LDA groups tokens that are I apart, one word for all stages or one per stage. "spanning" (Sec. 3.2.1):
            over the whole map, so that the sides of a group are those of the map divided by I, and G only decides which
            maps are one group. "regional": groups of G×G within regions of (G·I)×(G·I). They agree where the map is one
            region. It changes no weight.
        kernel_sizes: Kernels of each stage's CEL.
        strides: Of each stage's CEL; default the paper's 4, 2, 2, 2, which are for images of 224. With a stem of stride
            2 or 1, and kernels to match, images of 32×32 keep maps of several tokens in the last stage.
        allocation: How a CEL shares its channels out among kernels.
        cooling: k, the interval of cooling layers in blocks; None or 0 for none (timm hands no None on).
        cooling_kind: "acl" is the paper's; "gated" and "limit" keep the residual connection (ablations/cooling.py).
        attention: LSDA, or what Table VIII compares it with; see `build_attention` for what group sizes and intervals
            mean to it.
        position: DPB, or what Tables X and XI compare it with; see ablations/position.py.
        position_sizes: Side of the groups that the tables of "rpb", "rpb-offline" and "rpb-online" are learnt for, per
            stage or block; default the group sizes.
        img_size: Images whose first map the vectors of "ape" are learnt for, and whose maps a policy of group sizes is
            for; a side or (height, width). Any other size is taken too.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.

    Raises:
        ValueError: An argument is out of range or does not fit the others.
    """

    output_fmt = "NHWC"  # of `forward_features`, for timm; maps of `features_only` are NCHW

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        group_sizes: str | Sequence[PerBlock] = (4, 4, 14, 7),
        intervals: Sequence[Interval | Sequence[Interval]] = (4, 2, 1, 1),
        lda: Lda | Sequence[Lda] = "regional",
        kernel_sizes: Sequence[Sequence[int]] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4)),
        strides: Sequence[int] | None = None,
        allocation: Allocation = "halving",
        cooling: int | None = None,
        cooling_kind: CoolingKind = "acl",
        attention: Attention = "lsda",
        position: Position = "dpb",
        position_sizes: Sequence[PerBlock] | None = None,
        img_size: int | tuple[int, int] = 224,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        strides = strides or [2 if i else 4 for i in range(len(depths))]
        _check_stages(len(depths), num_heads=num_heads, kernel_sizes=kernel_sizes, strides=strides)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        group_sizes = policy_sizes(group_sizes, depths, img_size, strides[0])
        dims = [embed_dim * 2**i for i in range(len(depths))]
        rules = rule_per_block(depths, group_sizes, intervals, lda)
        tables = expand_per_block(position_sizes or group_sizes, depths, "position size")
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        options = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        block = partial(_build_block, attention, position, mlp_ratio, options)
        ape = _absolute_position(img_size, strides[0], embed_dim) if position == "ape" else None
        self.stages = nn.Sequential()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            dim_in, norm = (dims[i - 1], "before") if i else (in_chans, "after")
            cel = CrossScaleEmbedding(dim_in, dim, kernel_sizes[i], strides[i], cast(Any, norm), allocation)
            cooler = [build_cooling(cooling_kind, dim, j, depth, cooling) for j in range(depth)]
            blocks = map(partial(block, dim, num_heads[i]), rules[i], tables[i], rates[i].tolist(), cooler)
            self.stages.append(CrossFormerStage(cel, list(blocks), None if i else ape))
        self.feature_info = _feature_info(dims, strides)
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm: nn.Module = nn.LayerNorm(dims[-1])
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt="NHWC")
        self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Linear: truncated normal, std 0.02, bias 0; LayerNorm 1, 0; convolutions: PyTorch's default.

        Args:
            needs_reset: Also draw what PyTorch draws when a module is made, as weights from `to_empty` need.
        """
        named_apply(partial(_init_weights, needs_reset=needs_reset), self)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases, which timm knows by their shape."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith(("position_bias.table", "position.embedding"))
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that put parameters in layers, for layer-wise learning rates."""
        return {
            "stem": r"^stages\.0\.(?:embedding|position)",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:embedding|position)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass in place of storing their activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The final Linear (Identity where `num_classes` is 0)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` classes; 0 for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(num_classes, global_pool)
        like = next(self.parameters())  # a head without classes has no device of its own
        self.head.to(like.device, like.dtype)

    @property
    def groups(self) -> Groups:
        """How the blocks group their tokens now.

        Raises:
            ValueError: The model has another attention than LSDA.
        """
        return Groups.of([[block.attn.rule for block in stage] for stage in self._grouped_blocks()])

    def set_groups(
        self,
        group_sizes: Sequence[PerBlock] | None = None,
        intervals: Sequence[Interval | Sequence[Interval]] | None = None,
        lda: Lda | Sequence[Lda] | None = None,
    ) -> None:
        """Group tokens in another way from now on; no weight changes, and outputs are those of a model made so.

        A compiled model is compiled again for each setting it meets. A model whose `fold_position_bias` was called, or
        whose position is "rpb", cannot have larger groups than its tables.

        Args:
            group_sizes: G per stage, or per block of a stage; None leaves them as they are.
            intervals: I alike.
            lda: LDA's grouping, one for all stages or one per stage; None alike.

        Raises:
            ValueError: A value is out of range or missing, or the model has another attention than LSDA; nothing is
                changed then.
        """
        blocks, now = self._grouped_blocks(), self.groups
        rules = rule_per_block(
            [len(stage) for stage in blocks],
            now.group_sizes if group_sizes is None else group_sizes,
            now.intervals if intervals is None else intervals,
            now.lda if lda is None else lda,
        )
        for stage, own in zip(blocks, rules, strict=True):
            for block, rule in zip(stage, own, strict=True):
                block.attn.rule = rule
                bias = block.attn.position_bias
                if isinstance(bias, InterpolatedPositionBias):
                    bias.group_size = rule.group_size

    def _grouped_blocks(self) -> list[list[CrossFormerBlock]]:
        stages = [cast("list[CrossFormerBlock]", list(stage.blocks.children())) for stage in self._stages()]
        strange = {
            type(b.attn).__name__ for stage in stages for b in stage if type(b.attn) is not GroupAttention
        }
        if strange:
            raise ValueError(
                f"groups can be set of LSDA only, and this model has {', '.join(sorted(strange))}"
            )
        return stages

    def _stages(self) -> list[CrossFormerStage]:
        return cast("list[CrossFormerStage]", list(self.stages.children()))

    def fold_position_bias(self, height: int = 224, width: int = 224) -> None:
        """Replace every DPB by a fixed relative position bias with its values, for good.

        Outputs stay the same for images up to `height`×`width` and groups no larger than there (Sec. 3.2.2: with a
        fixed size DPB is RPB); a larger group is then an error, as that of a narrow map which is one group.

        Raises:
            ValueError: The model has another attention than LSDA.
        """
        for blocks, info in zip(self._grouped_blocks(), self.feature_info, strict=False):
            rows, columns = -(-height // info["reduction"]), -(-width // info["reduction"])
            for block in blocks:
                bias = block.attn.position_bias
                if isinstance(bias, DynamicPositionBias):
                    block.attn.position_bias = fold(bias, *block.attn.rule.sides(rows, columns))

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
            raise ValueError(f"output_fmt '{output_fmt}': choose 'NCHW' or 'NHWC'")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = check_images(x, self.in_chans).permute(0, 2, 3, 1)
        for i, stage in enumerate(self.stages):
            if i <= last or not stop_early:
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
        return self.norm(self.stages(check_images(x, self.in_chans).permute(0, 2, 3, 1)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features -> logits (B, num_classes), or pooled features (B, D4) if `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


@register_notrace_function
def check_images(x: Tensor, in_chans: int) -> Tensor:
    """The images (B, in_chans, H, W) as they are.

    Raises:
        ValueError: They are of another shape, or too small.
    """
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"input of shape {list(x.shape)}: expected (batch, {in_chans}, height, width); "
            f"a model for other channels is made with in_chans=…"
        )
    height, width = x.shape[2:]
    if not kernels.sizes_are_symbols(height, width) and min(height, width) < 32:
        raise ValueError(f"image of {height}x{width}: at least 32x32 is needed; enlarge it")
    return x


def _check_stages(num_stages: int, **per_stage: Sequence[Any]) -> None:
    for name, values in per_stage.items():
        if len(values) != num_stages:
            raise ValueError(f"{name} has {len(values)} entries for {num_stages} stages: give one per stage")


def _build_block(
    attention: Attention,
    position: Position,
    mlp_ratio: float,
    options: dict[str, Any],
    dim: int,
    num_heads: int,
    rule: GroupRule,
    table_size: int,
    drop_path: float,
    cooling: nn.Module | None,
) -> CrossFormerBlock:
    attn = build_attention(attention, position, dim, num_heads, rule, table_size, **options)
    return CrossFormerBlock(dim, attn, mlp_ratio, options["proj_drop"], drop_path, cooling)


def _feature_info(dims: Sequence[int], strides: Sequence[int]) -> list[dict[str, Any]]:
    """Channels and stride of every stage's map, for timm's feature extractors."""
    return [
        {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
        for i, (dim, reduction) in enumerate(zip(dims, accumulate(strides, mul), strict=True))
    ]


def _absolute_position(img_size: int | tuple[int, int], stride: int, dim: int) -> AbsolutePositionEmbedding:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return AbsolutePositionEmbedding(-(-height // stride), -(-width // stride), dim)


def _init_weights(module: nn.Module, name: str = "", needs_reset: bool = True) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and isinstance(module, nn.LayerNorm | nn.Conv2d):
        module.reset_parameters()
