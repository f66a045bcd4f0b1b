"""scikit-learn's 1,797 real handwritten digits: the built-in data set that needs no download."""

from typing import Literal

import numpy as np
from PIL import Image

NAMES = [str(digit) for digit in range(10)]
NUM_TEST = 450


def load_digits(which: Literal["train", "val"], size: int = 32) -> tuple[list[Image.Image], list[int]]:
    """The images as RGB of `size` × `size` pixels, and their labels.

    The 8×8 scans of 0…16 are enlarged bicubically. 1,347 digits are for training, 450 for testing, each
    digit in proportion; the split never changes.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as scans
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError(
            "the digits need scikit-learn: pip install '.[train]' in a checkout of crossformerpp"
        ) from None
    data = scans()
    numbers = np.arange(len(data.target))
    split = train_test_split(numbers, test_size=NUM_TEST, random_state=0, stratify=data.target)
    chosen = sorted(split[0 if which == "train" else 1].tolist())
    images = [_enlarge(data.images[index], size) for index in chosen]
    return images, [int(data.target[index]) for index in chosen]


def _enlarge(scan: np.ndarray, size: int) -> Image.Image:
    image = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
