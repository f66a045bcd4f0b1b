"""A classifier exported to ONNX: images to their most likely classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.conformal import Promise
from crossformerpp.analysis.predictions import ClassPrediction, LabelPrediction, Predictor
from crossformerpp.data.pixels import Pixels, PixelView
from crossformerpp.runtime.files import ExportedNetwork


class OnnxClassifier(Predictor[ClassPrediction]):
    """Prepares an image as timm's evaluation transform does: short side, then the centre."""

    workers = "threads"
    batch_size = 32

    def __init__(self, network: ExportedNetwork, top_k: int = 5, **_: Any) -> None:
        self.network = network
        self.class_names: list[str] = network.about["class_names"]
        self.pixels = network.pixels
        self.top_k = min(top_k, len(self.class_names))
        found = network.about.get("conformal")
        self.promise = None if found is None else Promise(**found)
        self.columns: Sequence[str] = ClassPrediction.columns_with(self.promise)

    def predict(self, prepared: Sequence[np.ndarray]) -> list[ClassPrediction]:
        return [
            ClassPrediction.of(row, self.class_names, self.top_k, self.promise)
            for row in self.probabilities(prepared)
        ]

    def probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(B, K)."""
        logits = self.logits(prepared)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def logits(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(B, K)."""
        (logits,) = self.network(np.concatenate(prepared))
        return logits

    def network_input(self, image: Image.Image | Pixels) -> np.ndarray:
        """(1, C, H, W), normalised."""
        return self.prepare(image)

    def prepare(self, image: Image.Image | Pixels) -> np.ndarray:
        """(1, C, H, W), normalised."""
        view = self.network.about["view"]
        short, (height, width) = view["short_side"], view["crop"]
        if isinstance(image, Pixels):
            seen = PixelView(short, (height, width), view["interpolation"])(image)
            return self.network.normalise(seen.transpose(1, 2, 0))
        sides = (short * side // min(image.size) for side in image.size)
        image = image.resize((next(sides), next(sides)), Image.Resampling[view["interpolation"].upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return self.network.normalise(np.asarray(image.crop((left, top, left + width, top + height))))


class OnnxLabelSets(OnnxClassifier):
    """A multi-label classifier: images to the labels that reach their thresholds."""

    def __init__(self, network: ExportedNetwork, **options: Any) -> None:
        super().__init__(network, **options)
        self.columns = LabelPrediction.columns
        self.thresholds = np.array(network.about["thresholds"], np.float32)

    def predict(self, prepared: Sequence[np.ndarray]) -> list[LabelPrediction]:  # type: ignore[override]
        return [
            LabelPrediction.of(row, self.class_names, self.thresholds) for row in self.probabilities(prepared)
        ]

    def probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(B, K), each class for itself."""
        logits = self.logits(prepared).astype(np.float64)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
