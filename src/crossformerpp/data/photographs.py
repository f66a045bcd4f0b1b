"""The real photographs in the wheels of scikit-learn and scikit-image: pictures without a download."""

from typing import Literal

from PIL import Image

Half = Literal["train", "val"]

# By the names of the functions that open them.
_SKLEARN = {"train": ("china.jpg",), "val": ("flower.jpg",)}
_SKIMAGE = {
    "train": ("astronaut", "coffee", "stereo_motorcycle", "hubble_deep_field", "brick", "grass"),
    "val": ("chelsea", "rocket", "camera", "gravel"),
}


def open_photographs(which: Half) -> list[Image.Image]:
    """The photographs of one half, as RGB; none is in both.

    Raises:
        ValueError: scikit-learn or scikit-image is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ValueError(
            f"the photographs need {error.name}: pip install '.[train]' in a checkout of crossformerpp"
        ) from None
    arrays = [load_sample_image(name) for name in _SKLEARN[which]]
    for name in _SKIMAGE[which]:
        opened = getattr(data, name)()
        arrays.append(opened[0] if isinstance(opened, tuple) else opened)  # a stereo pair: the left one
    return [Image.fromarray(array).convert("RGB") for array in arrays]
