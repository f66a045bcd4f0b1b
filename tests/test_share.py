"""A shared folder: loaded by timm as it was trained, described by its card."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tests.tiny import tiny_values

from crossformerpp import share
from crossformerpp.cli import main
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.saved import KEY, pack

NAMES = ["zero", "one", "two"]


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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
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
    assert sorted(allowed) == sorted(path.name for path in folder.iterdir()), (
        "nothing put there later goes along"
    )


def test_refused_push_leaves_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, repo: str, **_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    folder = share.write_folder(run, tmp_path / "shared")
    with pytest.raises(ValueError, match=r"not pushed \(no network\).*complete"):
        share.push(folder, "user/digits")
