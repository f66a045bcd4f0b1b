"""A segmenter exported to ONNX: an image to a class per pixel.

It looks at the whole image once, whatever windows, scales or mirror images the run's recipe asks for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import MaskPrediction, Predictor
from crossformerpp.data.images import scaled_size
from crossformerpp.data.opencv import resize_bytes
from crossformerpp.data.pixels import Pixels
from crossformerpp.runtime.files import ExportedNetwork
from crossformerpp.runtime.resizing import interpolate, resize_exactly

_CELL = 4  # stride of the logits
_LEAST_SIDE = 32
_BAND_ELEMENTS = 1 << 24  # of the K × rows × W probabilities that exist at a time: 64 MB


class OnnxSegmenter(Predictor[MaskPrediction]):
    """The image resized as in the recipe, padded to whole cells by repeating the last row and column."""

    columns: Sequence[str] = MaskPrediction.columns
    workers = "threads"
    suffixes = ("", "_mask")

    def __init__(self, network: ExportedNetwork, **_: Any) -> None:
        self.network = network
        self.pixels = network.pixels
        self.class_names: list[str] = network.about["class_names"]
        self.in_two_steps = network.about["rules"] == "mmsegmentation"  # see `tasks.segmentation.inference`

    def prepare(self, image: Image.Image | Pixels) -> Image.Image | Pixels:
        return image

    def predict(self, prepared: Sequence[Image.Image | Pixels]) -> list[MaskPrediction]:
        return [self._predict_one(image) for image in prepared]

    def _predict_one(self, image: Image.Image | Pixels) -> MaskPrediction:
        logits = self.network(self.network_input(image))[0][0]
        labels = np.empty((image.height, image.width), np.int16)
        sums = np.zeros(len(self.class_names))
        rows = max(1, _BAND_ELEMENTS // (len(self.class_names) * image.width))
        for top in range(0, image.height, rows):
            part = slice(top, min(top + rows, image.height))
            band = self._at_pixels(logits, range(part.start, part.stop), image)
            band = np.exp(band - band.max(axis=0))
            band /= band.sum(axis=0)
            labels[part] = band.argmax(axis=0)
            sums += np.bincount(labels[part].ravel(), band.max(axis=0).ravel(), len(sums))
        counts = np.bincount(labels.ravel(), minlength=len(sums))
        colors = [(r, g, b) for r, g, b in self.network.about["colors"]]
        return MaskPrediction(labels, sums / counts.clip(min=1), {}, self.class_names, colors)

    def network_input(self, image: Image.Image | Pixels) -> np.ndarray:
        """(1, 3, H, W), normalised."""
        *first, (height, width) = self._sizes(image)
        if self.in_two_steps:
            pixels = np.asarray(image).transpose(2, 0, 1)
            for size in (*first, (height, width)):
                pixels = resize_bytes(pixels, size)
            pixels = pixels.transpose(1, 2, 0)
        else:
            pixels = resize_exactly(image, width, height)
        more = [max(-(-side // _CELL) * _CELL, _LEAST_SIDE) - side for side in (height, width)]
        return self.network.normalise(np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge"))

    def _sizes(self, image: Image.Image | Pixels) -> list[list[int]]:
        """Height and width after each step of resizing."""
        view = self.network.about["view"]
        exact = scaled_size((image.height, image.width), view["short_side"])
        size = [-(-length // view["multiple_of"]) * view["multiple_of"] for length in exact]
        return [exact, size] if self.in_two_steps else [size]

    def _at_pixels(self, logits: np.ndarray, rows: range, image: Image.Image | Pixels) -> np.ndarray:
        """Logits (K, h/4, w/4) at rows of the image's pixels, (K, rows, W)."""
        height, width = self._sizes(image)[-1]
        y, x = _centres(rows, height / image.height), _centres(range(image.width), width / image.width)
        if not self.in_two_steps:
            y, x = ((at + 0.5) / _CELL - 0.5 for at in (y, x))
            return interpolate(interpolate(logits, 2, x), 1, y)
        y = y.clip(0, height - 1)
        needed = range(int(y[0]), min(int(y[-1]) + 2, height))
        seen = interpolate(logits, 2, _centres(range(width), 1 / _CELL))
        seen = interpolate(seen, 1, _centres(needed, 1 / _CELL))
        return interpolate(interpolate(seen, 2, x), 1, y - needed.start)


def _centres(pixels: range, scale: float) -> np.ndarray:
    """Centres of pixels on a grid whose own are 1 / `scale` times as large and have the first centre at 0."""
    return (np.arange(pixels.start, pixels.stop) + 0.5) * scale - 0.5
