"""Multiply-accumulates as the paper counts them: the FLOPs columns of Tables II to V.

The paper counts what its implementation executes, groups padded to full size included: matrix products of padded tokens
where a module works on groups, both products of attention with padded queries and keys, the CELs' convolutions, the
DPB's layers for every offset of a group. Norms, biases, softmax and activations are left out. Our own count
(`complexity.count_complexity`) has real tokens only, as our models compute nothing else; where nothing is padded the
two are equal.

Legend: C channels, H W map, G group side, I interval, h heads, p width of the DPB.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, cast

from crossformerpp.layers.cooling import is_cooled
from crossformerpp.layers.embedding import allocate_dims
from crossformerpp.layers.group_size import expand_per_block, policy_sizes
from crossformerpp.layers.grouping import GroupRule
from crossformerpp.models import VARIANTS

_KERNELS = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4))
_UNCOUNTED = ("attention", "position")  # options that put other layers in the place of the paper's


def is_paper_countable(model: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a model is a CrossFormer with LSDA and DPB, the only kind that `count_as_the_paper` covers."""
    return model in VARIANTS and not any(name in options for name in _UNCOUNTED)


def count_as_the_paper(
    model: str, options: Mapping[str, Any], height: int, width: int, padded: bool = True
) -> int:
    """Multiply-accumulates of a backbone without its head, for one image, by the paper's counting.

    Args:
        model: A key of `VARIANTS`.
        options: Overrides of its arguments.
        height, width: Of the image.
        padded: Whether padding counts; without, it is our own count by formula, and no forward pass is needed.
    """
    arguments = {**VARIANTS[model], **options}
    depths = arguments["depths"]
    sizes = expand_per_block(policy_sizes(arguments["group_sizes"], depths), depths, "group size")
    gaps = expand_per_block(arguments["intervals"], depths, "interval", words=("adaptive",))
    lda = arguments["lda"]
    words = [lda] * len(depths) if isinstance(lda, str) else lda
    total, dim_in = 0, arguments.get("in_chans", 3)
    strides = accumulate(arguments.get("strides") or [2 if stage else 4 for stage in range(len(depths))], mul)
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
        dim = arguments["embed_dim"] * 2**stage
        H, W = -(-height // stride), -(-width // stride)
        kernels = arguments.get("kernel_sizes", _KERNELS)[stage]
        outputs = allocate_dims(dim, len(kernels), arguments.get("allocation", "halving"))
        total += sum(k * k * dim_in * out * H * W for k, out in zip(kernels, outputs, strict=True))
        for block in range(depth):
            G, interval = sizes[stage][block], gaps[stage][block]
            kind = words[stage] if block % 2 else "short"
            tokens, h, w = _group(H, W, G, interval, kind)
            pairs = tokens * h * w
            if not padded:
                tokens, pairs = H * W, _real_pairs(H, W, G, interval, kind)
            total += _block(dim, H, W, tokens, pairs, h, w)
            if is_cooled(block, depth, arguments["cooling"]):
                total += 9 * dim * H * W
        dim_in = dim
    return total


def _group(H: int, W: int, G: int, interval: int | str, kind: str) -> tuple[int, int, int]:
    """Padded tokens of a map, height and width of its groups."""
    if min(H, W) <= G:  # one group: the whole map
        return H * W, H, W
    if kind == "spanning":
        assert isinstance(interval, int)
        h, w = -(-H // interval), -(-W // interval)
        return h * w * interval**2, h, w
    if interval == "adaptive":
        interval = -(-max(H, W) // G)
    side = G if kind == "short" else G * int(interval)
    return -(-H // side) * -(-W // side) * side**2, G, G


def _real_pairs(H: int, W: int, G: int, interval: Any, kind: str) -> int:
    """Pairs of real tokens that share a group."""
    rule = GroupRule("short", G) if kind == "short" else GroupRule("long", G, interval, cast(Any, kind))
    groups = rule.on(H, W)
    sides = zip((H, W), groups.region, strict=True)
    return prod(sum(len(starts) * size**2 for starts, size in groups.along(*side)) for side in sides)


def _block(dim: int, H: int, W: int, tokens: int, pairs: int, group_height: int, group_width: int) -> int:
    """SDA or LDA (qkv, both products, projection), the MLP, and the DPB."""
    heads, p = dim // 32, dim // 16
    attention = 4 * tokens * dim**2 + 2 * pairs * dim
    bias = (2 * group_height - 1) * (2 * group_width - 1) * (2 * p + 2 * p**2 + p * heads)
    return attention + 8 * H * W * dim**2 + bias
