"""Settings of detectors and segmenters: measured as `evaluate` does, at what they cost."""

import json

import numpy as np
import pytest
import torch

from crossformerpp import engine
from crossformerpp.analysis.budget import Setting
from crossformerpp.analysis.complexity import count_macs
from crossformerpp.cli import main
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.engine.budget import Judge, default_space, draws, halves
from crossformerpp.recipes.load import dump_recipe, load_recipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.points import image_size, overrides_at, recipe_at
from crossformerpp.tasks.saved import KEY, pack

TINY = ["model.options.embed_dim=16", "model.options.depths=[1,1,2,1]", "trainer.workers=0"]
TINY += ["model.options.group_sizes=[8,8,8,4]", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=2, val=5, size=128)


def make_run(name, scenes, folder):
    """A run with fresh weights."""
    recipe = load_recipe(f"digit_scenes/{name}", [f"data.root={scenes}", *TINY])
    split = find_task(recipe.task).split(recipe, "train")
    torch.manual_seed(0)
    module = find_task(recipe.task).module(recipe, split.class_names)
    for key, weight in module.model.state_dict().items():
        if key.endswith("qkv.weight"):
            weight.mul_(20)
        if key.endswith("cls_logits.bias"):  # so that a detector that knows nothing finds something
            weight.zero_()
    state = {f"model.{key}": value for key, value in module.model.state_dict().items()}
    content = {KEY: pack(dump_recipe(recipe), split.class_names, 4), "state_dict": state}
    path = folder / f"{name}.ckpt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("name", "metric"), [("semantic_fpn", "miou"), ("retinanet", "box_AP")])
def test_a_setting_has_the_score_and_the_cost_of_a_run_made_with_it(name, metric, scenes, tmp_path) -> None:
    judge = Judge(make_run(name, scenes, tmp_path), resamples=3)
    assert judge.metric == metric
    assert (judge.own.size, image_size(judge.recipe)) == (128, 128)
    space = default_space(judge, sizes=[64, 128])
    assert space.group_sizes[0] == (2, 4, 7, 8, 10, 14)
    assert space.group_sizes[3] == (2, 4)  # of a map of 4 tokens a side
    setting = space.mutated(
        Setting(space.random(np.random.default_rng(0)).groups, 64), np.random.default_rng(1)
    )
    setting = Setting(setting.groups, 64)
    point = judge.measure(setting)
    overrides = overrides_at(judge.saved.recipe, setting.to_json())
    texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    assert point.score == engine.evaluate(judge.saved.path, overrides=texts)[metric]
    assert judge.measure(judge.own).score != point.score or name == "retinanet"
    module = judge.module_at(setting.to_json())
    split = judge.split(64)
    batch = split.collate([split.dataset[0]])
    assert point.macs == count_macs(lambda: module.evaluate_batch(module.judged, batch))
    assert 0 < point.macs < judge.macs(judge.own)
    assert len(point.resampled) == 3


def test_of_a_detector_the_long_side_follows(scenes) -> None:
    recipe = load_recipe("digit_scenes/retinanet", [f"data.root={scenes}", "data.long_side=256"])
    groups = {"group_sizes": [4] * 4, "intervals": [1] * 4, "lda": ["regional"] * 4}
    data = recipe_at(recipe, groups | {"size": 64}).data
    assert (data.short_side, data.long_side) == ((64,), 128)


def test_images_are_divided_once_for_all() -> None:
    search, held_out = halves(101)
    assert sorted([*search, *held_out]) == list(range(101))
    assert abs(len(search) - len(held_out)) == 1
    one, other = list(draws(held_out, 4)), list(draws(held_out, 4))
    assert np.array_equal(one, other)
    assert all(set(drawn) <= set(held_out) and len(drawn) == len(held_out) for drawn in one)
    assert [len(part) for part in halves(1)] == [1, 1]


def test_a_segmenter_has_a_front_and_no_cascade(scenes, tmp_path, capsys) -> None:
    run = make_run("semantic_fpn", scenes, tmp_path)
    arguments = ["--evaluations", "4", "--randoms", "1", "--resamples", "5", "--group-size", "4", "--json"]
    with pytest.raises(SystemExit) as exit_:
        main(["analyze", "budget", str(run), *arguments])
    printed, err = capsys.readouterr()
    assert exit_.value.code == 0, err
    found = json.loads(printed)
    assert found["metric"] == "miou"
    assert {row["rival"] for row in found["rivals"]} <= {"published", "random"}
    assert (tmp_path / "semantic_fpn-budget" / "front.json").is_file()
    with pytest.raises(SystemExit) as exit_:
        main(["analyze", "cascade", str(run), "--small", "1", "--large", "1"])
    assert exit_.value.code == 2
