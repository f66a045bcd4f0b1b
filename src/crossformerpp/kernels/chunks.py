"""A whole block in inference on a CPU: some groups at a time through all of its layers, so that what lies between them
stays in the cache. Gathers of groups cost nothing extra: chunks are read from the map and written back to it.

Legend: T rows of tokens of a batch of maps, C channels, N tokens of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossformerpp.kernels.attend import attention
from crossformerpp.kernels.bias import Sides
from crossformerpp.kernels.products import linear, mlp

# Elements of a chunk's rows (T·C). Its widest intermediate, the MLP's hidden layer, is four times that: 16 MB.
CHUNK_ELEMENTS = 1 << 20


class Chunk(NamedTuple):
    """Whole groups of `sides` that go through a block together, and the place of their rows, a slice or an index."""

    place: slice | Tensor
    sides: Sides


def block(
    x: Tensor,
    weights: Sequence[Tensor],
    eps: Sequence[float],
    table: Tensor | None,
    num_heads: int,
    chunks: Iterable[Chunk],
) -> Tensor:
    """x + attention(norm1(x)), then x + mlp(norm2(x)): rows (T, C) -> (T, C).

    Args:
        weights: Weight and bias of norm1, qkv, proj, norm2, fc1 and fc2.
        eps: Of norm1 and norm2.
        table: The position bias of every offset, see `kernels.attention`.
        chunks: Cover every row once.
    """
    norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, norm2, norm2_bias, *fc = weights

    def attended(
        rows: Tensor, sides: Sides
    ) -> Tensor:  # a function of its own, so that qkv is freed before the MLP
        tokens = linear(F.layer_norm(rows, norm1.shape, norm1, norm1_bias, eps[0]), qkv, qkv_bias)
        groups = tokens.unflatten(0, (-1, sides[0] * sides[1]))  # T 3C -> B·S N 3C
        return linear(attention(groups, table, num_heads, sides).flatten(0, 1), proj, proj_bias)

    out = torch.empty_like(x)
    for place, sides in chunks:
        rows = x[place] if isinstance(place, slice) else x.index_select(0, place)
        # in place, for a branch's result is used nowhere else; under autocast it is of a lower precision than the map
        rows = attended(rows, sides).to(x.dtype).add_(rows)
        branch = mlp(F.layer_norm(rows, norm2.shape, norm2, norm2_bias, eps[1]), *fc).to(x.dtype)
        if isinstance(place, slice):
            torch.add(rows, branch, out=out[place])
        else:
            out.index_copy_(0, place, branch.add_(rows))
    return out
