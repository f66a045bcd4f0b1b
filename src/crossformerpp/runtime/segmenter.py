"""A segmenter exported to ONNX: an image to a class per pixel.

It looks at the whole image once, whatever windows, scales or mirror images the run's recipe asks for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import MaskPrediction, Predictor
from crossformerpp.data.images import scaled_size
from crossformerpp.runtime.files import OnnxNetwork

_CELL = 4  # stride of the logits
_LEAST_SIDE = 32
_BAND_ELEMENTS = 1 << 24  # of the K × rows × W probabilities that exist at a time: 64 MB


class OnnxSegmenter(Predictor[MaskPrediction]):
    """The short side as in the recipe, padded to whole cells by repeating the last row and column."""

    columns: Sequence[str] = MaskPrediction.columns
    workers = "threads"
    suffixes = ("", "_mask")

    def __init__(self, network: OnnxNetwork, **_: Any) -> None:
        self.network = network
        self.class_names: list[str] = network.about["class_names"]

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def predict(self, prepared: Sequence[Image.Image]) -> list[MaskPrediction]:
        return [self._predict_one(image) for image in prepared]

    def _predict_one(self, image: Image.Image) -> MaskPrediction:
        height, width = scaled_size((image.height, image.width), self.network.about["view"]["short_side"])
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        more = [max(-(-side // _CELL) * _CELL, _LEAST_SIDE) - side for side in (height, width)]
        pixels = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        logits = self.network(self.network.normalise(pixels))[0][0]
        labels = np.empty((image.height, image.width), np.int16)
        sums = np.zeros(len(self.class_names))
        rows = max(1, _BAND_ELEMENTS // (len(self.class_names) * image.width))
        for top in range(0, image.height, rows):
            part = slice(top, min(top + rows, image.height))
            band = _enlarge(logits, 2, np.arange(image.width), width / image.width)
            band = _enlarge(band, 1, np.arange(part.start, part.stop), height / image.height)
            band = np.exp(band - band.max(axis=0))
            band /= band.sum(axis=0)
            labels[part] = band.argmax(axis=0)
            sums += np.bincount(labels[part].ravel(), band.max(axis=0).ravel(), len(sums))
        counts = np.bincount(labels.ravel(), minlength=len(sums))
        colors = [(r, g, b) for r, g, b in self.network.about["colors"]]
        return MaskPrediction(labels, sums / counts.clip(min=1), {}, self.class_names, colors)


def _enlarge(values: np.ndarray, axis: int, pixels: np.ndarray, scale: float) -> np.ndarray:
    """Values of cells at the centres of `pixels`, by linear interpolation; `scale`: a pixel's size in the view."""
    at = ((pixels + 0.5) * (scale / _CELL) - 0.5).clip(0, values.shape[axis] - 1).astype(np.float32)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight = (at - low).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
