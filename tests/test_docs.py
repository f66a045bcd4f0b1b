"""The documentation is true: its code runs, its site builds, its pictures are there."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossformerpp.data.digits import load_digits
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.recipes.load import recipe_names
from doc_blocks import LANGUAGES, PAGES, ROOT, Block, blocks, check, check_command, commands, run
from released import dense_weights, released_weights

MAX_PICTURE = 100_000  # bytes


def class_folders(folder: Path, names: tuple[str, ...], images: int) -> None:
    """Real digits, enlarged, in the place of photographs."""
    digits, labels = load_digits("train", 64)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        own = [digit for digit, other in zip(digits, labels, strict=True) if other == label]
        for number, image in enumerate(own[:images]):
            image.save(folder / name / f"{number}.jpg")


def photograph(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.RandomState(0).randint(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC).save(path)


def imagenet(folder: Path) -> None:
    for which, images in (("train", 10), ("val", 3)):
        class_folders(folder / which, ("n01440764", "n01443537"), images)


def released(path: Path) -> None:
    torch.save({"model": released_weights("crossformerpp_small")}, path)


STAND_INS: dict[str, Callable[[Path], object]] = {  # what pages call things -> what makes such a thing
    "PHOTOS": lambda path: class_folders(path, ("cat", "dog", "horse"), 10),
    "PHOTO.jpg": photograph,
    "photo.jpg": photograph,
    "scene.jpg": photograph,
    "my_pictures": lambda path: photograph(path / "one.jpg"),
    "IMAGENET": imagenet,
    "FOLDER": lambda path: write_digit_scenes(path, train=24, val=6, size=96),
    "crossformerpp-s.pth": released,
    "retinanet-s.pth": lambda path: torch.save({"state_dict": dense_weights("retinanet")}, path),
    "fpn-s.pth": lambda path: torch.save({"state_dict": dense_weights("semantic_fpn")}, path),
    "crossformerpp_small.safetensors": lambda path: convert(path),
}


def convert(path: Path) -> None:
    from crossformerpp.checkpoints import convert

    released(path.with_suffix(".pth"))
    convert(path.with_suffix(".pth"), path, "crossformerpp_small")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks(page))
    code = "".join(block.code for block in found if block.not_run is None)
    for name, make in STAND_INS.items():
        if name in code and f"convert crossformerpp-s.pth {name}" not in code:
            make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for block in found:
        assert block.language in LANGUAGES, f"{block.place}: language {block.language!r}, none of {LANGUAGES}"
        if block.not_run is None:
            run(block, names)
        else:
            assert block.not_run, f"{block.place}: say why it is not run"
            check(block)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("crossformer trian digits", "no command trian"),
        ("crossformer train digits --sett optim.lr=1", "No such option"),
        ("crossformer train digit", "no recipe 'digit'"),
        ("torchrun -m crossformerpp train digits --set optim.lrr=1", "unknown key"),
        ("python -m benchmarks.nothing", "no module"),
        ("make everything", "Makefile has no"),
        ("pip install '.[evreything]'", "no extra"),
        ("rm -r runs", "neither run nor checked"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(code: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        check(Block("page", "sh", code))


def test_names_and_commands_are_taken_apart() -> None:
    assert commands("a b \\\n  c # d\n\ne && f") == [["a", "b", "c"], ["e"], ["f"]]
    with pytest.raises(AssertionError, match="has no Crossformer"):
        check(Block("page", "python", "from crossformerpp import Crossformer"))
    check_command(["crossformer", "data", "check", "FOLDER"])


def test_every_recipe_is_on_the_page_of_recipes() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for name in recipe_names():
        folder = name.partition("/")[0]
        assert f"`{name}`" in page or f"`{folder}/*`" in page, name


def test_pictures_are_small_and_shown() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        assert picture.stat().st_size < MAX_PICTURE
        assert f"pictures/{picture.name}" in pages


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install '.[docs]'")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    layers = (tmp_path / "site" / "layers.html").read_text()
    for picture in ("embedding", "groups", "position_bias", "cooling"):
        assert f"pictures/{picture}.png" in layers
    assert 'id="crossformerpp.layers.grouping.Grouping"' in (tmp_path / "site" / "api.html").read_text()
