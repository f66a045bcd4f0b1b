"""Rows in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossformerpp.kernels.execution import is_plain_eager


def permute(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """`rows[index]`, (T, C) -> (T, C). The gradient gathers by the inverse permutation; autograd's own would
    scatter-add."""
    if not torch.is_grad_enabled() or not is_plain_eager(rows):
        return rows.index_select(0, index)
    return _Permute.apply(rows, index, inverse)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, index), None, None
