"""A segmenter exported to ONNX: an image to a class per pixel.

It looks at the whole image once, whatever windows, scales or mirror images the run's recipe asks for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import MaskPrediction, Predictor
from crossformerpp.data.images import scaled_size
from crossformerpp.runtime.files import ExportedNetwork
from crossformerpp.runtime.resizing import interpolate, resize_exactly

_CELL = 4  # stride of the logits
_LEAST_SIDE = 32
_BAND_ELEMENTS = 1 << 24  # of the K × rows × W probabilities that exist at a time: 64 MB


class OnnxSegmenter(Predictor[MaskPrediction]):
    """The short side as in the recipe, padded to whole cells by repeating the last row and column."""

    columns: Sequence[str] = MaskPrediction.columns
    workers = "threads"
    suffixes = ("", "_mask")

    def __init__(self, network: ExportedNetwork, **_: Any) -> None:
        self.network = network
        self.class_names: list[str] = network.about["class_names"]

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def predict(self, prepared: Sequence[Image.Image]) -> list[MaskPrediction]:
        return [self._predict_one(image) for image in prepared]

    def _predict_one(self, image: Image.Image) -> MaskPrediction:
        height, width = self._size(image)
        logits = self.network(self.network_input(image))[0][0]
        labels = np.empty((image.height, image.width), np.int16)
        sums = np.zeros(len(self.class_names))
        rows = max(1, _BAND_ELEMENTS // (len(self.class_names) * image.width))
        for top in range(0, image.height, rows):
            part = slice(top, min(top + rows, image.height))
            band = interpolate(logits, 2, _cells(range(image.width), width / image.width))
            band = interpolate(band, 1, _cells(range(part.start, part.stop), height / image.height))
            band = np.exp(band - band.max(axis=0))
            band /= band.sum(axis=0)
            labels[part] = band.argmax(axis=0)
            sums += np.bincount(labels[part].ravel(), band.max(axis=0).ravel(), len(sums))
        counts = np.bincount(labels.ravel(), minlength=len(sums))
        colors = [(r, g, b) for r, g, b in self.network.about["colors"]]
        return MaskPrediction(labels, sums / counts.clip(min=1), {}, self.class_names, colors)

    def network_input(self, image: Image.Image) -> np.ndarray:
        """(1, 3, H, W), normalised."""
        height, width = self._size(image)
        pixels = resize_exactly(image, width, height)
        more = [max(-(-side // _CELL) * _CELL, _LEAST_SIDE) - side for side in (height, width)]
        return self.network.normalise(np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge"))

    def _size(self, image: Image.Image) -> list[int]:
        return scaled_size((image.height, image.width), self.network.about["view"]["short_side"])


def _cells(pixels: range, scale: float) -> np.ndarray:
    """Where the centres of `pixels` lie among those of the cells; `scale`: a pixel's size in the view."""
    return (np.arange(pixels.start, pixels.stop) + 0.5) * (scale / _CELL) - 0.5
