"""Detection pages: all of them can be read, and hold the published settings."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from crossformerpp.analysis.tables import paper_rows
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import load_recipe, parse_recipe, recipe_names
from crossformerpp.tasks.detection import Detection
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule

COCO = [name for name in recipe_names() if name.startswith("coco/")]


ROWS = {row.recipe: row for table in ("III", "IV") for row in paper_rows(table) if row.recipe}


@pytest.mark.parametrize("name", COCO)
def test_pages_of_coco_hold_the_published_settings(name):
    recipe = load_recipe(name)
    detector, family, size, schedule, *_ = (
        name.removeprefix("coco/").replace("mask_rcnn", "maskrcnn").split("_")
    )
    assert isinstance(recipe, DetectionRecipe)
    assert recipe.detector.name.replace("_", "") == detector
    assert recipe.model.name == f"{family}_{size}"
    assert recipe.model.checkpoint is not None
    assert recipe.trainer.batch_size == 16
    assert recipe.trainer.epochs == {"1x": 12, "3x": 36}[schedule]
    assert (len(recipe.data.short_side) > 1) == (schedule == "3x")
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.undecayed) == (1e-4, 1e-4, "nothing")
    assert not recipe.data.empty_images
    section = recipe.detector
    assert section.rules == "mmdetection"
    if section.name == "mask_rcnn":
        assert (section.train_proposals, section.kept_proposals) == (2000, 1000)
        assert (section.box_loss, section.roi_samples) == ("l1", 0)


def test_every_row_of_tables_3_and_4_has_a_page_with_its_groups_and_its_headline():
    assert len(ROWS) == 16
    for name, row in ROWS.items():
        recipe = load_recipe(name)
        assert isinstance(recipe, DetectionRecipe)
        assert (recipe.model.name, recipe.detector.name) == (row.model, row.head)
        assert {key: recipe.model.options[key] for key in row.options} == row.options
        text = page_text(name)
        assert f"Table {row.table}, the row with G = {row.options['group_sizes'][0]}: " in text
        assert all(f"{row.figures[ap]} {ap}" in text for ap in ("box AP", "mask AP") if ap in row.figures)
    assert all("No row in the paper" in page_text(name) for name in set(COCO) - set(ROWS))


def page_text(name):
    return (Path(str(files("crossformerpp.recipes"))) / f"{name}.yaml").read_text(encoding="utf-8")


def test_every_rate_of_the_1x_schedule_is_mmdetections():
    """lr · (r + (1 − r) · step / 500) in the warm-up with r = 0.001, ×0.1 after 8 and 11 epochs."""
    recipe = load_recipe("coco/retinanet_crossformer_small_1x")
    plan = Plan.of(recipe.trainer, 16 * 100)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe, plan)
    for step in range(plan.steps):
        schedule.step_update(step)
        regular = 1e-4 * 0.1 ** sum(step // 100 >= milestone for milestone in (8, 11))
        expected = regular * (1 - (1 - step / 500) * (1 - 0.001)) if step < 500 else regular
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), step


def test_detectors_decay_every_parameter():
    recipe = load_recipe("coco/retinanet_crossformer_small_1x")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    groups = build_optimizer(model, recipe).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in model.parameters()}


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
