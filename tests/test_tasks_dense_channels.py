"""Detectors and segmenters of images with five channels of 16 bits: trained, judged, exported, as with photographs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossformerpp import cli, engine, predict
from crossformerpp.data.pixel_files import read_pixels
from crossformerpp.export.networks import open_network
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.runtime import predictor_of
from crossformerpp.runtime.about import read_about
from crossformerpp.runtime.files import ExportedNetwork
from crossformerpp.tasks.programs import ProgramSession
from crossformerpp.tasks.saved import open_saved

SIZE = 96
MODEL = {
    "name": "crossformerpp_small",
    "options": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "group_sizes": [6, 6, 6, 3],
        "intervals": [4, 2, 1, 1],
    },
}
PIXELS = {"channels": 5, "max_value": 65535, "mean": [0.3] * 5, "std": [0.2] * 5}
TRAINER = {"steps": 2, "batch_size": 2, "eval_every": 2, "workers": 0, "threads": 1, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares in the fifth channel alone, as TIFF with five pages, with boxes, polygons and masks."""
    root = tmp_path_factory.mktemp("scenes")
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for half, count in (("train", 4), ("val", 2)):
        for folder in ("images", "masks"):
            (root / folder / half).mkdir(parents=True)
        images, things = [], []
        for number in range(count):
            values = generator.integers(10000, 30000, (5, SIZE, SIZE), dtype=np.uint16)
            left, top = (int(value) for value in generator.integers(0, SIZE - 40, 2))
            values[4, top : top + 40, left : left + 40] = 60000
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[top : top + 40, left : left + 40] = 1
            tifffile.imwrite(root / f"images/{half}/{number}.tif", values, photometric="minisblack")
            Image.fromarray(mask).save(root / f"masks/{half}/{number}.png")
            images.append({"id": number, "file_name": f"{number}.tif", "width": SIZE, "height": SIZE})
            outline = [left, top, left + 40, top, left + 40, top + 40, left, top + 40]
            thing = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 1600}
            things.append(thing | {"bbox": [left, top, 40, 40], "segmentation": [outline]})
        page = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "square"}]}
        (root / f"annotations/instances_{half}.json").write_text(json.dumps(page))
    (root / "classes.txt").write_text("background\nsquare\n")
    return root


def detection(root: Path, **data: Any):
    return parse_recipe(
        {
            "task": "detection",
            "model": MODEL,
            "data": {"root": root, "short_side": [SIZE], "long_side": SIZE, **PIXELS, **data},
            "detector": {
                "name": "retinanet",
                "pyramid_channels": 32,
                "group_norm": True,
                "anchor_sizes": [12, 24, 48, 96, 192],
            },
            "schedule": {"warmup_steps": 0},
            "trainer": TRAINER,
        },
        "test",
    )


def segmentation(root: Path, steps: int = 2, **augment: Any):
    return parse_recipe(
        {
            "task": "segmentation",
            "model": MODEL,
            "data": {"source": "folder", "root": root, **PIXELS},
            "head": {"name": "semantic_fpn", "pyramid_channels": 16, "channels": 16},
            "augment": {
                "crop": SIZE,
                "short_side": None,
                "scale": [1.0, 1.0],
                "photometric": False,
                **augment,
            },
            "inference": {"short_side": None},
            "optim": {"lr": 3e-3},
            "schedule": {"warmup_steps": 0},
            "trainer": TRAINER | {"steps": steps, "eval_every": steps},
        },
        "test",
    )


def without_pytorch(run: Path, **options: Any) -> Any:
    """The runtime's predictor, which prepares images by itself, on the network that `export` would write."""
    network = open_network(open_saved(run), size=SIZE)
    about = json.dumps(network.about | {"short_sides": network.short_sides})
    exported = ExportedNetwork(ProgramSession(network.network), read_about(about, run))
    return predictor_of(exported, run, **options)


def test_a_detector_sees_five_channels_and_its_export_the_same(scenes: Path, tmp_path: Path) -> None:
    metrics = engine.train(detection(scenes), tmp_path / "run")
    assert metrics["images"] == 2
    assert (tmp_path / "run/predictions.png").is_file()
    ours = predict.load_predictor(tmp_path / "run", "cpu", min_score=0.0)
    theirs = without_pytorch(tmp_path / "run", min_score=0.0)
    image = read_pixels(scenes / "images/val/0.tif", "it", theirs.pixels)
    one, other = (predictor(image).found[0] for predictor in (ours, theirs))  # type: ignore[attr-defined]
    assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-2)


def test_tiles_and_jitter_serve_five_channels(scenes: Path, tmp_path: Path) -> None:
    views = {
        "tiles": {"size": 64, "overlap": 0.2},
        "jitter": {"size": 64, "scale": [0.5, 1.5]},
        "mosaic": 0.5,
    }
    metrics = engine.train(detection(scenes, short_side=[64], **views), tmp_path / "run")
    assert metrics["images"] == 2
    assert (tmp_path / "run/errors.csv").is_file()
    predictor = predict.load_predictor(tmp_path / "run", "cpu", min_score=0.0)
    (result,) = predict.predict(predictor, [scenes / "images/val/0.tif"], tmp_path / "out")
    assert result.error is None
    assert result.prediction.found  # type: ignore[union-attr]


def test_a_segmenter_learns_the_fifth_channel_and_its_export_the_same(scenes: Path, tmp_path: Path) -> None:
    metrics = engine.train(segmentation(scenes, steps=30), tmp_path / "run")
    assert metrics["miou"] > 0.8, metrics  # nothing but the fifth channel shows the square
    assert (tmp_path / "run/overlays.png").is_file()
    ours = predict.load_predictor(tmp_path / "run", "cpu")
    results = list(predict.predict(ours, [scenes / "images/val/0.tif"], tmp_path / "out"))
    assert results[0].error is None
    theirs = without_pytorch(tmp_path / "run")
    image = read_pixels(scenes / "images/val/0.tif", "it", theirs.pixels)
    assert (ours(image).labels == theirs(image).labels).mean() > 0.999  # type: ignore[attr-defined]


def test_augmentations_of_photographs_are_refused_by_name(scenes: Path) -> None:
    with pytest.raises(
        ValueError, match=r"augment.photometric=True needs 8-bit RGB.*augment.photometric=false"
    ):
        segmentation(scenes, photometric=True)
    with pytest.raises(
        ValueError, match=r"data.color_jitter=0.2 needs 8-bit RGB.*--set data.color_jitter=0.0"
    ):
        detection(scenes, color_jitter=0.2)


def test_data_check_measures_the_channels_of_objects_and_masks(
    scenes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["data", "check", str(scenes), "--json"])
    objects, _, masks, _ = json.loads(capfd.readouterr().out)
    pixels = (
        np.stack([tifffile.imread(path) for path in sorted((scenes / "images/train").glob("*.tif"))]) / 65535
    )
    assert not objects["problems"]
    assert objects["data"] == masks["data"]
    assert (objects["data"]["channels"], objects["data"]["max_value"]) == (5, 65535)
    np.testing.assert_allclose(objects["data"]["mean"], pixels.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(objects["data"]["std"], pixels.std(axis=(0, 2, 3)), rtol=1e-4)
