"""Bilinear resizing of bytes with OpenCV's fixed-point arithmetic, to the bit.

MMDetection and MMSegmentation resize images with it. There is no antialiasing. Tests compare checksums with OpenCV
4.5.5 and 5.0.0. Written for any kind of array; `tasks.resizing` has it for tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_ONE = 11  # binary digits of a weight's fraction


def resize_bytes(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """C × H × W bytes -> C × h × w bytes, for size (h, w)."""
    assert image.dtype == np.uint8
    return resize_integers(image.astype(np.int32), size, lambda values: values).astype(np.uint8)


def resize_integers(pixels: Any, size: Sequence[int], place: Callable[[np.ndarray], Any]) -> Any:
    """C × H × W integers from 0 to 255, of 32 bits -> C × h × w.

    Args:
        place: From NumPy's arrays to those of the pixels' kind, where the pixels are.
    """
    height, width = pixels.shape[-2:]
    if [height, width] == list(size):
        return pixels
    if [height, width] == [2 * length for length in size]:  # OpenCV averages four pixels
        halved = pixels[..., ::2, :] + pixels[..., 1::2, :]
        return (halved[..., ::2] + halved[..., 1::2] + 2) >> 2
    left, right, of_left, of_right = _neighbours(width, size[1])
    outside = left == right  # a column beyond the edge has one neighbour, a row the same one twice
    of_left, of_right = np.where(outside, 1 << _ONE, of_left), np.where(outside, 0, of_right)
    columns = pixels[..., place(left)] * place(of_left) + pixels[..., place(right)] * place(of_right) >> 4
    upper, lower, of_upper, of_lower = _neighbours(height, size[0])
    top = columns[..., place(upper), :] * place(of_upper[:, None]) >> 16
    bottom = columns[..., place(lower), :] * place(of_lower[:, None]) >> 16
    return (top + bottom + 2) >> 2


def _neighbours(old: int, new: int) -> tuple[np.ndarray, ...]:
    """The two pixels of an old side between whose centres each pixel of the new side lies, and their weights."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at)
    fraction = at - first
    pixels = [np.clip(first.astype(np.int64) + step, 0, old - 1) for step in (0, 1)]
    weights = [np.rint(share * (1 << _ONE)).astype(np.int32) for share in (1 - fraction, fraction)]
    return (*pixels, *weights)
