"""Evaluation in training, `predict` and exported files show a network the same pixels, and get the same answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from crossformerpp import engine
from crossformerpp.data.images import read_image
from crossformerpp.export import export
from crossformerpp.export.certificate import certify
from crossformerpp.export.judges import ObjectJudge, PixelJudge
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.runtime import open_predictor
from crossformerpp.tasks.pyramid import Pyramid

SIZES = {"a.jpg": (131, 90), "b.png": (96, 141), "c.tif": (100, 100), "d.webp": (200, 99), "e.png": (101, 77)}
TURNED = 6  # the EXIF orientation of a.jpg: shown 90 × 131
COMMON: dict[str, Any] = {
    "model": {
        "name": "crossformer_small",  # whose groups span the map: padding it would change the answer
        "options": {
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "group_sizes": [4, 4, 4, 4],
        },
    },
    "optim": {"lr": 1e-3, "weight_decay": 0.0},
    "schedule": {"warmup_steps": 0},
    "trainer": {
        "steps": 1,
        "batch_size": 2,
        "eval_every": 1,
        "workers": 0,
        "threads": 1,
        "accelerator": "cpu",
    },
}
VIEW = {"short_side": [96], "long_side": 160}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, modes and formats, with boxes and with masks."""
    from skimage.data import astronaut

    root = tmp_path_factory.mktemp("data")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, (width, height) in SIZES.items():
        image = Image.fromarray(astronaut()[:300, :437]).resize((width, height))
        exif = Image.Exif()
        if name == "a.jpg":
            exif[0x0112] = TURNED
        image = {"b.png": image.convert("P"), "c.tif": image.convert("CMYK")}.get(name, image)
        for folder in ("images/train", "images/val"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / name, exif=exif)
        upright = read_image(root / folder / name)
        labels = np.zeros((upright.height, upright.width), np.uint8)
        labels[10:50, 20:60] = 1
        for folder in ("masks/train", "masks/val"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(root / folder / f"{Path(name).stem}.png")
        number = len(images) + 1
        images.append({"id": number, "file_name": name, "width": upright.width, "height": upright.height})
        corners = [20, 10, 60, 10, 60, 50, 20, 50]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 10, 40, 40], "area": 1600}
            | {"iscrowd": 0, "segmentation": [corners]}
        )
    page = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations.json").write_text(json.dumps(page))
    return root


