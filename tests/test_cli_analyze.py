"""`crossformer analyze`: tables and pictures of amplitudes, attention and group sizes, and what it says of mistakes."""

import csv
import json

import pytest
import torch
import yaml
from PIL import Image

from crossformerpp.cli import main
from crossformerpp.data.photographs import open_photographs
from crossformerpp.recipes.load import dump_recipe, load_recipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.saved import KEY, pack
from tiny import tiny_recipe

OPTIONS = "{embed_dim: 16, depths: [1, 1, 2, 1], num_heads: [1, 1, 2, 2], cooling: 1, num_classes: 3}"


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["analyze", *map(str, arguments)])
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "flower.jpg"
    open_photographs("val")[0].save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint as training leaves it behind, with fresh weights."""
    recipe = tiny_recipe("ema=null", "data.size=64", "data.eval_resize=64")
    names = [str(number) for number in range(10)]
    weights = create_model(recipe.model, num_classes=10).state_dict()
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    state = {f"model.{key}": value for key, value in weights.items()}
    torch.save({KEY: pack(dump_recipe(recipe), names, 4), "state_dict": state}, path)
    return path


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_amplitude_of_models_side_by_side(call, photo, tmp_path):
    models = ["crossformer_tiny", "crossformerpp_small"]
    arguments = [
        "amplitude",
        *models,
        "--options",
        OPTIONS,
        "--image",
        photo,
        "--size",
        64,
        "--out",
        tmp_path,
        "--json",
    ]
    status, out, err = call(*arguments)
    assert status == 0, err
    rows = json.loads(out)
    assert [row["model"] for row in rows] == [name for name in models for _ in range(5)]
    assert all(row["maximum"] > row["mean"] > 0 for row in rows)
    assert [float(row["maximum"]) for row in _rows(tmp_path / "amplitude.csv")] == [
        row["maximum"] for row in rows
    ]
    assert Image.open(tmp_path / "amplitude.png").width > 500
    status, _, err = call(*arguments)
    assert status == 2
    assert "exists; choose another --out" in err


def test_attention_of_a_run(call, run, photo, tmp_path):
    status, out, err = call("attention", run, "--image", photo, "--out", tmp_path, "--token", "0,1", "--json")
    assert status == 0, err
    rows = json.loads(out)
    assert len(rows) == 5 == len(_rows(tmp_path / "attention_distance.csv"))  # one head each
    for row in rows:
        assert row["distance_pixels"] == row["distance_tokens"] * 2 ** (row["stage"] + 1)
    assert [row["distance_tokens"] > 0 for row in rows] == [row["group_width"] > 1 for row in rows]
    for stage in range(1, 5):
        maps = [row for row in _rows(tmp_path / "attention_maps.csv") if row["stage"] == str(stage)]
        (group,) = {row["group_width"] for row in rows if row["stage"] == stage}
        assert {(row["query_y"], row["query_x"]) for row in maps} == {("0", str(group - 1))}
        blocks = {row["block"] for row in maps}
        assert sum(float(row["attention"]) for row in maps) == pytest.approx(len(blocks), abs=1e-4)
    assert {"attention_maps.png", "attention_distance.png"} <= {path.name for path in tmp_path.iterdir()}


def test_groups_go_into_a_recipe_that_starts_from_the_run(call, run, photo, tmp_path):
    page = tmp_path / "chosen.yaml"
    arguments = ["groups", run, "--image", photo, "--smallest", 1, "--largest", 4, "--out", page]
    status, out, err = call(*arguments, "--budget", "1GMACs", "--json")
    assert status == 0, err
    everything = json.loads(out)
    recipe = load_recipe(str(page))
    assert recipe.model.options["group_sizes"] == everything["group_sizes"]
    assert recipe.model.checkpoint == run.resolve()
    assert recipe.model.options["embed_dim"] == 16
    assert [choice["size"] for choice in everything["blocks"]] == [4, 4, 4, 4, 2]
    assert everything["macs"] > everything["macs_before"]

    less = str((everything["macs"] + everything["macs_before"]) / 2)
    status, out, err = call(*arguments, "--budget", less, "--overwrite")
    assert status == 0, err
    assert "over the budget" in " ".join(out.split())
    chosen = yaml.safe_load(page.read_text())["model"]["options"]["group_sizes"]
    assert chosen != everything["group_sizes"]

    status, _, err = call(*arguments, "--budget", "1K", "--overwrite")
    assert status == 2
    assert "cannot be met; the nearest is" in err
    assert yaml.safe_load(page.read_text())["model"]["options"]["group_sizes"] == chosen


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["amplitude", "no_such_model"], "no model 'no_such_model'"),
        (["attention", "resnet18", "--size", "32"], "ResNet: attention maps can be taken from"),
        (["attention", "crossformer_tiny", "--token", "2,0"], "--token 2,0: give Y,X as fractions"),
        (["attention", "crossformer_tiny", "--options", "3"], "--options '3': expected a mapping"),
        (["groups", "crossformer_tiny", "--budget", "1G"], "pass its run"),
        (["groups", "crossformer_tiny", "--budget", "much"], "--budget much: give multiply-accumulates"),
    ],
)
def test_mistakes_are_one_line(call, photo, tmp_path, arguments, match):
    out = tmp_path / "out"
    status, _, err = call(*arguments, "--image", photo, "--out", out)
    assert status == 2
    assert match in err
    assert err.count("\n") == 1
