"""Every built-in recipe makes its model, optimiser and schedule, without a warning; shapes only."""

import warnings

import pytest
import torch
from torch import nn

from crossformerpp.data import ade20k
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import load_recipe, recipe_names
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.detection.model import build_detector
from crossformerpp.tasks.optim import Plan, batch_factor, build_optimizer, build_schedule
from crossformerpp.tasks.segmentation.model import Segmenter


def build(recipe: BaseRecipe) -> nn.Module:
    if isinstance(recipe, DetectionRecipe):
        return build_detector(recipe.model, recipe.detector, recipe.data, 80)
    if isinstance(recipe, SegmentationRecipe):
        return Segmenter(recipe.model, recipe.head, ade20k.COLORS)
    return create_model(recipe.model, num_classes=1000)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model = build(recipe)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, Plan.of(recipe.trainer, num_samples=200_000))
    groups = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(groups) == sorted(id(parameter) for parameter in model.parameters())
    schedule.step_update(10**9)
    last = recipe.optim.lr * batch_factor(recipe)
    assert all(0 <= group["lr"] <= last for group in optimizer.param_groups)
