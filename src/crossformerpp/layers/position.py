"""Position representations, Sec. 3.2.2 and 5.4.4: which one a model has is `CrossFormer(position=…)`.

Legend: gh gw sides of a group, N = gh·gw tokens, h heads, p hidden width.

A representation maps group sizes to the biases of Eq. 1, one (h, N, N) tensor per size: entry (i, j) belongs to
query i and key j and depends on (Δy, Δx) = position of query − position of key alone. It is therefore read off a
table of the (2gh−1)·(2gw−1) offsets that occur: O(G²) evaluations in place of O(G⁴). The absolute embedding alone is
none of these: it is added to the first stage's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from crossformerpp.layers.execution import is_plain_eager

GroupSide = tuple[int, int]
PositionBias = Callable[[Sequence[GroupSide], torch.dtype | None], list[Tensor]]
Position = Literal["dpb", "dpb-residual", "rpb", "rpb-offline", "rpb-online", "ape", "none"]

# Deviation: the paper gives the DPB a width of D/4; its own parameter counts and the released models have D/16.
_DPB_RATIO = 16


def build_position_bias(
    position: Position, dim: int, num_heads: int, group_size: int, table_size: int | None = None
) -> nn.Module | None:
    """The bias of a block's attention under a position representation (Tables X, XI); None where there is none.

    Args:
        dim: Channels of the block, which the DPB's width follows.
        group_size: G of the block.
        table_size: Side of the groups that a table is learnt for; default G.

    Raises:
        ValueError: Unknown representation.
    """
    side = table_size or group_size
    match position:
        case "dpb" | "dpb-residual":
            return DynamicPositionBias(dim // _DPB_RATIO, num_heads, residual=position == "dpb-residual")
        case "rpb":
            return RelativePositionBias((side, side), num_heads)
        case "rpb-offline":
            return EnlargedPositionBias((side, side), num_heads)
        case "rpb-online":
            return InterpolatedPositionBias((side, side), num_heads, group_size)
        case "ape" | "none":
            return None
    raise ValueError(f"unknown position {position!r}: choose one of {', '.join(get_args(Position))}")


def bias_from_table(table: Tensor, height: int, width: int) -> Tensor:
    """Spread a table of offsets over the pairs of a group.

    Args:
        table: (h, 2·Gh−1, 2·Gw−1), entry (Gh−1+Δy, Gw−1+Δx) for the offset (Δy, Δx); Gh ≥ height, Gw ≥ width.

    Returns:
        (h, N, N) with N = height·width, contiguous.
    """
    if torch.compiler.is_exporting():
        return gather_bias(table, height, width)
    heads, rows, columns = table.shape
    top, left = (rows + 1) // 2 - height, (columns + 1) // 2 - width
    needed = table[:, top : top + 2 * height - 1, left : left + 2 * width - 1]
    # Turned round, the offsets that query y meets at keys 0, 1, … stand side by side: a window that starts at
    # height − 1 − y. Windows are views, so this is one copy and no index table.
    windows = (
        needed.flip(1, 2).unfold(1, height, 1).unfold(2, width, 1)
    )  # h, windows y, windows x, key y, key x
    return windows.flip(1, 2).reshape(heads, height * width, height * width)


def gather_bias(table: Tensor, height: int, width: int) -> Tensor:
    """`bias_from_table` for graphs: sizes may be symbols, for which windows have no counterpart in ONNX."""
    heads, rows, columns = table.shape
    places = _places(rows, columns, height, width, table.device)
    return table.flatten(1).index_select(1, places).view(heads, height * width, height * width)


def _places(rows: int, columns: int, height: int, width: int, device: torch.device) -> Tensor:
    """Where in a flattened table of offsets each pair of a group stands: (N·N,)."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    dy = y[:, None] - y + rows // 2  # query y, key y; the offset 0 stands in the middle
    dx = x[:, None] - x + columns // 2
    return (dy[:, None, :, None] * columns + dx[None, :, None, :]).flatten()


def spread_table(
    table: Callable[[int, int], Tensor], sizes: Sequence[GroupSide], dtype: torch.dtype | None
) -> list[Tensor]:
    """The biases of groups of `sizes` from one evaluation of `table`, at the largest height and width."""
    values = table(max(height for height, _ in sizes), max(width for _, width in sizes)).to(dtype)
    return [bias_from_table(values, *size) for size in sizes]


def dynamic_bias_table(parameters: Sequence[Tensor], residual: bool, height: int, width: int) -> Tensor:
    """The MLP of `DynamicPositionBias` on all offsets, from its parameters in order: (h, 2·height−1, 2·width−1).

    In float32 also under autocast and in half precision: it is small, and every attention hangs on it.
    """
    device = parameters[0].device
    offsets = _offsets(height, width, device)
    weight, bias, *layers = (parameter.float() for parameter in parameters)
    with _without_autocast(device):
        hidden = F.linear(offsets, weight, bias)
        for i in range(0, len(layers), 4):
            norm_weight, norm_bias, weight, bias = layers[i : i + 4]
            out = F.layer_norm(hidden, norm_weight.shape, norm_weight, norm_bias).relu()
            out = F.linear(out, weight, bias)
            hidden = hidden + out if residual and i < 8 else out
    return hidden.t().view(-1, 2 * height - 1, 2 * width - 1)


