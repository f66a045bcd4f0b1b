"""A classifier exported to ONNX: an image to its most likely classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.conformal import Promise
from crossformerpp.analysis.predictions import ClassPrediction
from crossformerpp.runtime.files import ExportedNetwork


class OnnxClassifier:
    """Prepares an image as timm's evaluation transform does: short side, then the centre."""

    def __init__(self, network: ExportedNetwork, top_k: int = 5, **_: Any) -> None:
        self.network = network
        self.class_names: list[str] = network.about["class_names"]
        self.top_k = min(top_k, len(self.class_names))
        found = network.about.get("conformal")
        self.promise = None if found is None else Promise(**found)
        self.columns: Sequence[str] = ClassPrediction.columns_with(self.promise)

    def __call__(self, image: Image.Image) -> ClassPrediction:
        return ClassPrediction.of(self.probabilities(image), self.class_names, self.top_k, self.promise)

    def probabilities(self, image: Image.Image) -> np.ndarray:
        """(K,)."""
        (logits,) = self.network(self.prepare(image))
        shares = np.exp(logits[0] - logits[0].max())
        return shares / shares.sum()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """(1, 3, H, W), normalised."""
        view = self.network.about["view"]
        short, (height, width) = view["short_side"], view["crop"]
        sides = (short * side // min(image.size) for side in image.size)
        image = image.resize((next(sides), next(sides)), Image.Resampling[view["interpolation"].upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return self.network.normalise(np.asarray(image.crop((left, top, left + width, top + height))))
