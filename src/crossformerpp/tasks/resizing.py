"""OpenCV's resizing for tensors, on their device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossformerpp.data.opencv import resize_integers


def resize_bytes(image: Tensor, size: Sequence[int]) -> Tensor:
    """C × H × W bytes -> C × h × w bytes, for size (h, w)."""
    assert image.dtype == torch.uint8
    return resize_integers(
        image.int(), size, lambda values: torch.from_numpy(values.copy()).to(image.device)
    ).to(torch.uint8)
