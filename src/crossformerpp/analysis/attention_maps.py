"""Whom tokens attend to and how far, Sec. 4.1 and Fig. 4: of LSDA and of timm's Swin.

Legend: S groups (of all images of a batch), h heads, N = gh·gw tokens of a group of gh × gw, d head dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from crossformerpp import kernels
from crossformerpp.analysis.amplitude import Block, find_blocks
from crossformerpp.layers.attention import GroupAttention, attention_weights


class GroupMaps(NamedTuple):
    """Attention of equal groups: `weights` (S, h, N, N) from query to key; neighbours of a group of height × width
    are `interval` tokens of the map apart."""

    weights: Tensor
    height: int
    width: int
    interval: int

    def distances(self) -> Tensor:
        """From token to token of a group in tokens of the map, (N, N)."""
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()], dim=-1).float() * self.interval
        return torch.cdist(places, places)


@dataclass(frozen=True)
class BlockAttention:
    """A block's attention, averaged over images and groups.

    Attributes:
        height, width: Sides of its largest groups in tokens.
        interval: Tokens of the map between neighbours of a group; 1 for short-distance attention.
        stride: Pixels of the image per token of the map.
        mean_map: Eq. 5 for every token of the largest groups at once: (N, N), rows sum to 1.
        head_distances: Mean distance from query to key, weighted by attention, in tokens of the map: (h,).
        uniform_distance: The same if every token of a group attended to all alike.
    """

    stage: int
    block: int
    name: str
    height: int
    width: int
    interval: int
    stride: int
    mean_map: Tensor
    head_distances: Tensor
    uniform_distance: float

    def token_map(self, y: float, x: float) -> tuple[tuple[int, int], Tensor]:
        """The averaged map (gh, gw) of one token, and its place in the group; asked for by shares of the sides, as
        groups differ in size from block to block.

        Raises:
            ValueError: A share is not within 0 and 1.
        """
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError(f"token {y},{x}: give shares of the group's sides, from 0 to 1")
        row, column = round(y * (self.height - 1)), round(x * (self.width - 1))
        own = self.mean_map[row * self.width + column]
        return (row, column), own.view(self.height, self.width)


def group_attention(attention: GroupAttention, x: Tensor) -> list[GroupMaps]:
    """softmax(QKᵀ/√d + B) of Eq. 1 on a map (B, H, W, C): an entry per kind of group."""
    grouping = attention.rule.on(*x.shape[1:3])
    table = attention.offset_biases(grouping.region)
    return [
        GroupMaps(
            _weights(
                groups.tokens,
                attention.num_heads,
                None if table is None else kernels.spread(table, groups.sides, x.dtype),
            ),
            *groups.sides,
            grouping.interval,
        )
        for groups in grouping.split(attention.qkv(grouping.gather(x)))
    ]


def window_attention(attention: WindowAttention, x: Tensor, mask: Tensor | None = None) -> list[GroupMaps]:
    """The attention of timm's Swin for windows (S, N, C); `mask` (S per image, N, N) where windows are shifted."""
    bias = attention._get_rel_pos_bias()
    if mask is not None:
        bias = bias + mask.repeat(len(x) // len(mask), 1, 1)[:, None]
    weights = _weights(attention.qkv(x), attention.num_heads, bias)
    height, width = attention.window_size
    return [GroupMaps(weights, height, width, interval=1)]


def _weights(qkv: Tensor, num_heads: int, bias: Tensor | None) -> Tensor:
    """S N 3C, (h N N) -> S h N N."""
    q, k, _ = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # -> 3 S h N d
    return attention_weights(q, k, bias)


_WEIGHTS: dict[type[nn.Module], Any] = {GroupAttention: group_attention, WindowAttention: window_attention}


class _Recorder:
    """A hook before an attention that sums up where it looks."""

    def __init__(self) -> None:
        self.largest: GroupMaps | None = None  # with the sum of its groups' weights
        self.groups = self.queries = 0
        self.distance: Tensor | float = 0.0
        self.uniform = 0.0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for maps in _WEIGHTS[type(module)](module, *args, **kwargs):
            self._add(maps._replace(weights=maps.weights.float().cpu()))

    def _add(self, maps: GroupMaps) -> None:
        S, _, N, _ = maps.weights.shape
        distances = maps.distances()
        self.distance = self.distance + torch.einsum("shqk,qk->h", maps.weights, distances).double()
        self.uniform += S * distances.sum().item() / N
        self.queries += S * N
        total = maps._replace(weights=maps.weights.mean(1).sum(0))
        if self.largest is None or self.largest.height * self.largest.width < N:
            self.largest, self.groups = total, S
        elif total[1:] == self.largest[1:]:
            self.largest, self.groups = (
                total._replace(weights=total.weights + self.largest.weights),
                self.groups + S,
            )

    def result(self, block: Block, stride: int) -> BlockAttention:
        assert self.largest is not None
        assert isinstance(self.distance, Tensor)
        return BlockAttention(
            stage=block.stage,
            block=block.number,
            name=block.name,
            height=self.largest.height,
            width=self.largest.width,
            interval=self.largest.interval,
            stride=stride,
            mean_map=self.largest.weights / self.groups,
            head_distances=(self.distance / self.queries).float(),
            uniform_distance=self.uniform / self.queries,
        )


def block_attentions(model: nn.Module, batches: Iterable[Tensor]) -> list[BlockAttention]:
    """The averaged attention of every block.

    Args:
        model: In evaluation mode.
        batches: Images, (B, C, H, W) each, all of one size. A block's attention map of a whole batch is in memory at
            once.

    Raises:
        ValueError: The model has no attention that can be looked into.
    """
    found = [
        (block, attention, _Recorder())
        for block in find_blocks(model)
        for attention in block.module.modules()
        if type(attention) in _WEIGHTS
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__}: attention maps can be taken from LSDA and from timm's Swin only"
        )
    with ExitStack() as hooks, torch.inference_mode():
        for _, attention, recorder in found:
            handle = attention.register_forward_pre_hook(recorder, with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in batches:
            model(batch)
    strides = [info["reduction"] for info in getattr(model, "feature_info", [])]
    return [recorder.result(block, strides[block.stage - 1]) for block, _, recorder in found]
