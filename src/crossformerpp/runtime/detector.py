"""A RetinaNet exported to ONNX: an image to its objects.

The file holds the network up to its heads' raw outputs. What torchvision does around it stands here in NumPy:
resizing and padding, anchors, decoding of boxes, and non-maximum suppression. A detector trained with MMDetection
follows its rules instead (see `tasks.detection.mmdetection`).

Legend: A anchors, level by level, K classes; a box is left, top, right, bottom in pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import ObjectPrediction, Predictor
from crossformerpp.data.opencv import resize_bytes
from crossformerpp.data.pixels import Pixels
from crossformerpp.runtime.files import ExportedNetwork
from crossformerpp.runtime.resizing import resize_exactly

# torchvision's RetinaNet and its transform
_STRIDES = (8, 16, 32, 64, 128)  # of its five levels
_DIVISOR = 32  # sides are padded to a multiple
_PER_LEVEL = 1000  # candidates
_MAX_LOG_SCALE = math.log(1000 / 16)  # of a box to its anchor


class OnnxObjects(Predictor[ObjectPrediction]):
    """What exported detectors have in common; each says how it judges one image."""

    columns: Sequence[str] = ObjectPrediction.columns
    workers = "threads"

    def __init__(self, network: ExportedNetwork, min_score: float = 0.5, **_: Any) -> None:
        self.network = network
        self.pixels = network.pixels
        self.class_names: list[str] = network.about["class_names"]
        self.min_score = min_score
        self.is_exact = network.about["rules"] == "mmdetection"

    def prepare(self, image: Image.Image | Pixels) -> Image.Image | Pixels:
        return image

    def predict(self, prepared: Sequence[Image.Image | Pixels]) -> list[ObjectPrediction]:
        return [self._predict_one(image) for image in prepared]

    def _predict_one(self, image: Image.Image | Pixels) -> ObjectPrediction:
        raise NotImplementedError


class OnnxDetector(OnnxObjects):
    """Objects of an image of any size."""

    def _predict_one(self, image: Image.Image | Pixels) -> ObjectPrediction:
        pixels, (height, width) = seen_by(self.network, image)
        logits, offsets = (output[0] for output in self.network(pixels))
        boxes, scores, labels = self._candidates(logits, offsets, pixels.shape[2:])
        boxes = boxes.clip(0, [width, height, width, height])
        kept = suppress(boxes, scores, labels, self.network.about["nms_iou"])
        kept = kept[: self.network.about["max_detections"]]
        boxes = boxes[kept] * np.array([image.width / width, image.height / height] * 2, np.float32)
        found = [
            {"label": int(label), "bbox": [x, y, right - x, bottom - y], "score": float(score)}
            for label, score, (x, y, right, bottom) in zip(
                labels[kept], scores[kept], boxes.tolist(), strict=True
            )
        ]
        return ObjectPrediction(found, self.class_names)

    def network_input(self, image: Image.Image | Pixels) -> np.ndarray:
        """(1, 3, H, W), normalised and padded."""
        return seen_by(self.network, image)[0]

    def _candidates(
        self, logits: np.ndarray, offsets: np.ndarray, size: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best (box, score, label) of each level, (N, 4), (N,), (N,)."""
        found, first = [], 0
        for level, cell in zip(_STRIDES, self.network.about["anchors"], strict=True):
            anchors = anchors_of_level(size, level, np.asarray(cell, np.float32), self.is_exact)
            part = slice(first, first := first + len(anchors))
            scores = 1 / (1 + np.exp(-logits[part].astype(np.float32)))
            if self.is_exact:  # only of the anchors with the highest scores
                scores[np.argsort(-scores.max(axis=1), kind="stable")[_PER_LEVEL:]] = 0
            scores = scores.ravel()
            above = np.flatnonzero(scores > self.min_score)
            best = above[np.argsort(-scores[above], kind="stable")]
            best = best if self.is_exact else best[:_PER_LEVEL]
            which, labels = np.divmod(best, logits.shape[-1])
            least = -_MAX_LOG_SCALE if self.is_exact else -math.inf
            found.append((decode(offsets[part][which], anchors[which], least), scores[best], labels))
        boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return boxes, scores, labels


def seen_by(network: ExportedNetwork, image: Image.Image | Pixels) -> tuple[np.ndarray, tuple[int, int]]:
    """The image as a detector sees it, (1, 3, H, W), and its height and width without the padding."""
    view = network.about["view"]
    scale = min(view["short_side"] / min(image.size), view["long_side"] / max(image.size))
    if network.about["rules"] == "mmdetection":
        width, height = (int(side * scale + 0.5) for side in image.size)
        seen = resize_bytes(np.asarray(image).transpose(2, 0, 1), (height, width)).transpose(1, 2, 0)
    else:
        width, height = (max(1, int(side * scale)) for side in image.size)
        seen = resize_exactly(image, width, height)
    more = [-side % _DIVISOR for side in (height, width)]
    pixels = np.pad(network.normalise(seen), ((0, 0), (0, 0), (0, more[0]), (0, more[1])))
    return pixels, (height, width)


def anchors_of_level(
    size: Sequence[int], stride: int, cell: np.ndarray, is_exact: bool = False
) -> np.ndarray:
    """(h·w·a, 4): the `a` anchors of a cell, (a, 4) about the origin, at every cell of a level.

    Args:
        is_exact: From cell to cell they move by the stride, not by the image's side over the number of cells.
    """
    counts = [-(-side // stride) for side in size]
    steps = [stride if is_exact else side // count for side, count in zip(size, counts, strict=True)]
    y, x = np.meshgrid(
        *(np.arange(count, dtype=np.float32) * step for count, step in zip(counts, steps, strict=True)),
        indexing="ij",
    )
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def decode(offsets: np.ndarray, anchors: np.ndarray, least: float = -math.inf) -> np.ndarray:
    """Offsets (dx, dy, dw, dh) to anchors -> boxes, (N, 4); dw and dh are at least `least`."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + 0.5 * sides + offsets[:, :2] * sides
    half = 0.5 * sides * np.exp(offsets[:, 2:].clip(least, _MAX_LOG_SCALE))
    return np.concatenate([centres - half, centres + half], axis=1)


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, max_iou: float) -> np.ndarray:
    """Non-maximum suppression within each class: numbers of the boxes that stay, best first."""
    left = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        shared = sides.clip(min=0).prod(axis=1)
        union = areas[best] + areas[left] - shared
        left = left[(labels[left] != labels[best]) | (shared <= max_iou * union)]
    return np.array(kept, np.int64)
