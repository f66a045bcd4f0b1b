"""The ADE20K pages: a page per row of Table V, with its groups, and training as the paper's was run."""

import re

import pytest
import timm
import torch
from torch import nn

from crossformerpp.analysis.tables import paper_rows
from crossformerpp.checkpoints import to_released
from crossformerpp.recipes.load import load_recipe, recipe_names
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.recipes.segmentation import HeadSection, SegmentationRecipe
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule
from crossformerpp.tasks.segmentation.model import Segmenter
from test_recipes_detection import page_text

ROWS = {row.recipe: row for row in paper_rows("V") if row.recipe}


def test_every_row_of_table_5_has_a_page_with_its_groups_and_its_headline() -> None:
    assert set(ROWS) == {name for name in recipe_names() if name.startswith("ade20k/")}
    assert len(ROWS) == 20
    for name, row in ROWS.items():
        recipe = load_recipe(name)
        assert isinstance(recipe, SegmentationRecipe)
        assert (recipe.model.name, recipe.head.name) == (row.model, row.head)
        assert {key: recipe.model.options[key] for key in row.options} == row.options
        assert recipe.trainer.steps == {"80k": 80_000, "160k": 160_000}[row.schedule or ""]
        text = page_text(name)
        assert f"(Table V, the row with G = {row.options['group_sizes'][0]})" in text
        assert re.search(rf"paper {row.figures['IoU']}\b", text)
        if "MS IoU" in row.figures:
            assert f"multi-scale {row.figures['MS IoU']} " in text
        is_upernet = recipe.head.name == "upernet"
        assert recipe.trainer.batch_size == 16
        assert recipe.schedule.warmup_steps == (1500 if is_upernet else None)
        assert (recipe.optim.lr, recipe.optim.weight_decay) == ((6e-5, 0.01) if is_upernet else (1e-4, 1e-4))
        assert (recipe.augment.crop, recipe.augment.scale) == (512, (0.5, 2.0))
        assert (recipe.inference.rules, recipe.inference.multiple_of) == ("mmsegmentation", 32)
        assert recipe.head.input_norm != is_upernet
        assert not recipe.inference.flip


def test_every_rate_of_upernet_is_mmsegmentations_within_a_percent_of_the_warm_up() -> None:
    """MMSegmentation multiplies the ramp with the falling polynomial, timm's ramp leads to the full rate: no more than
    1,500 / 160,000 apart. The first step is exact, and so are all after the warm-up."""
    recipe = load_recipe("ade20k/upernet_crossformer_small")
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe, Plan(160_000, 1263))
    for step in [*range(0, 1500, 50), 1499, *range(1500, 160_000, 1000), 159_999]:
        schedule.step_update(step)
        ramp = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0
        expected = 6e-5 * (1 - step / 160_000) * ramp
        tolerance = 0.0095 if 0 < step < 1500 else 1e-9
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=tolerance), step


def test_every_rate_of_semantic_fpn_is_mmsegmentations() -> None:
    recipe = load_recipe("ade20k/semantic_fpn_crossformer_small")
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe, Plan(80_000, 1263))
    for step in range(0, 80_000, 777):
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * (1 - step / 80_000) ** 0.9, rel=1e-9)


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
def test_upernet_spares_what_is_called_norm_in_the_released_code(name: str) -> None:
    recipe = load_recipe(f"ade20k/upernet_{name}")
    with torch.device("meta"):
        model = Segmenter(ModelSection(name=name), HeadSection(name="upernet"), [(0, 0, 0)] * 3)
        classifier = timm.create_model(name)
    spared, decayed = build_optimizer(model, recipe).param_groups
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.01)
    released = to_released({key: key for key in classifier.state_dict()})  # released name -> ours
    inside = {f"backbone.getter.model.{own}" for theirs, own in released.items() if "norm" in theirs}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {key for key in names.values() if key in inside}
    assert len(spared["params"]) + len(decayed["params"]) == len(names)


def test_semantic_fpn_decays_every_parameter() -> None:
    recipe = load_recipe("ade20k/semantic_fpn_crossformer_small")
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    (group,) = build_optimizer(model, recipe).param_groups
    assert group["weight_decay"] == 1e-4
    assert len(group["params"]) == 4
