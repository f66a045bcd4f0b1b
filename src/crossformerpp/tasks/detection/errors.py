"""What a detector gets wrong: every error by its kind, as TIDE sorts them (Bolya et al. 2020), and what a kind costs.

A detection is right where it overlaps an object of its class by an IoU of 0.5, one detection per object, the highest
scores first. Any other is an error:

    poor box     of an object of its class, by an IoU of 0.1 to 0.5
    wrong class  it lies on an object of another class, by an IoU of 0.5 or more
    duplicate    of an object that was found already
    both         wrong class and poor box: an IoU of 0.1 to 0.5 with an object of another class
    background   nothing is there: an IoU below 0.1 with every object
    missed       an object that no detection found and none of the wrong classes and poor boxes explains

Crowds are neither found nor missed, and what lies on them is no error, as in COCO's evaluation. What a kind costs is
the AP at IoU 0.5 that its errors take away, by hotcoco.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.analysis.objects import DrawnObject, contact_sheet, draw_objects
from crossformerpp.data.coco import CocoSet
from crossformerpp.data.detection import open_image
from crossformerpp.data.names import printable
from crossformerpp.data.pixels import as_picture
from crossformerpp.tasks.detection.records import Record, coco_page, coco_results

KINDS = ("wrong class", "poor box", "both", "duplicate", "background", "missed")
_TIDE = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
FOUND_IOU, BACKGROUND_IOU = 0.5, 0.1
_PER_CLASS = 100  # detections of an image that count, as in COCO's evaluation
_NUM_SHOWN = 4  # errors of a kind in errors.png
_AROUND, _LEAST_AROUND = 0.6, 24  # of the boxes' side, and pixels, that a picture shows around them
_BOX = ("x", "y", "width", "height")
_COLUMNS = (
    *("image", "kind", "class", *_BOX),
    *(f"true_{name}" for name in ("class", *_BOX)),
    *("score", "iou"),
)


@dataclass(frozen=True)
class DetectionError:
    """One error.

    Attributes:
        image_id: As in the annotations.
        found: The detection; None: of a missed object.
        true: The object that it belongs to, or nearly; None: background.
        iou: Of the two boxes; of a missed object with the nearest detection of its class.
    """

    image_id: int
    kind: str
    found: dict[str, Any] | None
    true: dict[str, Any] | None
    iou: float

    @property
    def weight(self) -> float:
        """How bad it is, within its kind: the score of what should not be there, or the area of what was missed."""
        if self.found is not None:
            return self.found["score"]
        assert self.true is not None
        return self.true["area"]


def find_errors(records: Sequence[Record]) -> list[DetectionError]:
    """Every error of the boxes, image by image."""
    return [error for record in map(without_crowds, records) for error in _errors_of(record)]


def costs(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, float]:
    """The AP at IoU 0.5, from 0 to 1, that each kind of errors takes away; nothing where hotcoco is not installed."""
    try:
        from hotcoco import COCO, COCOeval
    except ImportError:
        warnings.warn(
            "what errors cost needs hotcoco: pip install '.[detection]' in a checkout of crossformerpp",
            stacklevel=2,
        )
        return {}
    records = [without_crowds(record) for record in records]
    results = coco_results(records, "box")
    if not results:
        return {}
    truth = COCO(coco_page(records, class_names))
    judge = COCOeval(truth, truth.load_res(results), "bbox")
    judge.evaluate()
    lost = judge.tide_errors(FOUND_IOU, BACKGROUND_IOU)["delta_ap"]
    return {kind: lost[name] for kind, name in _TIDE.items()}


def without_crowds(record: Record) -> Record:
    """The same without crowds, and without the detections that lie on them and find nothing else."""
    objects = record["truth"]["objects"]
    true = [thing for thing in objects if not thing["iscrowd"]]
    crowds = [thing for thing in objects if thing["iscrowd"]]
    found = _counted(record["found"])
    if crowds:
        is_same = _labels(found)[:, None] == _labels(true)[None]
        is_right = _match(box_iou(found, true), is_same) >= 0
        is_left = is_right | ~_covered_by(found, crowds)
        found = [thing for thing, left in zip(found, is_left, strict=True) if left]
    return {"truth": record["truth"] | {"objects": true}, "found": found}


def _errors_of(record: Record) -> list[DetectionError]:
    """
    Args:
        record: Without crowds, the detections best first.
    """
    true, found = record["truth"]["objects"], record["found"]
    ious = box_iou(found, true)
    is_same = _labels(found)[:, None] == _labels(true)[None]
    owner = _match(ious, is_same)
    image_id = record["truth"]["image_id"]
    errors, explained = [], np.zeros(len(true), bool)
    explained[owner[owner >= 0]] = True
    for number, thing in enumerate(found):
        if owner[number] >= 0:
            continue
        kind, other = _kind(ious[number], is_same[number])
        if kind in ("wrong class", "poor box"):
            explained[other] = True
        partner = None if other is None else true[other]
        iou = 0.0 if other is None else float(ious[number, other])
        errors.append(DetectionError(image_id, kind, thing, partner, iou))
    for number in np.flatnonzero(~explained).tolist():
        near = float((ious[:, number] * is_same[:, number]).max(initial=0))
        errors.append(DetectionError(image_id, "missed", None, true[number], near))
    return errors


def write_errors(
    folder: Path, records: Sequence[Record], class_names: Sequence[str], coco: CocoSet
) -> list[Path]:
    """errors.csv (every error, the worst of each kind first), error_kinds.csv (how many, what they cost), errors.png
    (the worst of each kind)."""
    errors = sorted(find_errors(records), key=lambda error: (KINDS.index(error.kind), -error.weight))
    by_id = {image.id: image for image in coco.images}
    written = [folder / name for name in ("errors.csv", "error_kinds.csv", "errors.png")]
    with written[0].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        for error in errors:
            table.writerow(_row(error, class_names, printable(by_id[error.image_id].path.name)))
    counts, lost = Counter(error.kind for error in errors), costs(records, class_names)
    with written[1].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("kind", "errors", "AP50_lost"))
        for kind in KINDS:
            table.writerow((kind, counts[kind], f"{lost[kind]:.4f}" if kind in lost else ""))
    shown = [error for kind in KINDS for error in [e for e in errors if e.kind == kind][:_NUM_SHOWN]]
    if not shown:
        return written[:2]
    images = [as_picture(open_image(by_id[error.image_id], coco.pixels)) for error in shown]
    pictures = [_picture(error, image, class_names) for error, image in zip(shown, images, strict=True)]
    contact_sheet(pictures, [_heading(error) for error in shown], columns=_NUM_SHOWN).save(written[2])
    return written


def _row(error: DetectionError, class_names: Sequence[str], image: str) -> list[Any]:
    cells: list[Any] = [image, error.kind]
    for thing in (error.found, error.true):
        box = [""] * 4 if thing is None else [f"{value:.1f}" for value in thing["bbox"]]
        cells += ["" if thing is None else class_names[thing["label"]], *box]
    score = "" if error.found is None else f"{error.found['score']:.4f}"
    return [*cells, score, f"{error.iou:.4f}"]


def _picture(error: DetectionError, image: Image.Image, class_names: Sequence[str]) -> Image.Image:
    """The error and what is around it: what was found, with its score, and what is true."""
    things = [thing for thing in (error.true, error.found) if thing is not None]
    corners = _corners(things)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    reach = np.maximum(_AROUND * (high - low).max(), _LEAST_AROUND)
    left, top = (int(value) for value in np.maximum(low - reach, 0))
    right, bottom = (int(value) for value in np.minimum(high + reach, image.size))
    drawn = []
    for thing, (x1, y1, x2, y2) in zip(things, corners.tolist(), strict=True):
        label, box = thing["label"], (x1 - left, y1 - top, x2 - left, y2 - top)
        name = class_names[label] if thing is error.found else f"true: {class_names[label]}"
        drawn.append(DrawnObject(box, name, label, thing.get("score")))
    return draw_objects(image.crop((left, top, max(left + 1, right), max(top + 1, bottom))), drawn)


def _heading(error: DetectionError) -> str:
    iou = f", IoU {error.iou:.2f}" if error.true is not None and error.found is not None else ""
    return f"{error.kind}{iou}"


def _counted(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best hundred of each class, best first."""
    seen: Counter[int] = Counter()
    kept = []
    for thing in sorted(found, key=lambda thing: -thing["score"]):
        seen[thing["label"]] += 1
        if seen[thing["label"]] <= _PER_CLASS:
            kept.append(thing)
    return kept


