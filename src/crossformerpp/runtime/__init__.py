"""Predict with files of `crossformer export --format onnx`: ONNX Runtime, NumPy and Pillow, no PyTorch."""

from pathlib import Path
from typing import Any

from crossformerpp.runtime.classifier import OnnxClassifier
from crossformerpp.runtime.detector import OnnxDetector
from crossformerpp.runtime.files import open_onnx
from crossformerpp.runtime.segmenter import OnnxSegmenter

_PREDICTORS: dict[str, type[OnnxClassifier | OnnxDetector | OnnxSegmenter]] = {
    "classification": OnnxClassifier,
    "detection": OnnxDetector,
    "segmentation": OnnxSegmenter,
}


def open_predictor(path: Path, **options: Any) -> OnnxClassifier | OnnxDetector | OnnxSegmenter:
    """A predictor, as `tasks.plug` defines it, for an exported file.

    Args:
        options: The task's own: `top_k`, `min_score`.

    Raises:
        ValueError: Unreadable, not of `crossformer export`, or onnxruntime is missing.
    """
    network = open_onnx(path)
    task = network.about["task"]
    if task not in _PREDICTORS:
        raise ValueError(
            f"{path}: exported with --features, which name nothing; export the whole model to predict"
        )
    return _PREDICTORS[task](network, **options)
