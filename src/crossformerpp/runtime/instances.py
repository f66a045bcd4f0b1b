"""A Mask R-CNN exported to ONNX: an image to its objects and their masks.

The file holds the whole network with its proposals and suppressions (`crossformerpp.export.mask_rcnn`). What stands
here is the image's way in, and the masks' way back to the image's own resolution.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from crossformerpp.analysis.predictions import ObjectPrediction
from crossformerpp.data.masks import encode_mask
from crossformerpp.data.pixels import Pixels
from crossformerpp.runtime.detector import OnnxObjects, seen_by
from crossformerpp.runtime.resizing import interpolate


class OnnxInstances(OnnxObjects):
    """Objects with masks, of an image of any size."""

    def _predict_one(self, image: Image.Image | Pixels) -> ObjectPrediction:
        pixels, (height, width) = seen_by(self.network, image)
        boxes, labels, scores, masks = self.network(
            pixels, size=np.array([height, width]), min_score=np.array(self.min_score, np.float32)
        )
        boxes = boxes * np.array([image.width / width, image.height / height] * 2, np.float32)
        paste = paste_exactly if self.is_exact else paste_mask
        found = [
            {
                "label": int(label),
                "bbox": [x, y, right - x, bottom - y],
                "score": float(score),
                "segmentation": encode_mask(
                    paste(mask, np.array([x, y, right, bottom], np.float32), image.height, image.width)
                ),
            }
            for label, score, mask, (x, y, right, bottom) in zip(
                labels, scores, masks, boxes.tolist(), strict=True
            )
        ]
        return ObjectPrediction(found, self.class_names)


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (M × M, shares) at its place in the image, as torchvision puts it there -> H × W bytes of 0 and 1.

    The mask gets a border of zeros, and its box grows in proportion and is cut to whole pixels.
    """
    padded = np.pad(mask, 1)
    centre, half = (box[:2] + box[2:]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half = half * np.float32(len(padded) / len(mask))
    first, last = (centre - half).astype(np.int64), (centre + half).astype(np.int64)
    scale = len(padded) / np.maximum(last - first + 1, 1)
    x, y = (
        np.arange(max(int(first[axis]), 0), min(int(last[axis]) + 1, side))
        for axis, side in enumerate((width, height))
    )
    at = [(pixels + 0.5 - first[axis]) * scale[axis] - 0.5 for axis, pixels in enumerate((x, y))]
    return _pasted(padded, x, y, at, height, width)


def paste_exactly(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `paste_mask`, but as MMDetection does: sampled at the image's pixel centres, zero outside the mask."""
    padded = np.pad(mask, 1)
    x, y = (
        np.arange(max(0, int(np.floor(box[axis])) - 1), min(side, int(np.ceil(box[axis + 2])) + 1))
        for axis, side in enumerate((width, height))
    )
    sides = box[2:] - box[:2]
    middle = (len(mask) - 1) / 2
    at = [
        1
        + (
            (pixels + 0.5 - box[axis]) / sides[axis] * len(mask) - 0.5
            if sides[axis] > 0
            else middle + 0 * pixels
        )
        for axis, pixels in enumerate((x, y))
    ]
    return _pasted(padded, x, y, at, height, width)


def _pasted(
    padded: np.ndarray, x: np.ndarray, y: np.ndarray, at: Sequence[np.ndarray], height: int, width: int
) -> np.ndarray:
    """Where a mask is above one half, at columns `x` and rows `y` of the image, which lie in the mask at `at`."""
    pasted = np.zeros((height, width), np.uint8)
    if len(x) and len(y):
        shares = interpolate(interpolate(padded, 0, at[1]), 1, at[0])
        pasted[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = shares >= 0.5
    return pasted
