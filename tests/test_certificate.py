"""Exported files judged on data beside their checkpoint, and int8 with what it costs."""

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from tests.test_export import save
from tests.tiny import tiny_recipe

from crossformerpp import engine
from crossformerpp.cli import main
from crossformerpp.export import certificate, export
from crossformerpp.export.certificate import CERTIFICATE_KEY, certify
from crossformerpp.export.int8 import export_int8
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.runtime import open_predictor
from crossformerpp.runtime.files import open_onnx
from crossformerpp.tasks.classification import open_images
from crossformerpp.tasks.programs import open_program


def ended(arguments: list[Any]) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that has learnt something, with a promise."""
    folder = tmp_path_factory.mktemp("certified") / "run"
    engine.train(
        tiny_recipe("trainer.steps=60", "trainer.eval_every=60", "augment.mixup=0", "ema=null"), folder
    )
    engine.evaluate(folder, conformal=0.9)
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    path = run.parent / "model.onnx"
    export(run, path)
    return path


@pytest.fixture(scope="module")
def data(run: Path) -> Path:
    """Six of the validation images of each class."""
    recipe = tiny_recipe()
    assert isinstance(recipe, ClassificationRecipe)
    source, folder = open_images(recipe, "val", None), run.parent / "data"
    for name in source.class_names:
        (folder / name).mkdir(parents=True)
    for number in range(60):
        source.open(number).save(folder / source.class_names[source.labels[number]] / f"{number}.png")
    return folder


def test_certificate_of_an_onnx_file(
    run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(file, tmp_path / "model.onnx")
    file = tmp_path / "model.onnx"
    arguments = ["eval", file, "--checkpoint", run, "--out", tmp_path / "eval", "--json"]
    assert ended(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["top1"] == json.loads((run / "metrics.json").read_text())["top1"] > 0.3
    assert metrics["agreement"] == 1
    assert 0 < metrics["drift_mean"] < metrics["drift_largest"] < 1e-4
    assert metrics["conformal_coverage"] == pytest.approx(0.9, abs=0.06)
    page = json.loads((tmp_path / "model.onnx.certificate.json").read_text())
    assert page["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(page["images"]) == 450
    session = onnxruntime.InferenceSession(file)
    inside = json.loads(session.get_modelmeta().custom_metadata_map[CERTIFICATE_KEY])
    assert inside["metrics"]["top1"] == metrics["top1"] == inside["checkpoint"]["metrics"]["top1"]
    assert inside["checkpoint"]["name"] == "best.ckpt"
    onnx.checker.check_model(onnx.load(file))
    # the drift of an image by hand
    images = sorted((run / "samples").glob("*.png"))
    image = Image.open(images[3]).convert("RGB")
    ours, theirs = (p.probabilities([p.prepare(image)])[0] for p in _predictors(file, run))
    assert np.abs(ours - theirs).max() <= metrics["drift_largest"]
    assert (tmp_path / "eval" / "predictions.csv").is_file()


def _predictors(file: Path, run: Path) -> tuple[Any, Any]:
    return open_predictor(file), load_predictor(run, "cpu")


def test_export_predicts_with_the_promise(run: Path, file: Path, tmp_path: Path) -> None:
    image = next((run / "samples").glob("*.png"))
    for which, name in ((file, "a"), (run, "b")):
        assert ended(["predict", which, image, "--out", tmp_path / name, "--device", "cpu"]) == 0
    (ours,), (theirs,) = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("a", "b")
    )
    assert ours["answer"] == theirs["answer"]
    assert ours["coverage"] == theirs["coverage"] == 0.9


def test_certificate_of_a_program(run: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    export(run, file, "torch-export")
    for _ in range(2):  # a second one takes the place of the first
        found = certify(file, root=data, checkpoint=run, conformal=0.8)
        found.write()
        network = open_program(file)
        assert network.about["conformal"]["coverage"] == 0.8
        assert found.metrics()["agreement"] == 1
    extra = {CERTIFICATE_KEY: ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra[CERTIFICATE_KEY])["metrics"]["top1"] == found.metrics()["top1"]
    (tmp_path / "half.pt2").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.pt2: not a readable \.pt2 file"):
        certify(tmp_path / "half.pt2")


@pytest.mark.slow
def test_certificate_of_a_package(data: Path, tmp_path: Path) -> None:
    options = {
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "group_sizes": [4, 4, 2, 1],
    }
    names = sorted(folder.name for folder in data.iterdir())
    model = {"name": "crossformerpp_small", "options": options}
    checkpoint = save("classification", tmp_path, names, model=model, data={"source": "folder", "size": 32})
    file = tmp_path / "model.aoti.pt2"
    export(checkpoint, file, "aoti")
    certify(file, root=data, checkpoint=checkpoint, conformal=0.8).write()
    assert open_program(file).about["conformal"]["coverage"] == 0.8
    found = certify(file, root=data, checkpoint=checkpoint)
    assert found.metrics()["agreement"] == 1
    assert found.metrics()["drift_largest"] < 1e-4


def test_int8_costs_little_and_says_so(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "int8.onnx"
    arguments = [
        "export",
        run,
        "--out",
        destination,
        "--int8",
        "--calibrate",
        run / "samples",
        "--data",
        data,
    ]
    assert ended([*arguments, "--max-drop", "0.05", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)["certificate"]
    assert page["precision"] == "int8"
    assert abs(page["checkpoint_top1"] - page["metrics"]["top1"]) < 0.05
    assert page["drift_largest"] > 1e-3
    model = onnx.load(destination)
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    int8 = sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)
    assert int8 > 10
    about = open_onnx(destination).about
    assert about["precision"] == "int8"
    assert about["conformal"]["threshold"] != json.loads((run / "conformal.json").read_text())["threshold"]
    before = destination.read_bytes()
    black = tmp_path / "black"
    black.mkdir()
    Image.new("RGB", (32, 32)).save(black / "a.png")
    with pytest.raises(ValueError, match=r"int8 loses 0\.\d+ of top1 .* more than --max-drop 0\.01"):
        export_int8(run, destination, black, root=data, overwrite=True)
    assert destination.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "black",
        "int8.onnx",
        "int8.onnx.certificate.json",
    ]


def test_a_full_disk_leaves_the_file_as_it_was(
    run: Path, file: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    found = certify(file, root=data, checkpoint=run)

    def full(source: Path, destination: Path, entries: dict[str, str]) -> None:
        destination.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(destination))

    monkeypatch.setattr(certificate, "write_metadata", full)
    with pytest.raises(OSError, match="No space left"):
        found.write()
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".*unfinished"))
    assert not certificate.certificate_path(file).exists()


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("place", "how", "settings"),
    [
        ("sample_inputs/model.pt", "saved", "{}"),
        ("sample_inputs/model.pt", "pickled", "{}"),
        ("constants/opaque_obj_0", "pickled", "{}"),
        ("constants/custom_obj_0", "pickled", "{}"),
        (
            "weights/weight_0",
            "pickled",
            r'{"config": {"w": {"path_name": "weight_0", "use\u005fpickle": true}}}',
        ),
    ],
)
def test_a_program_with_code_is_refused_and_not_executed(
    tmp_path: Path, place: str, how: str, settings: str
) -> None:
    pickled = io.BytesIO()
    code = Code(tmp_path / "executed")
    torch.save(code, pickled) if how == "saved" else pickle.dump(code, pickled, protocol=4)
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("archive/models/model.json", "{}")
        archive.writestr("archive/data/weights/model_weights_config.json", settings)
        archive.writestr(f"archive/data/{place}", pickled.getvalue())
    with pytest.raises(ValueError, match=r"refused, for .* holds (more than weights|an object of code)"):
        open_program(tmp_path / "a.pt2")
    assert not (tmp_path / "executed").exists()


def test_what_does_not_belong_together_is_said(
    run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save("classification", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign.onnx").write_bytes(b"\x08\x07")
    (tmp_path / "foreign.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    out = ["--out", tmp_path / "never"]
    for arguments, message in [
        (["eval", file, "--checkpoint", other, *out], "was not made from"),
        (["eval", run, "--checkpoint", run, *out], "is for exported files"),
        (["eval", tmp_path / "foreign.onnx", *out], "not a readable ONNX file"),
        (["eval", tmp_path / "foreign.pt2", *out], "not a readable .pt2 file"),
        (["eval", tmp_path / "none.pt2", *out], "no such file"),
        (["eval", file, "--data", tmp_path / "empty", *out], "empty"),
        (["export", run, "--out", tmp_path / "a.onnx", "--int8"], "go together"),
        (
            ["export", run, "--out", tmp_path / "a.onnx", "--int8", "--calibrate", tmp_path / "empty"],
            "no images in this folder",
        ),
    ]:
        assert ended(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
    masks = save("detection", tmp_path, detector={"name": "mask_rcnn", "pyramid_channels": 16})
    with pytest.raises(ValueError, match="Mask R-CNN has no int8"):
        export_int8(masks, tmp_path / "a.onnx", run / "samples")
