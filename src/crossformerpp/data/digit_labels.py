"""`digit_labels`: pictures of none to four real handwritten digits, whose labels are the digits in them.

A picture is a square of 2 × 2 places, some of them taken by a digit of scikit-learn's scans, a bit off its middle.
Digits of the training pictures are none of the validation pictures'. Made in memory; nothing is downloaded.
"""

from typing import Literal

import numpy as np
from PIL import Image

from crossformerpp.data.digits import load_digits

NUM_PICTURES = {"train": 2000, "val": 500}
_SHARES = (0.05, 0.25, 0.35, 0.25, 0.10)  # of pictures with none, one, … digits
_SEED = 0


def load_digit_labels(
    which: Literal["train", "val"], size: int = 48
) -> tuple[list[Image.Image], list[list[int]]]:
    """The pictures as RGB of `size` × `size` pixels, and the different digits in each, in ascending order.

    2,000 pictures are for training, 500 for validation; they never change.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    side = size // 2
    scans, labels = load_digits(which, side - max(2, side // 8))
    generator = np.random.default_rng([_SEED, len(which)])
    images, label_sets = [], []
    for _ in range(NUM_PICTURES[which]):
        picture = Image.new("RGB", (size, size))
        places = generator.permutation(4)[: generator.choice(len(_SHARES), p=_SHARES)]
        chosen = generator.integers(len(scans), size=len(places))
        for place, number in zip(places.tolist(), chosen.tolist(), strict=True):
            row, column = divmod(place, 2)
            down, right = generator.integers(side - scans[number].width + 1, size=2).tolist()
            picture.paste(scans[number], (column * side + right, row * side + down))
        images.append(picture)
        label_sets.append(sorted({labels[number] for number in chosen.tolist()}))
    return images, label_sets