def _offsets(height: int, width: int, device: torch.device) -> Tensor:
    """(Δy, Δx) of every offset in a group, in float32: (O, 2) with O = (2·height−1)·(2·width−1)."""
    y = torch.arange(1 - height, height, device=device, dtype=torch.float32)
    x = torch.arange(1 - width, width, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


class BiasMemory:
    """Biases of one set of weights, kept until a weight, its device or the precision changes.

    On a CPU the weights' values are compared, elsewhere their version counters: an edit there through `.data`, which no
    counter sees, goes unnoticed.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, dict[GroupSide, Tensor]] | None = None

    def recall(
        self,
        parameters: Sequence[Tensor],
        sizes: Sequence[GroupSide],
        dtype: torch.dtype,
        table: Callable[[int, int], Tensor],
    ) -> list[Tensor]:
        """The biases of groups of `sizes`, each (h, N, N) in `dtype`; those not known are computed with `table`."""
        key = (_fingerprint(parameters), dtype)
        kept = self._kept  # read once: another thread may replace it
        known = kept[1] if kept is not None and _same(kept[0], key) else {}
        missing = [size for size in dict.fromkeys(sizes) if size not in known]
        if missing:
            # An inference tensor in store would poison a later forward under plain no_grad.
            with torch.inference_mode(False), torch.no_grad():
                known = {**known, **dict(zip(missing, spread_table(table, missing, dtype), strict=True))}
            self._kept = (key, dict(list(known.items())[-_MAX_REMEMBERED:]))
        return [known[size] for size in sizes]


# Sizes whose biases are remembered: a map that does not divide has up to nine, some more for a second input size.
_MAX_REMEMBERED = 18


def _fingerprint(parameters: Sequence[Tensor]) -> Any:
    if parameters[0].device.type == "cpu":
        with torch.inference_mode(False), torch.no_grad():
            return torch.cat([p.detach().flatten() for p in parameters])
    if any(p.is_inference() for p in parameters):
        return object()  # no version counter: never the same
    return tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)


def _same(a: tuple[Any, torch.dtype], b: tuple[Any, torch.dtype]) -> bool:
    if a[1] != b[1] or type(a[0]) is not type(b[0]):
        return False
    if isinstance(a[0], Tensor):
        return a[0].shape == b[0].shape and a[0].dtype == b[0].dtype and torch.equal(a[0], b[0])
    return bool(a[0] == b[0])


class DynamicPositionBias(nn.Module):
    """DPB: an MLP from a relative offset to one bias per head (Fig. 2c, Eq. 2), for groups of any size.

    Linear 2→p, then three times LayerNorm, ReLU, Linear: p→p, p→p, p→h. Offsets enter as plain integers.

    In training it is evaluated once per call. In evaluation without gradients the biases are remembered, see
    `BiasMemory`; `forget()` drops them.

    Args:
        hidden_dim: Width p; D/16 in the released models, for dimension D.
        residual: Add the input of the two middle layers to their output ("DPB-residual", Table X).
    """

    __jit_ignored_attributes__ = ("_memory",)  # TorchScript has no type for it

    def __init__(self, hidden_dim: int, num_heads: int, residual: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.residual = residual
        self.embed = nn.Linear(2, hidden_dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, outputs))
            for outputs in (hidden_dim, hidden_dim, num_heads)
        )
        self._memory = BiasMemory()

    @torch.jit.unused
    def forward(self, sizes: Sequence[GroupSide], dtype: torch.dtype | None = None) -> list[Tensor]:
        """The biases of groups of `sizes`, each (h, N, N), in `dtype` (default: the weights')."""
        dtype = dtype or self.embed.weight.dtype
        weights = self.weights()
        if self.training or torch.is_grad_enabled() or not is_plain_eager(*weights):
            return spread_table(self.table, sizes, dtype)
        return self._memory.recall(weights, sizes, dtype, self.table)

    def weights(self) -> list[Tensor]:
        """As `parameters()`, and there in the replicas of `nn.DataParallel` too, which have none."""
        deeper = cast("Sequence[nn.Sequential]", self.layers)
        layers: list[Any] = [self.embed, *(layer[i] for layer in deeper for i in (0, 2))]
        return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]

    def scriptable_forward(self, height: int, width: int) -> Tensor:
        """The bias of a group, (h, N, N), in the weights' precision."""
        hidden = self.embed(_offsets(height, width, self.embed.weight.device).to(self.embed.weight.dtype))
        for i, layer in enumerate(self.layers):
            out = layer(hidden)
            hidden = hidden + out if self.residual and i < 2 else out
        return gather_bias(hidden.t().reshape(-1, 2 * height - 1, 2 * width - 1), height, width)

    def table(self, height: int, width: int) -> Tensor:
        """The bias of every offset in a group of `height`×`width`: (h, 2·height−1, 2·width−1), in float32."""
        return dynamic_bias_table(self.weights(), self.residual, height, width)

    def fold(self, height: int, width: int) -> RelativePositionBias:
        """A fixed relative position bias with this module's values: identical for groups up to `height`×`width`."""
        with torch.no_grad():
            folded = RelativePositionBias((height, width), self.num_heads)
            folded.table.copy_(self.table(height, width))
            return folded.to(self.embed.weight.device, self.embed.weight.dtype)

    def forget(self) -> None:
        """Drop the remembered biases."""
        self._memory = BiasMemory()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": BiasMemory()}

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicPositionBias:
        self.forget()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> DynamicPositionBias:
        self.forget()  # a strategy that moves weights about, as FSDP does, shows in no version counter
        return super().train(mode)


class RelativePositionBias(nn.Module):
    """RPB: one learnt bias per head and offset, for groups up to a fixed size (Sec. 3.2.2, Table X).

    Args:
        max_size: Largest group, (height, width).
    """

    def __init__(self, max_size: GroupSide, num_heads: int) -> None:
        super().__init__()
        self.max_size = max_size
        self.table = nn.Parameter(torch.empty(num_heads, 2 * max_size[0] - 1, 2 * max_size[1] - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    @torch.jit.unused
    def forward(self, sizes: Sequence[GroupSide], dtype: torch.dtype | None = None) -> list[Tensor]:
        """The biases of groups of `sizes`, each (h, N, N).

        Raises:
            ValueError: A group is larger than the table.
        """
        for size in sizes:
            self._check(*size)
        table = self.table.to(dtype or self.table.dtype)
        return [bias_from_table(table, *size) for size in sizes]

    def scriptable_forward(self, height: int, width: int) -> Tensor:
        """The bias of a group, (h, N, N)."""
        self._check(height, width)
        return gather_bias(self.table, height, width)

    def _check(self, height: int, width: int) -> None:
        if height > self.max_size[0] or width > self.max_size[1]:
            raise ValueError(
                f"a group of {height}x{width} exceeds this relative position bias, made for at most "
                f"{self.max_size[0]}x{self.max_size[1]}: use DynamicPositionBias (position 'dpb') or "
                "interpolation ('rpb-online'), which serve any size, or a larger table (position_sizes)"
            )


class EnlargedPositionBias(RelativePositionBias):
    """Offline interpolated RPB: a table for large groups that takes the values of a smaller, trained one once, when
    weights are loaded (`enlarge_tables`), and is then fine-tuned as it is (Sec. 5.4.4, Table XI)."""


class InterpolatedPositionBias(RelativePositionBias):
    """Online interpolated RPB: a small table, resized bilinearly at every forward (Sec. 5.4.4, Table XI).

    It is resized to the block's group size, and further for a larger group (a map that is one group). The smaller
    groups at a map's edge read the offsets they have from there, as they would from any other table.

    Args:
        max_size: Group that the table was learnt for, (height, width).
        group_size: G that the block has now.
    """

    def __init__(self, max_size: GroupSide, num_heads: int, group_size: int) -> None:
        super().__init__(max_size, num_heads)
        self.group_size = group_size

    @torch.jit.unused
    def forward(self, sizes: Sequence[GroupSide], dtype: torch.dtype | None = None) -> list[Tensor]:
        """The biases of groups of any `sizes`, each (h, N, N)."""
        return spread_table(self._resized, sizes, dtype or self.table.dtype)

    def scriptable_forward(self, height: int, width: int) -> Tensor:
        """The bias of a group of any size, (h, N, N)."""
        return gather_bias(self._resized(height, width), height, width)

    def _resized(self, height: int, width: int) -> Tensor:
        return resize_table(self.table, max(height, self.group_size), max(width, self.group_size))


def resize_table(table: Tensor, height: int, width: int) -> Tensor:
    """A table of offsets for groups of `height`×`width`, by bilinear interpolation.

    The offset 0 stays in the centre and the largest offsets at the rim: (h, 2·Gh−1, 2·Gw−1) -> (h, 2·height−1,
    2·width−1).
    """
    size = [2 * height - 1, 2 * width - 1]
    if list(table.shape[1:]) == size:
        return table
    return F.interpolate(table[None], size, mode="bilinear", align_corners=True)[0]


def enlarge_tables(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the tables of every `EnlargedPositionBias` of `model` brought to its size."""
    fitted = dict(weights)
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, EnlargedPositionBias) and key in fitted:
            fitted[key] = resize_table(fitted[key], *module.max_size)
    return fitted


class AbsolutePositionEmbedding(nn.Module):
    """APE: one learnt vector per place of the first stage's map, added to its tokens (Table X).

    A map of another size takes the vectors resized bicubically. (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, height: int, width: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, height, width, dim))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + resample_abs_pos_embed_nhwc(self.embedding, [x.shape[1], x.shape[2]]).to(x.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
