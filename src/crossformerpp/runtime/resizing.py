"""Images and maps at other sizes, as PyTorch makes them, in NumPy and Pillow."""

import numpy as np
from PIL import Image

from crossformerpp.data.pixels import Pixels, resize


def resize_exactly(image: Image.Image | Pixels, width: int, height: int) -> np.ndarray:
    """Bilinear with antialiasing, unrounded: H × W × 3 of float32 from 0 to 255, or what other values an image has."""
    if isinstance(image, Pixels):
        return resize(image.values, height, width, "bilinear")
    bands = [band.convert("F").resize((width, height), Image.Resampling.BILINEAR) for band in image.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def interpolate(values: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
    """Linear interpolation along an axis; positions outside 0 … size − 1 give the value at the edge."""
    at = at.clip(0, values.shape[axis] - 1).astype(np.float32)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight = (at - low).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
