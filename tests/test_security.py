"""Promises of SECURITY.md that no other test keeps."""

import itertools
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from crossformerpp import engine, share
from crossformerpp.analysis.report import DrawnFigure, Report, Shown, Table, to_html
from crossformerpp.checkpoints import convert, read_checkpoint
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.saved import open_saved
from tiny import tiny_recipe, tiny_values


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3_000_000)}}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as sound,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in sound.infolist():
            bomb.writestr(member.filename, sound.read(member))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 100_000
    for read in (open_saved, read_checkpoint):
        with pytest.raises(ValueError, match=r"bomb\.ckpt: .* bytes that would unpack to 12,"):
            read(tmp_path / "bomb.ckpt")


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"head.fc.weight": torch.zeros(1).expand(10**12)}}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"head\.fc\.weight claims more numbers than the file holds"):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "crossformer_tiny")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("key", ["task", "model", "trainer"])
def test_yaml_that_unfolds_without_end_is_refused_at_once(tmp_path: Path, key: str) -> None:
    letters = "abcdefghijklmno"
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in itertools.pairwise(letters)]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, f"{key}: *o"]))
    started = time.process_time()
    with pytest.raises(ValueError, match="its aliases unfold to more than 100,000 values"):
        load_recipe(str(tmp_path / "a.yaml"))
    assert time.process_time() - started < 30, "8¹⁵ values are not looked at one by one"
    (tmp_path / "b.yaml").write_text("a: &a [*a]")
    with pytest.raises(ValueError, match="unfold"):
        load_recipe(str(tmp_path / "b.yaml"))


def test_the_page_of_a_run_escapes_names() -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    table = Table((evil, evil), [(evil, evil)])
    shown = [Shown(Image.new("RGB", (4, 4)), evil, evil, [(evil, 0.5)])]
    page = to_html(
        Report(
            title=evil,
            subtitle=evil,
            headline=[(evil, evil)],
            num_mistakes=1,
            num_samples=1,
            mistakes=shown,
            right=shown,
            figures=[DrawnFigure(evil, evil, _figure)],
            class_names=[evil, "b"],
            confusion=np.eye(2, dtype=int),
            classes=table,
            model=table,
            speed=table,
            machine=evil,
            next_steps=[(evil, evil)],
            about=[(evil, evil)],
            recipe=evil,
        )
    )
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 15
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_the_built_in_run_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"asked the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    engine.train(tiny_recipe("trainer.steps=2"), tmp_path / "run")


def test_a_trained_model_fetches_no_weights(tmp_path: Path) -> None:
    """Though it began with weights that timm fetched: those are part of the run now."""
    file = tmp_path / "weights.safetensors"
    model = timm.create_model("crossformerpp_small", num_classes=10, **tiny_values()["model"]["options"])
    save_file(model.state_dict(), file)
    overlay = f"model.options.pretrained_cfg_overlay={{file: {file}, num_classes: 10}}"
    recipe = tiny_recipe("trainer.steps=2", "model.options.pretrained=true", overlay)
    metrics = engine.train(recipe, tmp_path / "run")
    file.unlink()
    with pytest.raises((OSError, RuntimeError)):
        create_model(recipe.model)
    assert engine.evaluate(tmp_path / "run", out=tmp_path / "judged")["top1"] == metrics["top1"]
    engine.resume(tmp_path / "run", ["trainer.steps=3"])
    assert "pretrained: true" in (tmp_path / "run/recipe.yaml").read_text()
    share.write_folder(tmp_path / "run", tmp_path / "shared")
    assert timm.create_model(f"local-dir:{tmp_path / 'shared'}").num_classes == 10
