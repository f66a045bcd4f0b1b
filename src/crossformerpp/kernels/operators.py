"""Functions as operators that a compiler does not look into.

A compiler sees single layers: it would multiply with its own library, pad groups whose sizes are symbols, and make a
graph per image size. An operator runs at real sizes, as in eager mode, and one graph serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_AUTOGRAD_KEYS = torch._C._dispatch_keyset_full() - torch._C._after_autograd_keyset

Function = Callable[..., Tensor]


def operator(name: str, like: Function) -> Callable[[Function], Any]:
    """A decorator: the function becomes the operator `crossformerpp::name`, for inference.

    Args:
        like: The shape of the result: an empty tensor from the same arguments.
    """

    def decorate(function: Function) -> Any:
        # the operator must not return its input's memory, nor a view of it
        def run(*args: Any) -> Tensor:
            return function(*args).contiguous()

        schema = torch.library.infer_schema(function, mutates_args=())
        defined = torch.library.custom_op(f"crossformerpp::{name}", run, mutates_args=(), schema=schema)
        defined.register_fake(like)
        return defined

    return decorate


def differentiable_operator(name: str, like: Function) -> Callable[[Function], Function]:
    """As `operator`, for functions (x, table or None, *settings) -> Tensor, with gradients for x and table.

    The backward pass runs the function again with autograd on.
    """

    def decorate(function: Function) -> Function:
        forward = operator(name, like)(function)

        def backward(grad: Tensor, x: Tensor, table: Tensor | None, *settings: Any) -> list[Tensor]:
            # An operator's kernel runs below autograd; running the function again needs autograd back.
            keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
            with torch._C._ForceDispatchKeyGuard(keys[0], keys[1] - _AUTOGRAD_KEYS), torch.enable_grad():
                inputs = [t.detach().requires_grad_() for t in (x, table) if t is not None]
                out = function(*inputs, *[None] * (2 - len(inputs)), *settings)
                return [g.contiguous() for g in torch.autograd.grad(out, inputs, grad)]

        def backward_like(grad: Tensor, *inputs: Any) -> list[Tensor]:
            return [
                torch.empty_like(t, memory_format=torch.contiguous_format)
                for t in inputs[:2]
                if t is not None
            ]

        schema = torch.library.infer_schema(function, mutates_args=())
        recompute = torch.library.custom_op(
            f"crossformerpp::{name}_backward",
            backward,
            mutates_args=(),
            schema="(Tensor grad, " + schema.removeprefix("(").rpartition(" ->")[0] + " -> Tensor[]",
        )
        recompute.register_fake(backward_like)

        def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            x, table, *ctx.settings = inputs
            ctx.save_for_backward(x, table)

        def gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            x, table = ctx.saved_tensors
            for_x, *for_table = recompute(grad, x, table, *ctx.settings)
            return for_x, *(for_table or [None]), *[None] * len(ctx.settings)

        forward.register_autograd(gradients, setup_context=save)
        return forward

    return decorate
