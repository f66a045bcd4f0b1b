"""Parameters and multiply-accumulates of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class Complexity:
    """What a forward pass costs.

    Attributes:
        params: parameters, trainable or not; shared ones once.
        macs: multiply-accumulates of convolutions, matrix products and attention. The papers of the field
            call them FLOPs, and leave out norms, activations, softmax and sums, as is done here.
    """

    params: int
    macs: int


def count_complexity(
    model: nn.Module, inputs: Sequence[int] | Tensor | tuple[Any, ...], batch_size: int = 1
) -> Complexity:
    """Count a model's parameters, and the multiply-accumulates of one forward pass in evaluation mode.

    The pass runs where the model is. A model on the meta device computes nothing, so that even the largest is
    counted in a moment and without memory:

        with torch.device("meta"):
            model = timm.create_model("crossformerpp_huge")
        count_complexity(model, (3, 224, 224))

    What depends on values, such as a detector's choice of boxes, needs a model and inputs on a real device.

    Args:
        inputs: the size of one input, such as (channels, height, width); or the input itself; or a tuple of
            all positional arguments.
        batch_size: inputs in the batch where `inputs` is a size.

    Raises:
        ValueError: a size or the batch size is below 1.
    """
    arguments = _as_arguments(model, inputs, batch_size)
    params = sum(parameter.numel() for parameter in model.parameters())
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        macs = count_macs(lambda: model(*arguments))
    finally:
        for module, mode in training.items():
            module.training = mode
    return Complexity(params=params, macs=macs)


def count_macs(call: Callable[[], Any]) -> int:
    """The multiply-accumulates of one call of whatever computes with tensors."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        call()
    return counter.get_total_flops() // 2


def _as_arguments(
    model: nn.Module, inputs: Sequence[int] | Tensor | tuple[Any, ...], batch_size: int
) -> tuple[Any, ...]:
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not all(isinstance(side, int) for side in inputs):
        return tuple(inputs)
    if min(*inputs, batch_size) < 1:
        raise ValueError(f"input size {tuple(inputs)} and batch size {batch_size} must be 1 or more")
    parameter = next(model.parameters(), torch.empty(0))
    return (torch.zeros(batch_size, *inputs, device=parameter.device, dtype=parameter.dtype),)


def _attention_flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Of the shapes B h N d; a mask adds no products."""
    return sdpa_flop_count(query, key, value)


# torch counts the fused attention of every device but the CPU's
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops
}
