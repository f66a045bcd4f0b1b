"""COCO's average precision of boxes and masks, by faster-coco-eval, and the tables and pictures of an evaluation."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from crossformerpp.analysis.objects import contact_sheet, draw_objects, drawn_objects
from crossformerpp.data.detection import EvalImages, open_image
from crossformerpp.data.masks import encode_mask
from crossformerpp.data.pixels import as_picture
from crossformerpp.data.split import Split
from crossformerpp.data.writing import write_json
from crossformerpp.tasks.detection import mmdetection
from crossformerpp.tasks.detection.errors import write_errors
from crossformerpp.tasks.detection.records import Kind, Record, coco_page, coco_results

_NUM_SHOWN = 12  # images in predictions.png
_LEAST_SHOWN = 0.5  # score of what is drawn there
_SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's summary over all classes (`AP`, `AP50`, `AP75`, `AP_small`, …), and per class (AP, AP50).

    A group without true objects (no large ones, for example) has no precision and is left out or NaN.
    """

    summary: dict[str, float]
    per_class: list[tuple[float, float]]


def average_precision(records: Sequence[Record], class_names: Sequence[str], kind: Kind) -> AveragePrecision:
    """Compare detections with the truth.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ValueError(
            "evaluating needs faster-coco-eval: pip install '.[detection]' in a checkout of crossformerpp"
        ) from None
    truth, results = coco_page(records, class_names), coco_results(records, kind)
    known = COCO(truth)
    found = known.loadRes(results) if results else COCO(truth | {"annotations": []})
    judge = COCOeval_faster(known, found, {"box": "bbox", "mask": "segm"}[kind])
    judge.evaluate()
    judge.accumulate()
    # IoU thresholds 0.5, 0.55, …; recall; class; all, small, medium, large; 1, 10 or 100 detections
    precision = np.asarray(judge.eval["precision"])[..., -1]
    summary = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{f"AP_{size}": _mean(precision[..., number]) for number, size in enumerate(_SIZES, start=1)},
    }
    per_class = [
        (_mean(precision[:, :, label, 0]), _mean(precision[0, :, label, 0]))
        for label in range(len(class_names))
    ]
    return AveragePrecision({name: ap for name, ap in summary.items() if not np.isnan(ap)}, per_class)


def describe(
    found: dict[str, Tensor], height: int, width: int, rules: str = "torchvision"
) -> list[dict[str, Any]]:
    """A detector's output for one image of `height` × `width` pixels as plain data, best first.

    Args:
        rules: Of the `DetectorSection`, for masks.
    """
    paste = mmdetection.paste_mask if rules == "mmdetection" else paste_mask
    found = {name: value.detach().float().cpu() for name, value in found.items()}
    boxes = found["boxes"]
    corners_to_size = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    things: list[dict[str, Any]] = [
        {"label": int(label), "bbox": box, "score": score}
        for label, box, score in zip(
            found["labels"].tolist(), corners_to_size.tolist(), found["scores"].tolist(), strict=True
        )
    ]
    if "masks" in found:
        for thing, mask, box in zip(things, found["masks"], boxes, strict=True):
            thing["segmentation"] = encode_mask(paste(mask, box, height, width))
    return things


def paste_mask(mask: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """A predicted mask (28 × 28, shares) at its place in the image -> H × W bytes of 0 and 1.

    One at a time: a hundred masks of a large panorama would not fit in memory.
    """
    pasted = paste_masks_in_image(mask[None, None], box[None], (height, width))
    return (pasted[0, 0] >= 0.5).numpy().astype(np.uint8)


@dataclass(frozen=True)
class DetectionEvaluation:
    """What an evaluation found.

    Attributes:
        metrics: `box_AP`, `box_AP50`, …, `mask_AP`, …, and the number of images, of those without objects, and of
            objects.
        per_class: For boxes, and for masks if there are any.
        records: One per image; empty in all processes but the first.
    """

    metrics: dict[str, float]
    per_class: dict[Kind, list[tuple[float, float]]]
    class_names: list[str]
    records: list[Record]

    @classmethod
    def of(
        cls, records: list[Record], class_names: list[str], kinds: Sequence[Kind]
    ) -> "DetectionEvaluation":
        """Evaluate records, each image once, however often it was seen."""
        records = list({record["truth"]["image_id"]: record for record in records}.values())
        metrics: dict[str, float] = {}
        per_class: dict[Kind, list[tuple[float, float]]] = {}
        for kind in kinds:
            result = average_precision(records, class_names, kind)
            metrics |= {f"{kind}_{name}": value for name, value in result.summary.items()}
            per_class[kind] = result.per_class
        numbers = [sum(not thing["iscrowd"] for thing in record["truth"]["objects"]) for record in records]
        metrics |= {"images": len(records), "empty_images": numbers.count(0), "objects": sum(numbers)}
        return cls(metrics, per_class, class_names, records)

    @property
    def num_images(self) -> int:
        return len(self.records)

    def score(self, images: Sequence[int] | np.ndarray) -> float:
        """The boxes' AP; NaN where these images have no object."""
        drawn = [self.records[number] for number in images]
        numbered = [
            {**record, "truth": {**record["truth"], "image_id": number}}
            for number, record in enumerate(drawn, 1)
        ]
        return average_precision(numbered, self.class_names, "box").summary.get("AP", float("nan"))

    def write(self, folder: Path, split: Split) -> list[Path]:
        """per_class.csv, detections.json (COCO's results format), predictions.png (truth, prediction), and what
        `errors.write_errors` tells of the boxes' errors."""
        assert isinstance(split.dataset, EvalImages)
        written = [folder / name for name in ("per_class.csv", "detections.json", "predictions.png")]
        with written[0].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(
                ["class", *(f"{kind}_{name}" for kind in self.per_class for name in ("AP", "AP50"))]
            )
            for label, name in enumerate(self.class_names):
                pairs = [rows[label] for rows in self.per_class.values()]
                table.writerow(
                    [name, *("" if np.isnan(ap) else f"{ap:.4f}" for pair in pairs for ap in pair)]
                )
        coco = split.dataset.coco
        results = coco_results(self.records, "box", coco.category_ids)
        if "mask" in self.per_class:
            masks = coco_results(self.records, "mask", coco.category_ids)
            results = [box | mask for box, mask in zip(results, masks, strict=True)]
        write_json(written[1], results)
        by_id = {record["truth"]["image_id"]: record for record in self.records}
        shown = coco.images[:: max(1, len(coco.images) // _NUM_SHOWN)][:_NUM_SHOWN]
        pictures = [(as_picture(open_image(entry, coco.pixels)), by_id[entry.id]) for entry in shown]
        self._sheet(pictures).save(written[2])
        return [*written, *write_errors(folder, self.records, self.class_names, coco)]

    def _sheet(self, shown: Sequence[tuple[Image.Image, Record]]) -> Image.Image:
        """The truth of each image beside its detections."""
        pictures, headings = [], []
        for image, record in shown:
            true = [thing for thing in record["truth"]["objects"] if not thing["iscrowd"]]
            found = drawn_objects(record["found"], self.class_names, _LEAST_SHOWN)
            pictures += [
                draw_objects(image, objects) for objects in (drawn_objects(true, self.class_names), found)
            ]
            headings += ["truth", "prediction" if found else f"nothing found above {_LEAST_SHOWN}"]
        return contact_sheet(pictures, headings)


def _mean(precision: np.ndarray) -> float:
    """COCO's −1 means that a class has no object of that size."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")
