"""Files that leave the size of images open: Mask R-CNN as one graph, classifiers, and the same files in OpenVINO."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_export import TINY, assert_openvino_agrees, photograph, save
from torchvision.models.detection.image_list import ImageList

from crossformerpp.data.masks import decode
from crossformerpp.export import export
from crossformerpp.export.mask_rcnn import MaskRCNNGraph
from crossformerpp.predict import load_predictor
from crossformerpp.runtime import open_predictor
from crossformerpp.runtime.files import open_onnx
from crossformerpp.runtime.instances import paste_exactly, paste_mask
from crossformerpp.tasks.detection import evaluation, mmdetection
from crossformerpp.tasks.detection.predictor import DetectionPredictor
from crossformerpp.tasks.saved import open_saved

SHORT = TINY | {"options": TINY["options"] | {"depths": [1, 1, 1, 1]}}  # type: ignore[operator]
MASK_RCNN = {"name": "mask_rcnn", "pyramid_channels": 16, "box_channels": 32, "mask_channels": 16}


@pytest.mark.parametrize("rules", ["torchvision", "mmdetection"])
@torch.no_grad()
def test_the_graph_is_the_detector(tmp_path: Path, rules: str) -> None:
    checkpoint = save("detection", tmp_path, detector=MASK_RCNN | {"rules": rules})
    saved = open_saved(checkpoint)
    recipe: Any = saved.recipe
    model: Any = DetectionPredictor(saved).model
    graph = MaskRCNNGraph(model)
    for sides, size in [((96, 160), (90, 150)), ((128, 96), (101, 96)), ((32, 64), (20, 64))]:
        images = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(0))
        maps, counts = model.backbone(images), set()
        for least in (0.05, 0.999, 1.0):
            model.roi_heads.score_thresh = least
            if rules == "mmdetection":
                section = recipe.detector.model_copy(update={"min_score": least})
                model.roi_heads.postprocess_detections = mmdetection.SecondStage(section)
            proposals, _ = model.rpn(ImageList(images, [size]), maps, None)
            (expected,), _ = model.roi_heads(maps, proposals, [size], None)
            found = graph(images, torch.tensor(size), torch.tensor(least))
            counts.add(len(found[0]))
            theirs = expected["boxes"], expected["labels"] - 1, expected["scores"], expected["masks"][:, 0]
            assert len(found[0]) == len(theirs[0])
            for ours, value in zip(in_order(found), in_order(theirs), strict=True):
                # the last of a hundred may be another one of the same score
                torch.testing.assert_close(ours[:99], value[:99])
        assert 0 in counts
        assert max(counts) > 40


def in_order(found: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Objects by score, and those of equal scores by box."""
    boxes, labels, scores, _ = (part.numpy() for part in found)
    order = np.lexsort((*boxes.round(2).T, labels, -scores.round(5)))
    return [part[torch.from_numpy(order)] for part in found]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(paste_mask, evaluation.paste_mask), (paste_exactly, mmdetection.paste_mask)]
)
def test_masks_are_pasted_as_in_torch(ours: Any, theirs: Any) -> None:
    generator = np.random.default_rng(0)
    for number in range(100):
        mask = generator.random((28, 28), dtype=np.float32)
        corners = np.sort(generator.random((2, 2)) * [80, 60] * 1.2 - 5, axis=0).clip(0, [80, 60])
        if number % 5 == 0:
            corners[1] = corners[0]  # without width
        box = corners.ravel().astype(np.float32)
        expected = theirs(torch.from_numpy(mask), torch.from_numpy(box), 60, 80)
        np.testing.assert_array_equal(ours(mask, box, 60, 80), expected)


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("open")
    checkpoint, file = save("detection", folder, model=SHORT, detector=MASK_RCNN), folder / "mask_rcnn.onnx"
    report = export(checkpoint, file)
    assert report.outputs == ("boxes", "labels", "scores", "masks")
    assert all(share < 1e-3 for _, share in report.differences.values())
    return checkpoint, file


def test_mask_rcnn_agrees(mask_rcnn: tuple[Path, Path]) -> None:
    checkpoint, file = mask_rcnn
    assert open_onnx(file).session.get_inputs()[0].shape == [1, 3, "height", "width"]
    counts = set()
    for size in [(131, 90), (90, 200), (96, 96), (300, 180)]:
        image = photograph(*size)
        for least in (0.02, 0.99, 1.0):
            ours: Any = open_predictor(file, min_score=least)(image)
            theirs: Any = load_predictor(checkpoint, "cpu", min_score=least)(image)
            assert len(ours.found) == len(theirs.found)
            counts.add(len(ours.found))
            same = [partner(thing, ours.found) for thing in theirs.found]
            # among a hundred boxes of random weights one may win against another of equal score
            assert sum(same) >= len(same) - max(0, len(same) // 25)
    assert {0, 100} < counts


def partner(thing: dict[str, Any], found: list[dict[str, Any]]) -> bool:
    """Whether one of the objects is the same: class, score, box and mask."""
    return any(
        other["label"] == thing["label"]
        and abs(other["score"] - thing["score"]) < 1e-4
        and np.abs(np.subtract(other["bbox"], thing["bbox"])).max() < 0.02
        and (decode(other["segmentation"]) != decode(thing["segmentation"])).mean() < 1e-3
        for other in found
    )


def test_mask_rcnn_predicts_several_images_without_torch(
    mask_rcnn: tuple[Path, Path], tmp_path: Path
) -> None:
    for number, size in enumerate([(131, 90), (90, 200)]):
        photograph(*size).save(tmp_path / f"{number}.png")
    code = (
        "import sys, crossformer_command\n"
        f"try: crossformer_command.main(['predict', {str(mask_rcnn[1])!r}, '0.png', '1.png', '--json'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "strange = {'torch', 'torchvision', 'timm'} & set(sys.modules)\n"
        "assert not strange, strange"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first["objects"][0]["segmentation"]["size"] == [90, 131]
    assert second["objects"][0]["segmentation"]["size"] == [200, 90]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("open")
    checkpoint, file = save("classification", folder, model=SHORT), folder / "classifier.onnx"
    export(checkpoint, file, dynamic_size=True, size=96)
    return checkpoint, file


@torch.no_grad()
def test_classifier_of_any_size_agrees(classifier: tuple[Path, Path]) -> None:
    checkpoint, file = classifier
    network = open_onnx(file)
    assert network.session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert network.about["short_sides"] == [65, 128]
    model: Any = load_predictor(checkpoint, "cpu")
    for shape in [(1, 3, 65, 200), (3, 3, 97, 111), (2, 3, 128, 128)]:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (logits,) = network(images.numpy())
        np.testing.assert_allclose(logits, model.model(images), atol=1e-5)
    with pytest.raises(ValueError, match="--size 64"):
        network(np.zeros((1, 3, 64, 64), np.float32))


def test_openvino_opens_the_same_files(classifier: tuple[Path, Path], mask_rcnn: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[dev]'")
    assert_openvino_agrees(classifier[1])
    assert_openvino_agrees(mask_rcnn[1], min_score=np.array(0.99, np.float32))
