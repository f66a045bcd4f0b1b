"""What is fast on a machine: tensors in, tensors out, each behind one name and equal to plain PyTorch."""

from crossformerpp.kernels.attend import attention
from crossformerpp.kernels.bias import spread
from crossformerpp.kernels.chunks import CHUNK_ELEMENTS, Chunk, block
from crossformerpp.kernels.execution import (
    are_untouched,
    if_at_most,
    is_compiled,
    is_plain_eager,
    larger,
    needs_padding,
    sizes_are_symbols,
    smaller,
    takes_blocks,
    without_autocast,
)
from crossformerpp.kernels.map_attention import map_attention, takes_maps
from crossformerpp.kernels.memory import forget, remember
from crossformerpp.kernels.operators import differentiable_operator, operator
from crossformerpp.kernels.products import linear, mlp
from crossformerpp.kernels.rows import permute

__all__ = [
    "CHUNK_ELEMENTS",
    "Chunk",
    "are_untouched",
    "attention",
    "block",
    "differentiable_operator",
    "forget",
    "if_at_most",
    "is_compiled",
    "is_plain_eager",
    "larger",
    "linear",
    "map_attention",
    "mlp",
    "needs_padding",
    "operator",
    "permute",
    "remember",
    "sizes_are_symbols",
    "smaller",
    "spread",
    "takes_blocks",
    "takes_maps",
    "without_autocast",
]
