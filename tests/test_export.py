"""Exported files: open in batch, height and width, and predicting as PyTorch does, without PyTorch."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from crossformerpp.cli import main
from crossformerpp.export import export
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.runtime import open_predictor
from crossformerpp.runtime.detector import suppress
from crossformerpp.runtime.files import KEY, open_session
from crossformerpp.runtime.files import open_onnx as open_network
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.pyramid import Pyramid
from crossformerpp.tasks.saved import KEY as SAVED
from crossformerpp.tasks.saved import open_saved, pack

NAMES = ["one", "two", "three"]
TINY = {
    "name": "crossformerpp_small",
    "options": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 2, 2],
        "group_sizes": [4, 4, 4, 4],
    },
}
PAGES: dict[str, dict[str, Any]] = {
    "classification": {"data": {"source": "folder", "size": 64, "eval_resize": 75}},
    "segmentation": {
        "data": {"source": "folder"},
        "head": {"name": "semantic_fpn", "channels": 16, "pyramid_channels": 16},
        "inference": {"short_side": 72},
    },
    "detection": {
        "data": {"source": "folder", "short_side": [96], "long_side": 160},
        "detector": {"name": "retinanet", "pyramid_channels": 16},
    },
}


def photograph(width: int = 131, height: int = 90) -> Image.Image:
    from skimage.data import astronaut

    return Image.fromarray(astronaut()[100:400, 60:497]).resize((width, height))


def save(task: str, folder: Path, names: list[str] = NAMES, **page: Any) -> Path:
    """A checkpoint as the engine writes it, of a network whose answers differ from pixel to pixel."""
    values = {"task": task, "model": TINY, "trainer": {"steps": 1}, **PAGES[task], **page}
    recipe = parse_recipe(values, "tiny")
    torch.manual_seed(0)
    model = find_task(task).module(recipe, names).model
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "stages." not in name:
            torch.nn.init.kaiming_normal_(parameter)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    path = folder / f"{task}.ckpt"
    torch.save({SAVED: pack(dump_recipe(recipe), names, 1), "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> tuple[Path, Path]:
    checkpoint, file = save("classification", folder), folder / "classification.onnx"
    report = export(checkpoint, file)
    assert len(report.differences) == 3
    assert all(0 < share < 1e-5 for _, share in report.differences.values())
    return checkpoint, file


def test_file_tells_what_it_needs(classifier: tuple[Path, Path]) -> None:
    network = open_network(classifier[1])
    (images,) = network.session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 64, 64])
    assert network.session.get_outputs()[0].shape == ["batch", 3]
    assert network.about["class_names"] == NAMES
    view = network.about["view"]
    assert {"short_side": 75, "crop": [64, 64], "interpolation": "bicubic"}.items() <= view.items()


@pytest.mark.parametrize("size", [(131, 90), (90, 131), (64, 75), (33, 200)])
def test_classifier_prepares_images_as_in_training_and_agrees(
    classifier: tuple[Path, Path], size: tuple[int, int]
) -> None:
    checkpoint, file = classifier
    image = photograph(*size)
    ours: Any = open_predictor(file)
    expected = eval_transform(open_saved(checkpoint).recipe.data)(image)
    np.testing.assert_allclose(ours.prepare(image)[0], expected.numpy(), atol=1e-6)
    theirs: Any = load_predictor(checkpoint, "cpu")(image)
    assert [name for name, _ in ours(image).top] == [name for name, _ in theirs.top]
    np.testing.assert_allclose([v for _, v in ours(image).top], [v for _, v in theirs.top], atol=1e-5)


def test_command_predicts_without_torch(classifier: tuple[Path, Path], tmp_path: Path) -> None:
    photograph().save(tmp_path / "photograph.png")
    code = (
        "import sys, crossformer_command\n"
        f"try: crossformer_command.main(['predict', {str(classifier[1])!r}, 'photograph.png', '--json'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "strange = {'torch', 'torchvision', 'timm'} & set(sys.modules)\n"
        "assert not strange, strange"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    expected: Any = load_predictor(classifier[0], "cpu")(photograph())
    assert [entry["class"] for entry in result["top"]] == [name for name, _ in expected.top]
    assert (tmp_path / "predictions" / "photograph.png").is_file()


def test_segmenter_agrees(folder: Path) -> None:
    checkpoint, file = save("segmentation", folder), folder / "segmentation.onnx"
    export(checkpoint, file)
    image = photograph()
    ours: Any = open_predictor(file)(image)
    theirs: Any = load_predictor(checkpoint, "cpu")(image)
    assert len(np.unique(theirs.labels)) > 1
    assert (ours.labels == theirs.labels).mean() > 0.995  # 8-bit resizing rounds differently here and there
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=5e-3)
    assert ours.colors == theirs.colors


@pytest.mark.parametrize("rules", ["torchvision", "mmdetection"])
def test_retinanet_agrees(folder: Path, rules: str) -> None:
    detector = PAGES["detection"]["detector"] | {"rules": rules}
    checkpoint, file = save("detection", folder, detector=detector), folder / f"{rules}.onnx"
    report = export(checkpoint, file)
    assert report.outputs == ("logits", "boxes")
    assert report.short_sides == (65, 128)  # of 4·16 and 4·32: there the last stage's map is one group
    assert open_network(file).session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    with pytest.raises(ValueError, match="--size 160"):
        open_network(file)(np.zeros((1, 3, 160, 160), np.float32))
    tiled = {"tiles": 96, "overlap": 0.3}
    options: dict[str, Any]
    for size, options in [((131, 90), {}), ((90, 200), {}), ((131, 90), tiled)]:
        image = photograph(*size)
        ours: Any = load_predictor(file, min_score=0.02, **options)(image)
        theirs: Any = load_predictor(checkpoint, "cpu", min_score=0.02, **options)(image)
        assert len(theirs.found) > 5
        # merging asks whether IoUs reach a bound: rounding may decide on one of a hundred weak boxes
        assert abs(len(ours.found) - len(theirs.found)) <= (2 if options else 0)
        best = 20 if options else None
        for a, b in zip(ours.found[:best], theirs.found[:best], strict=True):
            assert a["label"] == b["label"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)
            assert a["bbox"] == pytest.approx(b["bbox"], abs=0.02)

    assert_openvino_agrees(file)


def assert_openvino_agrees(file: Path, **others: np.ndarray) -> None:
    """OpenVINO, where it is installed, answers as ONNX Runtime at three sizes."""
    if importlib.util.find_spec("openvino") is None:
        return
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the machine has it
    compiled = openvino.Core().compile_model(file, "CPU", exact)
    for sides in [(96, 128), (128, 96), (96, 160)]:
        images = np.random.default_rng(0).standard_normal((1, 3, *sides)).astype(np.float32)
        inputs = {"images": images, **({"size": np.array(sides) - 3} if others else {}), **others}
        expected = open_session(file).run(None, inputs)
        found = list(compiled(inputs).values())
        assert [x.shape for x in found] == [x.shape for x in expected]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * max(1e-6, np.abs(theirs).max(initial=0)))


def test_suppression_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 1 + torch.rand(300, 2, generator=generator) * 40], dim=1)
    scores, labels = torch.rand(300, generator=generator), torch.randint(3, (300,), generator=generator)
    expected = batched_nms(boxes, scores, labels, 0.5)
    assert 10 < len(expected) < 290
    assert suppress(boxes.numpy(), scores.numpy(), labels.numpy(), 0.5).tolist() == expected.tolist()


@torch.no_grad()
def test_features_as_a_torch_program(folder: Path) -> None:
    checkpoint, file = save("classification", folder), folder / "features.pt2"
    report = export(checkpoint, file, "torch-export", features=True)
    assert (report.task, report.outputs) == ("features", ("c2", "c3", "c4", "c5"))
    extra = {KEY: ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra[KEY])["channels"] == [16, 32, 64, 128]
    saved = open_saved(checkpoint)
    pyramid = Pyramid(saved.recipe.model).eval()
    pyramid.load_weights(saved.weights, checkpoint)
    images = torch.randn(1, 3, 600, 420)
    for ours, theirs in zip(program(images), pyramid(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_or_read_is_said(
    classifier: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, file = classifier
    before = file.read_bytes()
    masks = save("detection", tmp_path, detector={"name": "mask_rcnn", "pyramid_channels": 16})
    form = ["--format", "torch-export"]
    (tmp_path / "broken.onnx").write_text("<html>")
    for arguments, message in [
        (["export", checkpoint, "--out", file], "exists and is kept"),
        (["export", checkpoint, "--out", tmp_path / "no" / "a.onnx"], "there is no folder"),
        (["export", masks, "--out", tmp_path / "a.pt2", *form], "Mask R-CNN is exported to ONNX"),
        (["export", checkpoint, "--out", tmp_path / "a.onnx", "--size", "96"], "--dynamic-size"),
        (["predict", tmp_path / "broken.onnx", "x.png"], "not a readable ONNX file"),
        (["predict", file, "x.png", "--set", "data.size=32"], "export it again"),
    ]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*unfinished*"))


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"task": "x"}, "task"),
    ({"class_names": []}, "class_names"),
    ({"class_names": ["only"]}, "names 1 classes and knows 3"),
    ({"mean": None}, "mean"),
    ({"std": [0, 1, 1]}, "std"),
    ({"view": {}}, "does not say how to crop"),
    ({"view": {"short_side": 10**9, "crop": [64, 64]}}, "view.short_side"),
    ({"short_sides": "all"}, "short_sides"),
    (
        {"task": "detection"},
        "or not of `crossformer export`: what it says of itself cannot be used (detection.nms_iou",
    ),
    ({"task": "segmentation", "colors": [[0, 0, 0]]}, "1 colours for 3 classes"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_file_that_says_nonsense_of_itself_is_refused(
    classifier: tuple[Path, Path], tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"a\.onnx: damaged, .*" + re.escape(message)):
        open_predictor(
            with_about(classifier[1], tmp_path / "a.onnx", lambda about: json.dumps(about | damage))
        )


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", "null", "[" * 5000])
def test_a_file_that_says_nothing_of_itself_is_refused(
    classifier: tuple[Path, Path], tmp_path: Path, text: str
) -> None:
    with pytest.raises(ValueError, match=r"a\.onnx: damaged, or not of `crossformer export`"):
        open_predictor(with_about(classifier[1], tmp_path / "a.onnx", lambda about: text))


def with_about(source: Path, path: Path, change: Callable[[dict[str, Any]], str]) -> Path:
    """A copy of an exported file with other metadata."""
    model = onnx.load(source)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = change(json.loads(entry.value))
    onnx.save(model, path)
    return path


def test_an_output_that_is_no_number_is_said(classifier: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(classifier[1])
    weight = next(tensor for tensor in model.graph.initializer if "head" in tensor.name)
    values = np.full(list(weight.dims), np.nan, np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"output is not a number \(NaN\)"):
        open_predictor(tmp_path / "a.onnx")(photograph())
