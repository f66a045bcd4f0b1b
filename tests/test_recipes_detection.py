"""Detection pages: all of them can be read, and hold the published settings."""

import pytest
import timm
import torch

from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import load_recipe, parse_recipe, recipe_names
from crossformerpp.tasks.detection import Detection
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule

COCO = [name for name in recipe_names() if name.startswith("coco/")]


@pytest.mark.parametrize("name", COCO)
def test_pages_of_coco_hold_the_published_settings(name):
    recipe = load_recipe(name)
    detector, family, size, schedule = name.removeprefix("coco/").replace("mask_rcnn", "maskrcnn").split("_")
    assert isinstance(recipe, DetectionRecipe)
    assert recipe.detector.name.replace("_", "") == detector
    assert recipe.model.name == f"{family}_{size}"
    assert recipe.model.checkpoint is not None
    own = {key: recipe.model.options[key] for key in ("group_sizes", "intervals")}
    with torch.device("meta"):
        stages = timm.create_model(recipe.model.name).stages
    assert own["group_sizes"] == [stage.blocks[-1].group_size for stage in stages]
    assert own["intervals"] == [stage.blocks[-1].interval for stage in stages]
    assert recipe.trainer.batch_size == 16
    assert recipe.trainer.epochs == {"1x": 12, "3x": 36}[schedule]
    assert (len(recipe.data.short_side) > 1) == (schedule == "3x")


def test_all_backbones_of_tables_3_and_4_have_pages():
    for schedule, detectors in (("1x", ("retinanet", "mask_rcnn")), ("3x", ("mask_rcnn",))):
        for detector in detectors:
            for backbone in (
                "crossformer_small",
                "crossformer_base",
                "crossformerpp_small",
                "crossformerpp_base",
            ):
                assert f"coco/{detector}_{backbone}_{schedule}" in COCO


def test_the_rate_of_the_1x_schedule():
    recipe = load_recipe("coco/retinanet_crossformer_small_1x")
    plan = Plan.of(recipe.trainer, 16 * 1000)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe, plan)
    rates = {}
    for step in (0, 250, 500, 7990, 8010, 10990, 11010):
        schedule.step_update(step)
        rates[step] = optimizer.param_groups[0]["lr"]
    assert rates[0] == pytest.approx(1e-7)
    assert rates[250] == pytest.approx(0.5e-4, rel=0.01)
    assert rates[500] == rates[7990] == pytest.approx(1e-4)
    assert rates[8010] == rates[10990] == pytest.approx(1e-5)
    assert rates[11010] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": {"name": "retinanet", "anchor_sizes": [32, 64]}}, "5 levels"),
        ({"data": {"short_side": [900], "long_side": 800}}, "short_side"),
        ({"data": {"train_annotations": "a.json"}}, "together"),
        ({"detector": {"name": "yolo"}}, "detector.name"),
    ],
)
def test_mistakes_are_named(change, message):
    page = {
        "task": "detection",
        "model": {"name": "resnet18"},
        "data": {},
        "detector": {"name": "retinanet"},
        "trainer": {"epochs": 1},
    }
    with pytest.raises(ValueError, match=message):
        parse_recipe(page | change, "mine")


def test_without_data_it_says_what_to_do():
    with pytest.raises(ValueError, match="--data FOLDER"):
        Detection().split(load_recipe("coco/retinanet_crossformer_small_1x"), "train")
