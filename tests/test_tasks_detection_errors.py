"""Every error of a detector by its kind, against hotcoco's counts and an AP computed again without the errors."""

import csv
import sys
from collections import Counter

import pytest
from hotcoco import COCO, COCOeval
from PIL import Image

from crossformerpp.data.coco import CocoSet
from crossformerpp.data.coco_images import CocoImage
from crossformerpp.data.problems import Problems
from crossformerpp.tasks.detection.errors import KINDS, costs, find_errors, without_crowds, write_errors
from crossformerpp.tasks.detection.evaluation import average_precision
from crossformerpp.tasks.detection.records import coco_page, coco_results
from test_tasks_detection_evaluation import NAMES, random_records

TRUE = {"area": 400.0, "iscrowd": 0}


def one_of_each():
    """An image with an error of every kind, and two right detections: (record, kinds by score)."""
    objects = [
        {"label": 0, "bbox": [10.0, 10.0, 20.0, 20.0], **TRUE},
        {"label": 1, "bbox": [60.0, 10.0, 20.0, 20.0], **TRUE},
        {"label": 1, "bbox": [10.0, 60.0, 20.0, 20.0], **TRUE},
        {"label": 2, "bbox": [60.0, 60.0, 20.0, 20.0], **TRUE, "area": 100.0},
        {"label": 0, "bbox": [120.0, 10.0, 20.0, 20.0], **TRUE},
        {"label": 2, "bbox": [110.0, 60.0, 60.0, 60.0], **TRUE, "iscrowd": 1},
    ]
    found = {
        0.95: (0, [10.0, 11.0, 20.0, 20.0], None),
        0.90: (0, [11.0, 10.0, 20.0, 20.0], "duplicate"),
        0.85: (0, [60.0, 11.0, 20.0, 20.0], "wrong class"),
        0.80: (1, [10.0, 70.0, 20.0, 20.0], "poor box"),
        0.75: (1, [70.0, 70.0, 20.0, 20.0], "both"),
        0.70: (2, [160.0, 10.0, 20.0, 20.0], "background"),
        0.65: (2, [115.0, 70.0, 30.0, 30.0], None),  # on the crowd
        0.60: (0, [120.0, 10.0, 20.0, 20.0], None),
    }
    things = [{"label": label, "bbox": box, "score": score} for score, (label, box, _) in found.items()]
    truth = {"image_id": 7, "height": 130, "width": 190, "objects": objects}
    kinds = {score: kind for score, (_, _, kind) in found.items() if kind is not None}
    return {"truth": truth, "found": things}, kinds


def the_image(path):
    """A set of one image, number 7."""
    return CocoSet([CocoImage(7, path, 190, 130)], NAMES, list(range(1, len(NAMES) + 1)), Problems())


def test_each_kind_is_known():
    record, kinds = one_of_each()
    errors = find_errors([record])
    assert {error.found["score"]: error.kind for error in errors if error.found is not None} == kinds
    (missed,) = [error for error in errors if error.found is None]
    assert missed.kind == "missed"
    assert missed.true["label"] == 2  # the others are explained by a wrong class and a poor box
    by_kind = {error.kind: error for error in errors}
    assert by_kind["wrong class"].true["label"] == 1
    assert by_kind["poor box"].iou == pytest.approx(1 / 3)
    assert by_kind["both"].iou == pytest.approx(100 / 700)
    assert by_kind["background"].true is None


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_hotcocos(seed):
    records = [without_crowds(record) for record in random_records(seed, 40)]
    truth = COCO(coco_page(records, NAMES))
    judge = COCOeval(truth, truth.load_res(coco_results(records, "box")), "bbox")
    judge.evaluate()
    counts = judge.tide_errors()["counts"]
    ours = Counter(error.kind for error in find_errors(records))
    names = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    assert {name: ours[kind] for kind, name in zip(KINDS, names, strict=True)} == counts
    assert min(counts.values()) > 3


