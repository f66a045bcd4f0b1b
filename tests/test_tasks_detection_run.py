"""Detectors learn, and stay what they are when saved, opened and asked again: the whole path on digit_scenes."""

import json

import pytest
from PIL import Image

from crossformerpp import engine, predict
from crossformerpp.data.images import read_image
from crossformerpp.data.masks import decode
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.tasks import find_task

SIZE = 96


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=8, val=2, size=SIZE)


def recipe(root, detector, steps, **trainer):
    """A narrow detector that is judged on the very scenes it learns by heart."""
    files = {"annotations": "annotations/instances_train.json", "images": "images/train"}
    return parse_recipe(
        {
            "task": "detection",
            "model": {
                "name": "crossformerpp_small",
                "options": {
                    "embed_dim": 16,
                    "depths": [1, 1, 2, 1],
                    "num_heads": [1, 2, 2, 4],
                    "group_sizes": [6, 6, 6, 3],
                    "intervals": [4, 2, 1, 1],
                },
            },
            "data": {
                "root": root,
                "short_side": [SIZE],
                "long_side": SIZE,
                "flip": 0.0,
                **{f"{half}_{what}": path for half in ("train", "val") for what, path in files.items()},
            },
            "detector": {
                "name": detector,
                "pyramid_channels": 32,
                "group_norm": True,
                "anchor_sizes": [12, 24, 48, 96, 192],
                "box_channels": 128,
                "mask_channels": 32,
                "mask_layers": 2,
                "train_proposals": 100,
                "train_samples": 32,
            },
            "optim": {"lr": 2e-3, "weight_decay": 0.0},
            "schedule": {"warmup_steps": 20},
            "trainer": {
                "steps": steps,
                "batch_size": 4,
                "eval_every": steps,
                "workers": 0,
                "threads": 1,
                "accelerator": "cpu",
                **trainer,
            },
        },
        "test",
    )


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mask_rcnn"
    return folder, engine.train(recipe(scenes, "mask_rcnn", 200), folder)


@pytest.mark.slow
def test_mask_rcnn_learns_scenes_by_heart(run):
    folder, metrics = run
    assert metrics["box_AP50"] > 0.6, metrics
    assert metrics["mask_AP50"] > 0.5, metrics
    assert {"per_class.csv", "detections.json", "predictions.png", "metrics.json"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.slow
def test_retinanet_learns_scenes_by_heart(scenes, tmp_path):
    metrics = engine.train(recipe(scenes, "retinanet", 120), tmp_path / "run")
    assert metrics["box_AP50"] > 0.6, metrics
    assert not any(name.startswith("mask") for name in metrics)


@pytest.mark.slow
def test_a_saved_detector_finds_the_same(run, scenes):
    """What evaluation found with the weights in memory, `predict` finds with those of the checkpoint."""
    folder, _ = run
    results = json.loads((folder / "detections.json").read_text())
    page = json.loads((scenes / "annotations/instances_train.json").read_text())
    predictor = predict.load_predictor(folder, "cpu", min_score=0.05)
    for entry in page["images"][:3]:
        expected = [r for r in results if r["image_id"] == entry["id"]]
        found = predictor(read_image(scenes / "images/train" / entry["file_name"])).to_json()["objects"]
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["class"] == str(theirs["category_id"] - 1)
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.01)


@pytest.mark.slow
def test_predict_writes_pictures_and_json(run, scenes, tmp_path):
    folder, _ = run
    predictor = predict.load_predictor(folder, "cpu", min_score=0.5)
    images = sorted((scenes / "images/train").iterdir())[:2]
    panorama = tmp_path / "panorama.png"
    Image.new("RGB", (6000, 40), "gray").save(panorama)
    results = list(predict.predict(predictor, [*images, panorama], tmp_path / "out"))
    assert not any(result.error for result in results)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    thing = written[0]["objects"][0]
    assert set(thing) == {"class", "score", "bbox", "segmentation"}
    mask = decode(thing["segmentation"])
    left, top, width, height = thing["bbox"]
    rows, columns = mask.nonzero()
    assert mask.shape == (SIZE, SIZE)
    assert left - 3 <= columns.min() <= columns.max() <= left + width + 3
    assert top - 3 <= rows.min() <= rows.max() <= top + height + 3
    drawn = read_image(results[0].pictures[0])
    assert drawn.width >= 320


