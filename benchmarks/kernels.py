"""The kernels that are chosen on this machine beside PyTorch's own, on a CPU, in turn: `python -m benchmarks.kernels`.

A ratio above 1: what is taken is faster than what PyTorch takes by itself. Choices are read from, or measured for, the
file of `kernels/choice.py`; "taken" is the kernel with the cost of looking the choice up. Both look the spread bias up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from crossformerpp import kernels
from crossformerpp.analysis.throughput import time_in_turn
from crossformerpp.kernels.choice import choices_file, mode

#          rows, inputs, outputs: projections of ++S at 224 (stages 1, 3 and 4), batch 1 and 16
PRODUCTS = [(3136, 64, 256), (196, 256, 1024), (49, 512, 2048), (3136, 256, 1024), (784, 512, 2048)]
#         groups, tokens, heads: one image in ++S's stages 1 to 4, a chunk of its first and 16 images in its third
GROUPS = [(196, 16, 2), (49, 16, 4), (1, 196, 8), (1, 49, 16), (1024, 16, 2), (16, 196, 8)]

Row = tuple[str, Callable[[], Any], Callable[[], Any]]  # what, PyTorch's own, taken


def _rows() -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for rows, inputs, outputs in PRODUCTS:
            x = torch.randn(rows, inputs, dtype=dtype)
            weight, bias = torch.randn(outputs, inputs, dtype=dtype) / 16, torch.randn(outputs, dtype=dtype)
            back, no_bias = torch.randn(inputs, outputs, dtype=dtype) / 16, torch.zeros(inputs, dtype=dtype)
            sizes = f"{rows}x{inputs} -> {outputs}"
            yield f"{name} linear {sizes}", *_pair(F.linear, kernels.linear, x, weight, bias)
            yield f"{name} MLP {sizes}", *_pair(_plain_mlp, kernels.mlp, x, weight, bias, back, no_bias)
            if dtype == torch.float32:
                plain, taken = _train(F.linear, x, weight), _train(kernels.linear, x, weight)
                yield f"{name} linear {sizes}, with gradients", plain, taken
        for groups, tokens, heads in GROUPS:
            sides = (math.isqrt(tokens),) * 2
            qkv = torch.randn(groups, tokens, 96 * heads, dtype=dtype)
            table = torch.randn(heads, 2 * sides[0] - 1, 2 * sides[1] - 1, dtype=dtype)
            plain = partial(_fused_attention, qkv, table, sides)
            taken = torch.inference_mode()(partial(kernels.attention, qkv, table, heads, sides))
            yield f"{name} attention, {groups} groups of {tokens}, {heads} heads", plain, taken


def _pair(
    plain: Callable[..., Any], taken: Callable[..., Any], *inputs: Tensor
) -> Iterator[Callable[[], Any]]:
    return (torch.inference_mode()(partial(function, *inputs)) for function in (plain, taken))


def _plain_mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def _train(linear: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Callable[[], Any]:
    inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
    grad = torch.randn(len(x), len(weight))
    return lambda: torch.autograd.grad(linear(*inputs, None), inputs, grad)


@torch.inference_mode()
def _fused_attention(qkv: Tensor, table: Tensor, sides: tuple[int, int]) -> Tensor:
    bias = kernels.spread(table, sides, qkv.dtype)  # kept, for either
    q, k, v = qkv.unflatten(2, (3, len(bias), -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None]).transpose(1, 2).flatten(2)


def main() -> None:
    table = Table(
        title=f"{torch.get_num_threads()} CPU threads, median ms; choices {mode()}, {choices_file()}"
    )
    for column in ("what", "PyTorch's own", "taken", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    ratios = []
    for what, plain, taken in track(list(_rows()), "measuring", console=Console(stderr=True), transient=True):
        timings = time_in_turn({"plain": plain, "taken": taken}, seconds=2.0, min_runs=50, max_runs=2000)
        a, b = timings["plain"].median * 1e3, timings["taken"].median * 1e3
        ratios.append(a / b)
        table.add_row(what, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}")
    Console(width=120).print(table)
    print(
        f"lowest ratio {min(ratios):.2f}, geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}"
    )


if __name__ == "__main__":
    main()
