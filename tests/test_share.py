"""A shared folder: loaded by timm as it was trained, described by its card."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tests.test_export import photograph, save
from tests.tiny import tiny_values

import crossformerpp
from crossformerpp import share
from crossformerpp.cli import main
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.share.card import model_card
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.saved import KEY, open_saved, pack

NAMES = ["zero", "one", "two"]


def ended(arguments: list[Any]) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with what sharing looks at."""
    data = {"root": "/home/me/secret/photos", "size": 48, "eval_resize": 56}
    values = {**tiny_values(), "ema": None, "data": data}
    recipe = parse_recipe(values, "tiny")
    torch.manual_seed(0)
    model = create_model(recipe.model, num_classes=len(NAMES))
    torch.nn.init.normal_(model.get_parameter("head.fc.weight"))
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    state = {KEY: pack(dump_recipe(recipe), NAMES, 4), "state_dict": weights}
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.8125, "images": 16}))
    return folder


def test_timm_loads_the_folder_and_prepares_images_alike(run: Path, tmp_path: Path) -> None:
    folder = share.write_folder(run, tmp_path / "shared")
    written = ["README.md", "app.py", "config.json", "model.safetensors", "requirements.txt"]
    assert sorted(path.name for path in folder.iterdir()) == written
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "head.fc.weight" in file.keys()  # noqa: SIM118 (not a mapping)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == NAMES
    assert json.loads((folder / "config.json").read_text())["label_names"] == NAMES  # for transformers
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.no_grad():
        shares = model(transform(image)[None])[0].softmax(0)
    predictor: Any = load_predictor(run, "cpu")
    for name, expected in predictor(image).top:
        assert shares[NAMES.index(name)].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_every_task_comes_back_by_one_line(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(task, tmp_path)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint.rename(run / "checkpoints" / "best.ckpt")
    Image.effect_noise((2000, 90), 80).save(run / "predictions.png")
    (run / "metrics.json").write_text('{"box_AP": 0.25}')
    monkeypatch.chdir(tmp_path)
    assert ended(["share", "run", "--out", "shared"]) == 0
    predictor: Any = crossformerpp.from_pretrained("shared", min_score=0.0)
    image = photograph()
    expected = load_predictor(run, "cpu", min_score=0.0)(image)
    assert predictor(image).to_json() == expected.to_json()
    assert isinstance(predictor.model, torch.nn.Module)
    image.save("photograph.png")
    assert ended(["predict", "shared", "photograph.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pictures"]
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "| box_AP | 0.25 |" in card
    assert "](predictions.png)" in card
    assert Image.open(tmp_path / "shared" / "predictions.png").width == 1600
    assert ended(["share", "run", "--out", "shared"]) == 2
    assert "shared exists" in capsys.readouterr().err
    assert ended(["share", "run", "--out", "plain", "--no-pictures"]) == 0
    assert not (tmp_path / "plain" / "predictions.png").exists()


def test_damaged_folder_is_said(run: Path, tmp_path: Path) -> None:
    folder = share.write_folder(run, tmp_path / "shared")
    page = json.loads((folder / "config.json").read_text())
    for damaged, message in [
        ({}, "not of `crossformer share`"),
        (page | {KEY: {"recipe": "task: x", "class_names": ["a"], "step": 1}}, "task"),
        (page | {KEY: {"recipe": ""}}, "damaged"),
    ]:
        (folder / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=message):
            crossformerpp.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(page))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        crossformerpp.from_pretrained(folder)


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download needs, for USER/NAME in a folder."""

    folder: Path

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/user/digits/tree/"):
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "b" * 40}
                for path in self.folder.iterdir()
            ]
            self._send(json.dumps(files).encode())
        elif self.path.startswith("/api/models/user/digits"):
            names = [{"rfilename": path.name} for path in self.folder.iterdir()]
            self._send(json.dumps({"id": "user/digits", "sha": "a" * 40, "siblings": names}).encode())
        elif self.path.startswith("/user/digits/resolve/"):
            self._send((self.folder / self.path.rsplit("/", 1)[1]).read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 (the base class' name)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_hub_address_is_fetched(run: Path, tmp_path: Path) -> None:
    Hub.folder = share.write_folder(run, tmp_path / "shared")
    (Hub.folder / "thresholds.json").write_text("{}")  # only multi-label classifiers read it
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "a.png")
    found = {}
    for address in ("hf-hub:user/digits", "hf-hub:user/none"):
        command = [sys.executable, "-m", "crossformerpp", "predict", address, "a.png", "--json"]
        found[address] = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    server.shutdown()
    server.server_close()
    done, missing = found.values()
    assert done.returncode == 0, done.stderr
    expected: Any = load_predictor(run, "cpu")(Image.open(tmp_path / "a.png"))
    assert json.loads(done.stdout)[0]["top"][0]["class"] == expected.top[0][0]
    assert missing.returncode == 2
    assert "cannot be fetched from the Hugging Face Hub" in missing.stderr
    with pytest.raises(ValueError, match="give hf-hub:USER/NAME"):
        crossformerpp.from_pretrained("hf-hub:digits")
    assert list((tmp_path / "home").rglob("thresholds.json"))
    assert not list((tmp_path / "home").rglob("*.py"))  # only weights and descriptions


def test_class_names_are_text_on_the_card(run: Path) -> None:
    names = ["<script>alert(1)</script>", "a\n# b", "[c](javascript:d)", "hot_dog"]
    card = model_card(replace(open_saved(run), class_names=names), {}, "mit", "hf-hub:a/b")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, a \\# b, \\[c\\](javascript:d), hot\\_dog" in card
    assert "<script>" not in card


def test_card_is_filled_from_the_run(run: Path, tmp_path: Path) -> None:
    main_arguments = ["share", str(run), "--out", str(tmp_path / "shared"), "--license", "cc-by-4.0"]
    with pytest.raises(SystemExit) as end:
        main(main_arguments)
    assert end.value.code == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["library_name"]) == ("cc-by-4.0", "timm")
    assert "| accuracy | 0.8125 |" in card
    assert "zero, one, two" in card
    page = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert page["data"]["eval_resize"] == 56
    assert page["data"]["root"] == "photos", "a card is public"
    with pytest.raises(SystemExit) as end:
        main(main_arguments)
    assert end.value.code == 2, "a folder is not overwritten"


def test_pictures_of_an_earlier_writing_do_not_stay(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(run / "predictions.png")
    folder = share.write_folder(run, tmp_path / "shared")
    assert (folder / "predictions.png").is_file()
    (folder / "notes.txt").write_text("mine")
    (folder / "conformal.json").write_text("{}")
    share.write_folder(run, folder, pictures=False, overwrite=True)
    assert not (folder / "predictions.png").exists()
    assert not (folder / "conformal.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_pushing_uploads_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, **_: calls.append(repo))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, **said: calls.append(said) or "https://hub"
    )
    folder = share.write_folder(run, tmp_path / "shared", repo="user/digits")
    assert 'timm.create_model("hf-hub:user/digits"' in (folder / "README.md").read_text()
    assert share.push(folder, "user/digits") == "https://hub"
    allowed = calls[1].pop("allow_patterns")
    assert calls == ["user/digits", {"repo_id": "user/digits", "folder_path": folder}]
    assert {path.name for path in folder.iterdir()} <= set(allowed)  # and nothing put there later goes along


class _NoNetworkError(Exception):
    """As the Hub's HTTP client has: neither an OSError nor a ValueError."""


def test_refused_push_leaves_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, repo: str, **_: Any) -> None:
        raise _NoNetworkError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    folder = share.write_folder(run, tmp_path / "shared")
    with pytest.raises(ValueError, match=r"not pushed \(no network\).*complete"):
        share.push(folder, "user/digits")