@pytest.mark.slow
def test_goes_on_from_a_detector_of_other_classes(run, scenes, tmp_path, capsys):
    """Fine-tuning: the body is taken, the layers that know the classes are fresh, and it says so."""
    folder, _ = run
    page = json.loads((scenes / "annotations/instances_train.json").read_text())
    page["categories"] = page["categories"][:3]
    page["annotations"] = [a for a in page["annotations"] if a["category_id"] <= 3]
    (tmp_path / "few.json").write_text(json.dumps(page))
    values = recipe(scenes, "mask_rcnn", 1).model_dump()
    values["model"]["checkpoint"] = folder
    values["schedule"]["warmup_steps"] = 0
    for half in ("train", "val"):
        values["data"][f"{half}_annotations"] = tmp_path / "few.json"
    metrics = engine.train(parse_recipe(values, "test"), tmp_path / "run")
    assert metrics["images"] == 8
    assert "roi_heads.box_predictor.cls_score.weight (11, 128) -> (4, 128)" in capsys.readouterr().err


def counted(root, **data):
    """The training split of eight scenes."""
    values = recipe(root, "retinanet", 1).model_dump()
    values["data"] |= data
    return find_task("detection").split(parse_recipe(values, "test"), "train")


@pytest.fixture
def odd_scenes(scenes, tmp_path):
    """The scenes with annotations in which the first has none, and a panorama."""
    page = json.loads((scenes / "annotations/instances_train.json").read_text())
    first = page["images"][0]["id"]
    page["annotations"] = [entry for entry in page["annotations"] if entry["image_id"] != first]
    Image.new("RGB", (4000, 20)).save(tmp_path / "panorama.png")
    for entry in page["images"]:
        (tmp_path / entry["file_name"]).write_bytes(
            (scenes / "images/train" / entry["file_name"]).read_bytes()
        )
    page["images"].append({"id": 99, "file_name": "panorama.png", "width": 4000, "height": 20})
    (tmp_path / "page.json").write_text(json.dumps(page))
    files = {"annotations": tmp_path / "page.json", "images": tmp_path}
    return {f"{half}_{what}": path for half in ("train", "val") for what, path in files.items()}, page


def test_images_without_objects_are_counted_and_those_left_out_are_named(scenes, odd_scenes):
    files, page = odd_scenes
    empty = sum(not any(a["image_id"] == i["id"] for a in page["annotations"]) for i in page["images"][:8])
    with pytest.warns(UserWarning, match=r"left out of training: 1 × too thin .* \(panorama.png\)"):
        split = counted(scenes, **files)
    assert split.counts == {"images": 8, "objects": len(page["annotations"]), "without objects": empty}
    with pytest.warns(UserWarning, match=r"too thin for data.jitter, .* 9.6 \(panorama.png\)"):
        counted(scenes, **files, jitter={"size": 96, "scale": [0.1, 2.0]})
    with pytest.warns(UserWarning, match=rf"{empty} × without objects .*00000.jpg"):
        split = counted(scenes, **files, empty_images=False)
    assert split.counts["without objects"] == 0
    assert len(split.dataset) == 8 - empty


def test_tiles_are_counted(scenes, odd_scenes):
    files, _ = odd_scenes
    with pytest.warns(UserWarning, match="left out of training"):
        split = counted(scenes, **files, tiles={"size": 48, "overlap": 0.0}, empty_images=False)
    assert split.counts["tiles without objects"] == 0
    assert split.counts["images"] <= 7
    assert split.counts["tiles"] == len(split.dataset) == len(split.names) == len(set(split.names))
