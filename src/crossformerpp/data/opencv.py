"""Bilinear resizing of bytes with OpenCV's fixed-point arithmetic, to the bit, on any device.

MMDetection and MMSegmentation resize images with it. There is no antialiasing. Tests compare checksums with OpenCV
4.5.5 and 5.0.0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ONE = 11  # binary digits of a weight's fraction


def resize_bytes(image: Tensor, size: Sequence[int]) -> Tensor:
    """C × H × W bytes -> C × h × w bytes, for size (h, w)."""
    assert image.dtype == torch.uint8
    height, width = image.shape[-2:]
    if [height, width] == list(size):
        return image
    pixels = image.int()
    if [height, width] == [2 * length for length in size]:  # OpenCV averages four pixels
        halved = pixels[..., ::2, :] + pixels[..., 1::2, :]
        return ((halved[..., ::2] + halved[..., 1::2] + 2) >> 2).to(torch.uint8)
    left, right, of_left, of_right = _neighbours(width, size[1], image.device)
    outside = left == right  # a column beyond the edge has one neighbour only, a row has the same one twice
    of_left, of_right = of_left.where(~outside, 1 << _ONE), of_right.where(~outside, 0)
    columns = (pixels[..., left] * of_left + pixels[..., right] * of_right) >> 4
    upper, lower, of_upper, of_lower = _neighbours(height, size[0], image.device)
    top = (columns[..., upper, :] * of_upper[:, None]) >> 16
    bottom = (columns[..., lower, :] * of_lower[:, None]) >> 16
    return ((top + bottom + 2) >> 2).to(torch.uint8)


def _neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels of an old side between whose centres each pixel of the new side lies, and their weights."""
    at = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    first = at.floor()
    fraction = at - first
    weights = [(share * (1 << _ONE)).round().int().to(device) for share in (1 - fraction, fraction)]
    pixels = [(first.long() + step).clamp(0, old - 1).to(device) for step in (0, 1)]
    return (*pixels, *weights)  # type: ignore[return-value]
