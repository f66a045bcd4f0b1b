"""Average precision is COCO's, whatever the number of processes."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from crossformerpp.data.coco import open_coco
from crossformerpp.data.detection import EvalImages, collate
from crossformerpp.data.images import read_image
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.data.split import Split
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.tasks.detection.evaluation import (
    DetectionEvaluation,
    average_precision,
    coco_page,
    coco_results,
    describe,
)
from crossformerpp.tasks.detection.module import DetectionModule

NAMES = ["ant", "bee", "cow", "never seen"]


def random_records(seed=0, num_images=30):
    """Images with objects of all sizes, crowds among them, and detections near them or astray."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(num_images):
        height, width = (int(side) for side in rng.integers(120, 300, size=2))
        objects, found = [], []
        for _ in range(int(rng.integers(0, 7))):
            box = random_box(rng, height, width)
            rle = encode(ellipse(box, height, width))
            label = int(rng.integers(3))
            objects.append(
                {
                    "label": label,
                    "bbox": box,
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle,
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                near = [value + float(rng.normal(0, 4)) for value in box]
                near[2:] = [max(2.0, side) for side in near[2:]]
                guess = label if rng.random() < 0.8 else int(rng.integers(3))
                found.append(detection(rng, guess, near, height, width))
        for _ in range(int(rng.integers(0, 4))):
            found.append(detection(rng, int(rng.integers(3)), random_box(rng, height, width), height, width))
        truth = {"image_id": 1000 - number, "height": height, "width": width, "objects": objects}
        records.append({"truth": truth, "found": found})
    return records


def random_box(rng, height, width):
    side = float(np.exp(rng.uniform(np.log(8), np.log(110))))
    return [
        float(rng.uniform(0, width - 8)),
        float(rng.uniform(0, height - 8)),
        side,
        side * rng.uniform(0.6, 1.6),
    ]


def detection(rng, label, box, height, width):
    rle = encode(ellipse(box, height, width))
    return {"label": label, "bbox": box, "score": float(rng.random()), "segmentation": rle}


def ellipse(box, height, width):
    y, x = np.mgrid[:height, :width] + 0.5
    left, top, w, h = box
    return ((x - left - w / 2) / (w / 2)) ** 2 + ((y - top - h / 2) / (h / 2)) ** 2 <= 1


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_equals_pycocotools(kind):
    records = random_records()
    ours = average_precision(records, NAMES, kind)
    truth = COCO()
    truth.dataset = json.loads(json.dumps(coco_page(records, NAMES)))
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(coco_results(records, kind)), {"box": "bbox", "mask": "segm"}[kind])
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    assert 0.1 < ours.summary["AP"] < 0.9
    for name, theirs in zip(names, judge.stats, strict=False):
        assert ours.summary[name] == pytest.approx(theirs, abs=1e-6), name
    for label in range(3):
        of_class = judge.eval["precision"][:, :, label, 0, -1]
        assert ours.per_class[label][0] == pytest.approx(of_class[of_class > -1].mean(), abs=1e-6)
    assert np.isnan(ours.per_class[3]).all(), "a class without objects has no precision"


def test_finding_nothing_is_a_precision_of_zero():
    records = [{**record, "found": []} for record in random_records(num_images=4)]
    assert average_precision(records, NAMES, "box").summary["AP"] == 0


def test_each_image_counts_once():
    records = random_records()
    once = DetectionEvaluation.of(records, NAMES, ("box", "mask"))
    twice = DetectionEvaluation.of(records + records[:7], NAMES, ("box", "mask"))
    assert once.metrics == twice.metrics
    assert once.metrics["images"] == 30


def module():
    recipe = DetectionRecipe.model_validate(
        {
            "task": "detection",
            "model": {"name": "resnet18"},
            "data": {},
            "detector": {"name": "mask_rcnn"},
            "trainer": {"epochs": 1},
        }
    )
    return DetectionModule(nn.Identity(), recipe, NAMES)


def _judge(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    own = module()
    own.records = random_records()[rank::world] + random_records()[:1]  # one image is seen by everybody
    evaluation = own.evaluation()
    assert bool(evaluation.records) == (rank == 0)
    (folder / f"{rank}.json").write_text(json.dumps(evaluation.metrics))
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    # forked: a fresh interpreter would spend most of the time on imports
    mp.start_processes(_judge, args=(2, tmp_path), nprocs=2, start_method="fork")
    alone = module()
    alone.records = random_records()
    expected = alone.evaluation().metrics
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, abs=1e-12)


def test_a_perfect_detector_is_perfect_through_the_whole_path(tmp_path):
    """Truth → data set → detector's output → pasted masks → AP, and the files of an evaluation."""
    root = write_digit_scenes(tmp_path / "scenes", train=1, val=6, size=128)
    coco = open_coco(root / "annotations/instances_val.json", root / "images/val", with_masks=True)
    dataset = EvalImages(coco, with_masks=True)
    records = []
    for index in range(len(dataset)):
        _, truth = dataset[index]
        boxes = torch.tensor([thing.box for thing in coco.images[index].objects]).view(-1, 4)
        masks = [coco_mask.decode(thing["segmentation"]) for thing in truth["objects"]]
        crops = [
            torch.nn.functional.interpolate(
                torch.from_numpy(mask)[None, None, int(t) : int(b), int(le) : int(r)].float(),
                (28, 28),
                mode="area",
            )[0, 0]
            for mask, (le, t, r, b) in zip(masks, boxes.tolist(), strict=True)
        ]
        found = {
            "boxes": boxes,
            "labels": torch.tensor([thing["label"] for thing in truth["objects"]], dtype=torch.int64),
            "scores": torch.ones(len(boxes)),
            "masks": torch.stack(crops) if crops else torch.zeros(0, 28, 28),
        }
        records.append({"truth": truth, "found": describe(found, truth["height"], truth["width"])})
    evaluation = DetectionEvaluation.of(records, coco.class_names, ("box", "mask"))
    assert evaluation.metrics["box_AP"] == pytest.approx(1)
    assert evaluation.metrics["mask_AP50"] == pytest.approx(1)
    assert evaluation.metrics["mask_AP"] > 0.7  # 28 × 28 is coarse
    written = evaluation.write(tmp_path, Split(dataset, coco.class_names, collate))
    assert all(path.stat().st_size for path in written)
    assert read_image(tmp_path / "predictions.png").size == (4 * 360, 3 * 360)  # six pairs
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["category_id"] for result in results} <= set(range(1, 11))
    assert {"image_id", "bbox", "score", "segmentation"} <= results[0].keys()
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    assert [row["class"] for row in rows] == coco.class_names


def test_the_score_of_some_images_is_the_ap_of_these():
    records = random_records()
    found = DetectionEvaluation.of(records, NAMES, ["box", "mask"])
    assert found.num_images == 30
    assert found.score(range(30)) == found.metrics["box_AP"]
    twice = [
        dict(records[n], truth=dict(records[n]["truth"], image_id=k)) for k, n in enumerate([4, 9, 9, 2])
    ]
    assert (
        found.score(np.array([4, 9, 9, 2])) == DetectionEvaluation.of(twice, NAMES, ["box"]).metrics["box_AP"]
    )
    empty = [n for n, record in enumerate(records) if not record["truth"]["objects"]]
    assert np.isnan(found.score(empty))
