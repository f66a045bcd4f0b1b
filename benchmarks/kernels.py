"""Why the layers take the kernels they take: `python -m benchmarks.kernels`. Inference on a CPU, each pair in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from crossformerpp import kernels
from crossformerpp.analysis.throughput import time_in_turn
from crossformerpp.layers import Linear

#          rows, inputs, outputs: projections of ++S at 224 (stages 1, 3 and 4), batch 1 and 16, in float32
PRODUCTS = [(3136, 64, 256), (196, 256, 1024), (49, 512, 2048), (3136, 256, 1024), (784, 512, 2048)]
#         groups, tokens, heads: one image in ++S's stages 1 to 4, a chunk of its first and 16 images in its third; in
#         bfloat16, as in float32 the default is the choice
GROUPS = [(196, 16, 2), (49, 16, 4), (1, 196, 8), (1, 49, 16), (1024, 16, 2), (16, 196, 8)]


@torch.inference_mode()
def main() -> None:
    table = Table(title=f"{torch.get_num_threads()} CPU threads, median ms")
    for column in ("what", "instead of", "instead", "taken", "ratio"):
        table.add_column(column, justify="left" if column in ("what", "instead of") else "right")
    for rows, inputs, outputs in PRODUCTS:
        layer, x = Linear(inputs, outputs), torch.randn(rows, inputs)
        _add(
            table,
            f"linear {rows}x{inputs} -> {outputs}",
            "F.linear",
            partial(_plain_linear, layer, x),
            partial(layer, x),
        )
    for rows, inputs, outputs in PRODUCTS:
        layer, x = Linear(inputs, outputs), torch.randn(rows, inputs).bfloat16()
        scale = layer.weight.abs().amax(1) / 127
        weight = (layer.weight / scale[:, None]).round().to(torch.int8)
        in_int8 = partial(torch.ops.aten._weight_int8pack_mm, x, weight, scale.bfloat16())
        _add(
            table,
            f"bfloat16 linear {rows}x{inputs} -> {outputs}",
            "int8 weights",
            in_int8,
            partial(layer.bfloat16(), x),
        )
    for groups, tokens, heads in GROUPS:
        sides = (math.isqrt(tokens),) * 2
        qkv = torch.randn(groups, tokens, 3 * heads * 32).bfloat16()
        table = torch.randn(heads, 2 * sides[0] - 1, 2 * sides[1] - 1).bfloat16()
        bias = kernels.spread(table, sides, qkv.dtype)
        what = f"bfloat16 attention, {groups} groups of {tokens} tokens, {heads} heads"
        taken = partial(kernels.attention, qkv, table, heads, sides)
        _add(table, what, "the fused kernel", partial(_fused_attention, qkv, bias), taken)
    Console(width=120).print(table)


def _plain_linear(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _fused_attention(qkv: Tensor, bias: Tensor) -> Tensor:
    q, k, v = qkv.unflatten(2, (3, len(bias), -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None]).transpose(1, 2).flatten(2)


def _add(
    table: Table, what: str, other: str, instead: Callable[[], Tensor], taken: Callable[[], Tensor]
) -> None:
    timings = time_in_turn({"instead": instead, "taken": taken}, seconds=2.0, min_runs=50, max_runs=2000)
    a, b = timings["instead"].median * 1e3, timings["taken"].median * 1e3
    table.add_row(what, other, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}")


if __name__ == "__main__":
    main()
