"""What is known of one image, as plain data that processes can exchange, and the same in COCO's format.

A record has the image's `truth` (see `data.detection.truth`) and what was `found`: dictionaries of `label`, `bbox`
[x, y, width, height] in pixels, `score` and for masks `segmentation` (compressed RLE).
"""

from collections.abc import Sequence
from typing import Any, Literal

Record = dict[str, Any]
Kind = Literal["box", "mask"]


def coco_page(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, Any]:
    """The truth as an annotation file in COCO's format would hold it; categories are labels."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for thing in record["truth"]["objects"]:
            described = {key: value for key, value in thing.items() if key != "label"}
            described |= {"id": len(annotations) + 1, "image_id": record["truth"]["image_id"]}
            annotations.append(described | {"category_id": thing["label"]})
    return {
        "images": [
            {"id": r["truth"]["image_id"], "height": r["truth"]["height"], "width": r["truth"]["width"]}
            for r in records
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
    }


def coco_results(
    records: Sequence[Record], kind: Kind, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The detections in COCO's results format, with labels or the data's own category ids.

    Boxes go without their masks: an evaluation of boxes sorts detections into sizes by the box's area.
    """
    return [
        {
            "image_id": record["truth"]["image_id"],
            "category_id": thing["label"] if category_ids is None else category_ids[thing["label"]],
            "score": thing["score"],
            **({"segmentation": thing["segmentation"]} if kind == "mask" else {"bbox": thing["bbox"]}),
        }
        for record in records
        for thing in record["found"]
    ]
