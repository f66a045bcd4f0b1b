"""Single values of COCO's annotations as files have them: numbers as text, damaged run lengths, wild polygons."""

import math
from typing import Any

import numpy as np

from crossformerpp.data.masks import Segmentation
from crossformerpp.data.problems import Problems

_FAR = (
    1.0  # times the image's sides, how far a polygon may lie outside: its drawing takes memory for its length
)


def whole(value: Any) -> int | None:
    """A whole number, also as text or with a decimal point; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
        return number if isinstance(value, int | str) or number == value else None
    except (ValueError, OverflowError):
        pass
    number_read = _number(value)
    return int(number_read) if number_read is not None and number_read.is_integer() else None


def read_box(value: Any) -> tuple[float, float, float, float] | None:
    """[x, y, width, height]; None where it is not that."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    numbers = [_number(one) for one in value]
    x, y, width, height = numbers
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def read_area(value: Any) -> float | None:
    """A positive area; None where there is none."""
    area = _number(value)
    return area if area is not None and area > 0 else None


def read_segmentation(
    value: Any, size: tuple[int, int], problems: Problems, where: str
) -> Segmentation | None:
    """What can be used of a mask, None where nothing can.

    Args:
        size: (height, width) of the image.
    """
    if not value:
        return None
    if isinstance(value, dict):
        return _read_rle(value, size, problems, where)
    polygons = value if isinstance(value, list) and isinstance(value[0], list) else [value]
    sound = []
    for polygon in polygons:
        numbers = [_number(one) for one in polygon] if isinstance(polygon, list) else []
        points = [number for number in numbers if number is not None]
        if len(points) < 6 or len(points) % 2 or len(points) < len(numbers):
            problems.add("polygon of fewer than 3 points", where)
        elif not _is_near(points[::2], size[1]) or not _is_near(points[1::2], size[0]):
            problems.add("polygon far outside its image", where)
        else:
            sound.append(points)
    return sound or None


def _read_rle(
    value: dict[str, Any], size: tuple[int, int], problems: Problems, where: str
) -> Segmentation | None:
    counts = value.get("counts")
    own = value.get("size")
    if not isinstance(own, list) or [whole(side) for side in own] != list(size) or not counts:
        problems.add("mask of another size than its image", where)
        return None
    lengths = run_lengths(counts)
    if lengths is None or int(lengths.sum()) != size[0] * size[1]:
        problems.add("run lengths that are damaged: they do not add up to the image", where)
        return None
    return {"size": list(size), "counts": counts if isinstance(counts, str) else lengths.tolist()}


def run_lengths(counts: Any) -> np.ndarray | None:
    """Lengths of the runs of 0s and 1s in turn, from a list of them or COCO's compressed text; None: damaged.

    The text holds groups of six bits: five of a number, lowest first, and whether more follow. From the fourth on a
    number is the difference to the length before the last.
    """
    if isinstance(counts, list):
        numbers = [whole(count) for count in counts]
        if any(number is None or not 0 <= number < 1 << 40 for number in numbers):
            return None
        return np.array(numbers, np.int64)
    if not isinstance(counts, str):
        return None
    codes = np.array([ord(character) for character in counts], np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    is_last = (codes & 32) == 0
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    widths = ends - starts + 1
    if widths.max() > 7:  # 35 bits
        return None
    place = np.arange(len(codes)) - np.repeat(starts, widths)
    lengths = np.add.reduceat((codes & 31) << (5 * place), starts)
    lengths -= np.where(codes[ends] & 16, np.int64(1) << (5 * widths), 0)
    for first in (1, 2):
        lengths[first::2] = lengths[first::2].cumsum()
    return None if lengths.min() < 0 else lengths


def _is_near(coordinates: list[float], side: int) -> bool:
    return min(coordinates) >= -_FAR * side and max(coordinates) <= (1 + _FAR) * side


def _number(value: Any) -> float | None:
    """A finite number, also as text; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
