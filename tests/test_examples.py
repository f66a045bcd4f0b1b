"""Every example runs, offline, on small inputs, and does what its first line says."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossformerpp import engine
from crossformerpp.data.images import read_image
from crossformerpp.predict import load_predictor
from tiny import tiny_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}

pytestmark = pytest.mark.filterwarnings("ignore")


def main_of(name: str) -> Callable[..., Any]:
    torch.manual_seed(0)
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_torchvision_detection() -> None:
    losses = main_of("torchvision_detection")(size=96, **TINY)
    assert losses["RetinaNet"].keys() == {"classification", "bbox_regression"}
    assert "loss_mask" in losses["Mask R-CNN"]
    assert all(value == value for found in losses.values() for value in found.values())


def test_smp_segmentation() -> None:
    shapes = main_of("smp_segmentation")(size=64)
    assert shapes == dict.fromkeys(("Unet", "FPN", "UPerNet", "Segformer"), (2, 4, 64, 64))


def test_transformers_dense() -> None:
    shapes = main_of("transformers_dense")(size=64)
    assert shapes == {"UperNet": (2, 5, 64, 96), "DETR": (2, 10, 4)}


def test_transformers_classification() -> None:
    first, second = main_of("transformers_classification")(size=64, **TINY)
    assert first.shape == (1, 3)
    assert torch.equal(first, second)


def test_gradcam(tmp_path: Path) -> None:
    heat = main_of("gradcam")(out=str(tmp_path / "heat.png"), **TINY)
    assert heat.shape == (224, 224)
    assert heat.max() > 0
    assert (tmp_path / "heat.png").is_file()


def test_knn() -> None:
    """Even features that have learnt nothing tell digits apart far better than chance."""
    options = {**TINY, "pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}
    assert main_of("knn")(images=400, **options) > 0.3


@pytest.mark.slow
def test_photographs_classification(tmp_path: Path) -> None:
    """Of 40 pictures that the network has not seen; docs/photographs.md has the figures of all three."""
    assert main_of("photographs_classification")(str(tmp_path)) > 0.9
    assert (tmp_path / "doctor" / "index.html").is_file()


@pytest.mark.slow
def test_photographs_detection(tmp_path: Path) -> None:
    assert main_of("photographs_detection")(str(tmp_path)) > 0.5


@pytest.mark.slow
def test_photographs_segmentation(tmp_path: Path) -> None:
    assert main_of("photographs_segmentation")(str(tmp_path)) > 0.6


def test_labels_of_the_photographs_are_plausible() -> None:
    """Thresholds find the 24 coins that one counts, in four rows of six, and stains by their colours."""
    module = runpy.run_path(str(EXAMPLES / "photographs_detection.py"))
    numbers = module["coins_of"](module["coins"]())
    assert numbers.max() == 24
    assert len(set(numbers[module["MIDDLE"]].tolist()) - {0}) == 0  # no coin is in both halves
    module = runpy.run_path(str(EXAMPLES / "photographs_segmentation.py"))
    image = module["immunohistochemistry"]()
    labels = module["label"](image)
    red, blue = (np.array([image[labels == k][:, c].mean() for k in range(3)]) for c in (0, 2))
    assert red[1] - blue[1] > red[2] - blue[2] + 30  # brown and blue
    assert min(red[0], blue[0]) > 190  # pale


@pytest.mark.slow
def test_ray_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a local Ray: the answers of one process, in the images' order."""
    ray = pytest.importorskip("ray")
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")):
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    engine.train(tiny_recipe("trainer.steps=2"), run)
    images = [run / "samples" / f"{digit}.png" for digit in range(10)]
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        assert main_of("ray_predict")(str(run), str(run / "samples"), str(tmp_path / "out"), workers=1) == 10
    finally:
        ray.shutdown()
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(map(str, images))
    alone = load_predictor(run, "cpu")([read_image(image) for image in images])
    for line, prediction in zip(lines, alone, strict=True):
        top = prediction.to_json()["top"]
        assert [entry["class"] for entry in line["top"]] == [entry["class"] for entry in top]
        assert line["top"][0]["probability"] == pytest.approx(top[0]["probability"], abs=1e-6)


def test_the_page_shows_what_the_examples_do() -> None:
    """Each line of code under the name of an example is one of the example's."""
    docs = EXAMPLES.parent / "docs"
    page = (docs / "frameworks.md").read_text(encoding="utf-8")
    shown = set()
    for section in page.split("`examples/")[2:]:
        name = section.partition("`")[0]
        lines = {line.strip() for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()}
        code = section.partition("```python\n")[2].partition("```")[0]
        assert code, name
        assert {line.strip() for line in code.splitlines()} <= lines, name
        shown.add(name)
    photographs = {path.name for path in EXAMPLES.glob("photographs_*.py")}
    assert shown == {path.name for path in EXAMPLES.glob("*.py")} - photographs
    told = (docs / "photographs.md").read_text(encoding="utf-8")
    assert all(f"`examples/{name}`" in told for name in photographs)


def test_every_example_is_tested() -> None:
    assert {f"test_{path.stem}" for path in EXAMPLES.glob("*.py")} <= set(globals())