def _match(ious: np.ndarray, is_same: np.ndarray) -> np.ndarray:
    """The object that each detection finds, −1: none; detections best first, each takes the nearest that is left."""
    owner = np.full(len(ious), -1)
    left = np.where(is_same, ious, -1.0)
    for number in range(len(ious)):
        if left.shape[1] and left[number].max() >= FOUND_IOU:
            owner[number] = left[number].argmax()
            left[:, owner[number]] = -1
    return owner


def _kind(ious: np.ndarray, is_same: np.ndarray) -> tuple[str, int | None]:
    """The kind of a detection that found nothing, and the object that it belongs to; (M,) IoUs with all objects."""
    if not len(ious):
        return "background", None
    same, other = np.where(is_same, ious, -1.0), np.where(is_same, -1.0, ious)
    if BACKGROUND_IOU <= same.max() < FOUND_IOU:
        return "poor box", int(same.argmax())
    if other.max() >= FOUND_IOU:
        return "wrong class", int(other.argmax())
    if same.max() >= FOUND_IOU:
        return "duplicate", int(same.argmax())
    if ious.max() < BACKGROUND_IOU:
        return "background", None
    return "both", int(other.argmax())


def box_iou(found: Sequence[dict[str, Any]], true: Sequence[dict[str, Any]]) -> np.ndarray:
    """(N, M) IoU of boxes [x, y, width, height]."""
    ours, theirs = _corners(found), _corners(true)
    shared = _shared(ours, theirs)
    union = _areas(ours)[:, None] + _areas(theirs)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _covered_by(found: Sequence[dict[str, Any]], crowds: Sequence[dict[str, Any]]) -> np.ndarray:
    """Whether half of a detection lies on a crowd of its class, (N,)."""
    boxes = _corners(found)
    share = _shared(boxes, _corners(crowds)) / np.maximum(_areas(boxes)[:, None], 1e-12)
    is_same = _labels(found)[:, None] == _labels(crowds)[None]
    return (is_same & (share >= FOUND_IOU)).any(axis=1)


def _corners(things: Sequence[dict[str, Any]]) -> np.ndarray:
    boxes = np.array([thing["bbox"] for thing in things], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _labels(things: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([thing["label"] for thing in things], np.int64)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _shared(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
