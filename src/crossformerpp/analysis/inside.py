"""Amplitudes and attention distances of a network's blocks, as numbers to log during training."""

from __future__ import annotations

from torch import Tensor, nn

from crossformerpp.analysis.amplitude import block_amplitudes
from crossformerpp.analysis.attention_maps import block_attentions


def look_inside(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Of every block, by names such as `amplitude_max/3.12` (stage 3, block 12), in the state that training is in.

    Two passes in evaluation mode, which draw no random numbers and change nothing.

    Args:
        images: (B, C, H, W); a block's attention of all of them is in memory at once.

    Returns:
        `amplitude_max` and `amplitude_mean` of each block's output (Fig. 5); and for models whose attention can be
        inspected (LSDA and timm's Swin) `attention_distance`, the mean over heads, queries and keys in image pixels.

    Raises:
        ValueError: The model has no stages of blocks.
    """
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        found: dict[str, float] = {}
        for amplitude in block_amplitudes(model, [images]):
            place = f"{amplitude.stage}.{amplitude.block}"
            found[f"amplitude_max/{place}"] = amplitude.maximum
            found[f"amplitude_mean/{place}"] = amplitude.mean
        try:
            attentions = block_attentions(model, [images])
        except ValueError:  # an attention of another kind
            return found
        for attention in attentions:
            distance = attention.head_distances.mean().item() * attention.stride
            found[f"attention_distance/{attention.stage}.{attention.block}"] = distance
        return found
    finally:
        for module, mode in training.items():
            module.training = mode