def repaired(records, kind):
    """The records as they were without the errors of one kind: a wrong class or poor box becomes right where its
    object was not found, by its best such detection; other detections go; missed objects were never there."""
    errors = [error for error in find_errors(records) if error.kind == kind]
    changed = {}  # detection -> what it becomes, None: nothing
    gone = {id(error.true) for error in errors if kind == "missed"}
    given = set()
    for error in sorted((e for e in errors if e.found is not None), key=lambda e: -e.found["score"]):
        is_free = error.true is not None and id(error.true) not in given and not is_found(records, error.true)
        if kind in ("wrong class", "poor box") and is_free:
            given.add(id(error.true))
            fixed = {"label": error.true["label"], "bbox": error.true["bbox"]}
            changed[id(error.found)] = error.found | fixed
        else:
            changed[id(error.found)] = None
    return [
        {
            "truth": record["truth"]
            | {"objects": [thing for thing in record["truth"]["objects"] if id(thing) not in gone]},
            "found": [new for thing in record["found"] if (new := changed.get(id(thing), thing)) is not None],
        }
        for record in records
    ]


def is_found(records, true):
    """Whether a detection of its class finds an object, by the errors: it is neither missed nor explained."""
    errors = find_errors(records)
    if any(error.kind == "missed" and error.true is true for error in errors):
        return False
    explaining = [e for e in errors if e.kind in ("wrong class", "poor box") and e.true is true]
    if not explaining:
        return True
    # found if it is missed once the detections that explain it are gone
    wrong = {id(error.found) for error in explaining}
    left = [record | {"found": [t for t in record["found"] if id(t) not in wrong]} for record in records]
    return not any(error.kind == "missed" and error.true is true for error in find_errors(left))


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_the_ap_without_the_errors(kind):
    records = [without_crowds(record) for record in random_records(1, 12)]
    base = average_precision(records, NAMES, "box").summary["AP50"]
    better = average_precision(repaired(records, kind), NAMES, "box").summary["AP50"]
    assert costs(records, NAMES)[kind] == pytest.approx(better - base, abs=1e-9)


def test_files_of_an_evaluation(tmp_path):
    record, _ = one_of_each()
    Image.new("RGB", (190, 130), "gray").save(tmp_path / "seven.png")
    written = write_errors(
        tmp_path,
        [record],
        NAMES,
        the_image(tmp_path / "seven.png"),
    )
    assert [path.name for path in written] == ["errors.csv", "error_kinds.csv", "errors.png"]
    with (tmp_path / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == list(KINDS)
    assert rows[0]["image"] == "seven.png"
    assert (rows[0]["class"], rows[0]["true_class"], rows[0]["score"]) == ("ant", "bee", "0.8500")
    assert (rows[-1]["class"], rows[-1]["score"], rows[-1]["true_width"]) == ("", "", "20.0")
    with (tmp_path / "error_kinds.csv").open() as file:
        assert {row["kind"]: row["errors"] for row in csv.DictReader(file)} == dict.fromkeys(KINDS, "1")
    with Image.open(tmp_path / "errors.png") as picture:
        assert picture.width == 4 * 360


def test_nothing_found_is_all_missed(tmp_path):
    record, _ = one_of_each()
    errors = find_errors([record | {"found": []}])
    assert [error.kind for error in errors] == ["missed"] * 5
    assert costs([record | {"found": []}], NAMES) == {}


def test_without_hotcoco_the_errors_are_still_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    record, _ = one_of_each()
    Image.new("RGB", (190, 130)).save(tmp_path / "seven.png")
    with pytest.warns(UserWarning, match="needs hotcoco"):
        write_errors(
            tmp_path,
            [record],
            NAMES,
            the_image(tmp_path / "seven.png"),
        )
    with (tmp_path / "error_kinds.csv").open() as file:
        assert {row["AP50_lost"] for row in csv.DictReader(file)} == {""}
