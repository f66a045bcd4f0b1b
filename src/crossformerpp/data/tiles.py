"""Tiles of an image: overlapping squares that cover it, and the part of an object that a tile shows."""

import math
from typing import NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Tile(NamedTuple):
    """A rectangle of an image, in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


def tile_grid(width: int, height: int, size: int, overlap: float) -> list[Tile]:
    """Squares of `size` pixels that cover an image, row by row; one is smaller only where the image is.

    They are spread evenly, so that neighbours share at least `overlap` of a side.
    """
    return [
        Tile(left, top, min(left + size, width), min(top + size, height))
        for top in _starts(height, size, overlap)
        for left in _starts(width, size, overlap)
    ]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [0]
    stride = max(1, math.floor(size * (1 - overlap)))
    count = math.ceil((length - size) / stride) + 1
    return [round(number * (length - size) / (count - 1)) for number in range(count)]


def visible_share(box: Box, tile: Tile) -> float:
    """The share of a box's area that lies in a tile."""
    left, top, right, bottom = box
    width = min(right, tile.right) - max(left, tile.left)
    height = min(bottom, tile.bottom) - max(top, tile.top)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((right - left) * (bottom - top))