@pytest.fixture(autouse=True)
def as_many_threads_as_in_training() -> Iterator[None]:
    """Answers are compared to the last bit, and rounding differs with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(COMMON["trainer"]["threads"])
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen() -> Iterator[list[Tensor]]:
    """What every backbone gets while it does not learn."""
    images: list[Tensor] = []

    def note(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Pyramid) and not module.training:
            images.append(inputs[0].clone())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield images
    hook.remove()


def detection(root: Path, name: str) -> Any:
    files = {f"{half}_annotations": "annotations.json" for half in ("train", "val")}
    files |= {f"{half}_images": f"images/{half}" for half in ("train", "val")}
    detector = {"name": name, "pyramid_channels": 16, "box_channels": 32, "min_score": 0.005}
    values = {"task": "detection", "data": {"root": root, **VIEW, **files}, "detector": detector}
    return parse_recipe({**COMMON, **values}, "test")


def segmentation(root: Path, **inference: Any) -> Any:
    values = {
        "task": "segmentation",
        "data": {"source": "folder", "root": root, "class_names": ["other", "thing"]},
        "head": {"name": "semantic_fpn", "channels": 16, "pyramid_channels": 16},
        "augment": {"crop": 64, "short_side": 64},
        "inference": {"short_side": 72, **inference},
    }
    return parse_recipe({**COMMON, **values}, "test")


def exported(run: Path, file: Path) -> tuple[Any, list[np.ndarray]]:
    """The exported network as a predictor, and the list that will hold what its graph gets."""
    export(run, file)
    predictor: Any = open_predictor(file, min_score=0.005)
    session, given = predictor.network.session, list[np.ndarray]()

    class Noting:
        def run(self, outputs: Any, inputs: dict[str, np.ndarray]) -> Any:
            given.append(inputs["images"])
            return session.run(outputs, inputs)

    predictor.network = replace(predictor.network, session=Noting())
    return predictor, given


def certified(run: Path, file: Path, metrics: dict[str, float], metric: str) -> dict[str, Any]:
    """The certificate of a run's file: worth what the run's own evaluation says, and hardly another answer."""
    certificate = certify(file, checkpoint=run)
    found = certificate.metrics()
    assert found[metric] == pytest.approx(metrics[metric], abs=2e-3)
    checkpoint_metrics = certificate.to_json()["checkpoint"]["metrics"]
    assert checkpoint_metrics[metric] == pytest.approx(metrics[metric], abs=1e-6)
    assert len(certificate.images) == len(SIZES)
    return found


def asked(
    root: Path, evaluated: list[Tensor], seen: list[Tensor], predictor: Callable[..., Any], file: Any = None
) -> list[list[Any]]:
    """The answers of a run's predictor, and of its exported file, once both got what the evaluations got."""
    in_training, of_the_checkpoint = evaluated[: len(SIZES)], evaluated[len(SIZES) :]
    images = [read_image(root / "images/val" / name) for name in SIZES]
    seen.clear()
    answers = [[predictor(image) for image in images]]
    assert len({x.shape for x in seen}) > 2
    for one, two, three in zip(in_training, of_the_checkpoint, seen, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    if file is not None:
        from_file, given = file
        answers.append([from_file(image) for image in images])
        for ours, theirs in zip(given, in_training, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)  # a 40th of a grey level
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_detectors(data: Path, tmp_path: Path, seen: list[Tensor], name: str) -> None:
    run = tmp_path / "run"
    metrics = engine.train(detection(data, name), run)
    evaluated = list(seen)
    file = exported(run, tmp_path / "model.onnx") if name == "retinanet" else None
    answers = asked(data, evaluated, seen, load_predictor(run, "cpu", min_score=0.005), file)
    written = json.loads((run / "detections.json").read_text())
    for number, ours in enumerate(answers[0], 1):
        expected = [entry for entry in written if entry["image_id"] == number]
        assert len(ours.found) == len(expected) > 5
        for mine, theirs in zip(ours.to_json()["objects"], expected, strict=True):
            assert (mine["bbox"], mine["score"]) == (theirs["bbox"], theirs["score"])
            assert mine.get("segmentation") == theirs.get("segmentation")
    for ours, theirs in zip(*answers, strict=True) if file is not None else ():
        scores = ([thing["score"] for thing in one.found[:5]] for one in (ours, theirs))
        np.testing.assert_allclose(*scores, atol=1e-5)  # boxes: see test_export, with scores further apart
    if file is not None:
        found = certified(run, tmp_path / "model.onnx", metrics, "box_AP")
        assert found["agreement"] > 0.9  # scores of an untrained detector lie close together
        assert found["drift_largest"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("inference", [{}, {"multiple_of": 32, "rules": "mmsegmentation"}])
def test_segmenters(data: Path, tmp_path: Path, seen: list[Tensor], inference: dict[str, Any]) -> None:
    run = tmp_path / "run"
    metrics = engine.train(segmentation(data, **inference), run)
    evaluated = list(seen)
    file = exported(run, tmp_path / "model.onnx")
    ours, theirs = asked(data, evaluated, seen, load_predictor(run, "cpu"), file)
    right = total = 0
    for name, one, other in zip(SIZES, ours, theirs, strict=True):
        labels = np.asarray(Image.open(data / "masks/val" / f"{Path(name).stem}.png"))
        right, total = right + int((one.labels == labels).sum()), total + labels.size
        assert (one.labels == other.labels).mean() > 0.9999
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)
    assert right == round(metrics["pixel_accuracy"] * total)
    found = certified(run, tmp_path / "model.onnx", metrics, "miou")
    assert found["agreement"] > 0.9999
    assert found["drift_largest"] < 1e-3


def test_a_certificate_compares_objects_that_both_models_found() -> None:
    def answer(*things: tuple[int, float, list[float]]) -> tuple[Any, int]:
        found = [{"label": label, "score": score, "bbox": bbox} for label, score, bbox in things]
        return SimpleNamespace(found=found), 100

    judge = object.__new__(ObjectJudge)
    ours = answer((0, 0.9, [10, 10, 20, 20]), (1, 0.5, [50, 50, 10, 10]))
    assert judge.compare(ours, ours) == (0.0, 1.0)
    assert judge.compare(answer(), answer()) == (0.0, 1.0)
    assert judge.compare(ours, answer()) == (0.0, 0.0)
    # the first moved by half a pixel of a hundred and lost 0.02; the second is of another class
    drift, share = judge.compare(ours, answer((0, 0.88, [10.5, 10, 20, 20]), (0, 0.5, [50, 50, 10, 10])))
    assert (drift, share) == (pytest.approx(0.02), 0.5)
    drift, _ = judge.compare(ours, answer((0, 0.9, [10.5, 10, 20, 20])))
    assert drift == pytest.approx(0.005)
    # one object of ours is no partner of two of theirs
    twice = answer((0, 0.9, [10, 10, 20, 20]), (0, 0.8, [10, 10, 20, 20]))
    assert judge.compare(answer((0, 0.9, [10, 10, 20, 20])), twice)[1] == pytest.approx(2 / 3)


def test_a_certificate_compares_pixels() -> None:
    ours, theirs = np.zeros((4, 5), np.int16), np.zeros((4, 5), np.int16)
    theirs[0, :2] = 1
    assert object.__new__(PixelJudge).compare(ours, theirs) == (pytest.approx(0.1), pytest.approx(0.9))
