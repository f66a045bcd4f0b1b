"""Predict with files of `crossformer export --format onnx`: ONNX Runtime, NumPy and Pillow, no PyTorch."""

from pathlib import Path
from typing import Any

from crossformerpp.runtime.classifier import OnnxClassifier, OnnxLabelSets
from crossformerpp.runtime.detector import OnnxDetector
from crossformerpp.runtime.files import ExportedNetwork, open_onnx
from crossformerpp.runtime.instances import OnnxInstances
from crossformerpp.runtime.segmenter import OnnxSegmenter

Predictor = OnnxClassifier | OnnxDetector | OnnxInstances | OnnxSegmenter
_PREDICTORS: dict[str, type[Predictor]] = {
    "classification": OnnxClassifier,
    "label sets": OnnxLabelSets,
    "retinanet": OnnxDetector,
    "mask_rcnn": OnnxInstances,
    "segmentation": OnnxSegmenter,
}


def open_predictor(path: Path, **options: Any) -> Predictor:
    """A predictor, as `tasks.plug` defines it, for an exported file.

    Args:
        options: The task's own: `top_k`, `min_score`.

    Raises:
        ValueError: Unreadable, not of `crossformer export`, or onnxruntime is missing.
    """
    return predictor_of(open_onnx(path), path, **options)


def predictor_of(network: ExportedNetwork, path: Path, **options: Any) -> Predictor:
    """A predictor on an open file.

    Raises:
        ValueError: It holds a backbone alone.
    """
    kind = network.about.get("network", network.about["task"])
    if network.about.get("thresholds") is not None:
        kind = "label sets"
    if kind not in _PREDICTORS:
        raise ValueError(
            f"{path}: exported with --features, which name nothing; export the whole model to predict"
        )
    return _PREDICTORS[kind](network, **options)
