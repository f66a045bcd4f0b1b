"""COCO's masks: polygons and run lengths (RLE), by faster-coco-eval, which does as COCO's own code does."""

from typing import Any

import numpy as np

Segmentation = list[list[float]] | dict[str, Any]  # polygons (x, y in turn), or run lengths of either kind
Rle = dict[str, Any]  # compressed run lengths: {"size": [H, W], "counts": str or bytes}


def encode(segmentation: Segmentation, height: int, width: int) -> Rle:
    """Polygons or run lengths -> compressed RLE, as COCO's evaluation takes it.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    mask = _mask_api()
    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode(rle: Rle) -> np.ndarray:
    """Compressed RLE -> H × W bytes of 0 and 1."""
    return _mask_api().decode(rle)


def encode_mask(mask: np.ndarray) -> Rle:
    """H × W of 0 and 1 -> compressed RLE with text counts, ready for JSON."""
    rle = _mask_api().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _mask_api() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise ValueError(
            "masks need faster-coco-eval: pip install '.[detection]' in a checkout of crossformerpp"
        ) from None
    return mask
