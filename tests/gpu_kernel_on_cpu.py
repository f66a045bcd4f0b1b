"""The GPU kernel in Triton's interpreter, against float64. A program of its own: importing Triton chooses it.

Prints a JSON object: case -> largest relative error of output, gradient of qkv and gradient of the table.
"""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from crossformerpp import kernels
from crossformerpp.kernels import triton_attention
from crossformerpp.layers.grouping import GroupRule

CASES = [  # rule, map, precision, whether there is a position bias
    (GroupRule("short", 4), 8, 8, torch.float32, False),
    (GroupRule("short", 4), 8, 8, torch.float16, True),
    (GroupRule("short", 7), 10, 9, torch.float32, True),  # incomplete groups
    (GroupRule("long", 4, 2, "regional"), 9, 11, torch.float32, True),
    (GroupRule("long", 5, 4, "regional"), 7, 9, torch.float32, True),  # groups without a token
    (GroupRule("long", 3, 3, "spanning"), 11, 13, torch.float32, True),
    (GroupRule("long", 3, 2, "spanning"), 11, 15, torch.float16, True),
]
HEADS, C = 2, 32


def plain(qkv, table, rule):
    groups = rule.on(*qkv.shape[1:3])
    parts = groups.split(groups.gather(qkv))
    return groups.scatter(groups.join([kernels.attention(p.tokens, table, HEADS, p.sides) for p in parts]))


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def main():
    torch.manual_seed(0)
    errors = {}
    for rule, H, W, dtype, has_table in CASES:
        cells = rule.cells(H, W)
        qkv = torch.randn(2, H, W, 3 * C).to(dtype)
        table = torch.randn(HEADS, 2 * cells[0] + 1, 2 * cells[1] - 1) if has_table else None
        grad = torch.randn(2, H, W, C).to(dtype)
        out, lse = triton_attention.forward(qkv, table, HEADS, *cells)
        for_qkv, for_table = triton_attention.backward(grad, qkv, table, out, lse, HEADS, *cells)
        inputs = [t.double().requires_grad_() for t in (qkv, table) if t is not None]
        exact = plain(*inputs, *[None] * (2 - len(inputs)), rule)
        exact.backward(grad.double())
        found = [out, for_qkv, *([for_table] if has_table else [])]
        expected = [exact.detach(), *[t.grad for t in inputs]]
        error = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
        errors[f"{tuple(rule)} on {H}x{W}, {dtype}, bias {has_table}"] = error
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
