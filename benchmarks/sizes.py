"""Any size: group attention beside its padded definition, on maps and settings drawn at random.

    python -m benchmarks.sizes --draws 1000

Each draw takes an image size from 32 to 700 pixels and a stage's map of it, a batch size, a group size, an interval,
SDA or one of both LDA groupings, float32 or bfloat16, training or evaluation. The product's attention and the literal
one (padded, masked, in float64) share weights; outputs are compared, and in training the gradients of the map and of
every weight. A draw passes if every difference is within the tolerance of its precision, of the largest value.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.literal import LiteralBlock
from crossformerpp.layers import DynamicPositionBias, GroupAttention, GroupRule

DIM, HEADS = 64, 2  # the literal position bias has a width of DIM / 16
# of the largest value; gradients of bfloat16 weights add up rounding over all tokens
TOLERANCE = {torch.float32: (5e-6, 2e-5), torch.bfloat16: (3e-2, 5e-2)}
MAX_PAIRS = 4_000_000  # of tokens that the literal definition scores at once, in groups of one padded map


class Draw(NamedTuple):
    """One setting: a map of `height`×`width` tokens."""

    batch: int
    height: int
    width: int
    distance: str
    group_size: int
    interval: int
    lda: str
    dtype: torch.dtype
    is_training: bool


class Literal(LiteralBlock):
    """The literal group attention alone."""

    def __init__(self, draw: Draw) -> None:
        is_long, spans = draw.distance == "long", draw.lda == "spanning"
        super().__init__(DIM, HEADS, is_long, draw.group_size, draw.interval, spans, cooled=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._group_attention(x)


def draws(number: int, seed: int = 0) -> Iterator[Draw]:
    """Settings at random; those whose literal definition needs too much memory are drawn again."""
    random = np.random.default_rng(seed)
    while number:
        stride = int(random.choice([4, 8, 16, 32]))
        height, width = (-(-int(side) // stride) for side in random.integers(32, 701, 2))
        draw = Draw(
            batch=int(random.integers(1, 4)),
            height=height,
            width=width,
            distance=str(random.choice(["short", "long", "long"])),
            group_size=int(random.integers(1, 15)),
            interval=int(random.integers(1, 17)),
            lda=str(random.choice(["spanning", "regional"])),
            dtype=torch.float32 if random.random() < 0.7 else torch.bfloat16,
            is_training=bool(random.random() < 0.5),
        )
        if draw.batch * _padded_pairs(draw) <= MAX_PAIRS:
            number -= 1
            yield draw


def _padded_pairs(draw: Draw) -> int:
    interval = draw.interval if draw.distance == "long" else 1
    if min(draw.height, draw.width) <= draw.group_size:
        return (draw.height * draw.width) ** 2
    sides = [draw.group_size] * 2
    if draw.distance == "long" and draw.lda == "spanning":
        sides = [-(-draw.height // interval), -(-draw.width // interval)]
    regions = math.ceil(draw.height / (sides[0] * interval)) * math.ceil(draw.width / (sides[1] * interval))
    return regions * interval**2 * (sides[0] * sides[1]) ** 2


def differences(draw: Draw, seed: int) -> tuple[float, float]:
    """The largest difference of outputs, and in training of gradients, as a share of the largest value."""
    torch.manual_seed(seed)
    bias = DynamicPositionBias(DIM // 16, HEADS)
    rule = GroupRule(draw.distance, draw.group_size, draw.interval, draw.lda)  # type: ignore[arg-type]
    attention = GroupAttention(DIM, HEADS, bias, rule)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    attention = attention.to(draw.dtype).train(draw.is_training)
    literal = Literal(draw).double()
    literal.attn.load_state_dict(attention.state_dict())
    x = torch.randn(draw.batch, draw.height, draw.width, DIM).to(draw.dtype)
    inputs, references = x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.set_grad_enabled(draw.is_training):
        ours, theirs = attention(inputs), literal(references)
    output = _share(ours, theirs)
    if not draw.is_training:
        return output, 0.0
    weight = torch.randn_like(theirs)
    mine = torch.autograd.grad((ours.double() * weight).sum(), [inputs, *attention.parameters()])
    wanted = torch.autograd.grad((theirs * weight).sum(), [references, *literal.attn.parameters()])
    # a gradient that cancels out, as of the bias of keys, is compared with the largest of all
    largest = max(float(grad.abs().max()) for grad in wanted[1:])
    by_weight = (
        float((a.double() - b).abs().max()) / max(largest, 1e-12)
        for a, b in zip(mine[1:], wanted[1:], strict=True)
    )
    return output, max(_share(mine[0], wanted[0]), *by_weight)


def _share(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    worst: dict[torch.dtype, list[float]] = {dtype: [0.0, 0.0] for dtype in TOLERANCE}
    settings = list(draws(options.draws, options.seed))
    for number, draw in enumerate(track(settings, "comparing", console=Console(stderr=True), transient=True)):
        found = differences(draw, number)
        kind = "SDA" if draw.distance == "short" else f"{draw.lda} LDA"
        is_right = all(share <= limit for share, limit in zip(found, TOLERANCE[draw.dtype], strict=True))
        total[kind] += 1
        passed[kind] += is_right
        worst[draw.dtype] = [max(pair) for pair in zip(worst[draw.dtype], found, strict=True)]
        if not is_right:
            print(f"differs by {found[0]:.1e}, gradients by {found[1]:.1e}: {draw}")
    for kind in sorted(total):
        print(f"{kind}: {passed[kind]} of {total[kind]}")
    for dtype, (output, gradient) in worst.items():
        print(f"{dtype}: outputs within {output:.1e} of the largest value, gradients within {gradient:.1e}")
    print(f"{passed.total()} of {total.total()}")


if __name__ == "__main__":
    main()
