"""Optimiser groups and schedules are timm's, whatever unit the recipe counts in."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler

from crossformerpp.engine.changes import changes
from crossformerpp.recipes.load import load_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule
from tiny import tiny_recipe, tiny_values


def rates(schedule: Scheduler, optimizer: torch.optim.Optimizer, steps: int, per_epoch: int) -> list[float]:
    """The learning rate before each step, as the engine moves it."""
    found = []
    for step in range(steps):
        if step:
            schedule.step_update(step)
            if step % per_epoch == 0:
                schedule.step(step // per_epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def one_weight() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=1e-3)


def recipe_with(schedule: dict, trainer: dict) -> BaseRecipe:
    values = tiny_values()
    values["schedule"] = schedule
    values["trainer"] = {"batch_size": 64, **trainer}
    return parse_recipe(values, "tiny")


CASES = {
    "cosine by step, as the paper's classification": (
        {"warmup_epochs": 2, "min_lr": 1e-5},
        {"epochs": 6},
        lambda o: CosineLRScheduler(o, 60, lr_min=1e-5, warmup_t=20, warmup_lr_init=1e-6, t_in_epochs=False),
    ),
    "cosine by epoch, as timm's train.py by default": (
        {"warmup_epochs": 2, "update": "epoch"},
        {"epochs": 6},
        lambda o: CosineLRScheduler(o, 6, warmup_t=2, warmup_lr_init=1e-6, t_in_epochs=True),
    ),
    "milestones in epochs after a warm-up in steps, as the paper's detection": (
        {"name": "multistep", "milestones": [4, 5], "warmup_steps": 5, "warmup_lr": 1e-6},
        {"epochs": 6},
        lambda o: MultiStepLRScheduler(
            o, [41, 51], 0.1, warmup_t=5, warmup_lr_init=1e-6, warmup_prefix=False, t_in_epochs=False
        ),
    ),
    "polynomial in steps, as the paper's segmentation": (
        {"name": "poly", "power": 0.9, "warmup_steps": 7},
        {"steps": 60},
        lambda o: PolyLRScheduler(o, 60, power=0.9, warmup_t=7, warmup_lr_init=1e-6, t_in_epochs=False),
    ),
    "a warm-up in epochs where the run counts in steps": (
        {"warmup_epochs": 1.5},
        {"steps": 60},
        lambda o: CosineLRScheduler(o, 60, warmup_t=15, warmup_lr_init=1e-6, t_in_epochs=False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_steps_rate_is_timms(case: str) -> None:
    section, trainer, reference = CASES[case]
    recipe = recipe_with(section, trainer)
    plan = Plan.of(recipe.trainer, num_samples=10 * 64 + 63)
    assert plan == Plan(steps=60, steps_per_epoch=10)
    ours, theirs = one_weight(), one_weight()
    found = rates(build_schedule(ours, recipe, plan), ours, plan.steps, plan.steps_per_epoch)
    assert found == pytest.approx(rates(reference(theirs), theirs, 60, 10), rel=1e-12)
    assert found[0] == 1e-6
    if recipe.schedule.milestones:  # the fifth epoch is the first with the lower rate
        assert found[39] == pytest.approx(1e-3)
        assert found[40] == pytest.approx(1e-4)


def test_groups_are_timms_for_the_whole_network() -> None:
    recipe = tiny_recipe("optim.layer_decay=0.75", "optim.options.betas=[0.9, 0.99]")
    model = create_model(recipe.model, num_classes=10)
    ours = build_optimizer(model, recipe).param_groups
    theirs = create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75, betas=(0.9, 0.99)
    )
    assert sum(p.numel() for group in ours for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    for a, b in zip(ours, theirs.param_groups, strict=True):
        assert (a["lr"], a["weight_decay"], a["lr_scale"]) == (b["lr"], b["weight_decay"], b["lr_scale"])
        assert [p.shape for p in a["params"]] == [p.shape for p in b["params"]]
    # norms and biases are not decayed
    assert all(p.ndim > 1 for group in ours if group["weight_decay"] for p in group["params"])
    assert any(group["lr_scale"] < 1 for group in ours)


def test_the_rate_grows_with_the_batch_if_the_recipe_says_for_which_it_is() -> None:
    model = timm.create_model("resnet10t", num_classes=2)
    plain = build_optimizer(model, tiny_recipe("optim.lr=1e-3"))
    scaled = build_optimizer(model, tiny_recipe("optim.lr=1e-3", "optim.lr_batch_size=1024"))
    assert plain.param_groups[0]["lr"] == 1e-3
    assert scaled.param_groups[0]["lr"] == pytest.approx(1e-3 * 64 / 1024)


def test_what_is_decayed_cannot_change_when_a_run_is_resumed() -> None:
    """The optimiser's state belongs to its groups."""
    with pytest.raises(ValueError, match=r"optim\.undecayed: vectors → nothing"):
        changes(tiny_recipe(), tiny_recipe("optim.undecayed=nothing"))
    with pytest.raises(ValueError, match="layer_decay goes with undecayed=vectors only"):
        tiny_recipe("optim.undecayed=norms", "optim.layer_decay=0.8")


def test_norms_are_spared_by_name_in_any_network() -> None:
    """A backbone's norms but those of cooling layers; in a detector or segmenter nothing of the head."""
    recipe = tiny_recipe("optim.undecayed=norms", "model.options.cooling=1")
    model = create_model(recipe.model, num_classes=10)
    spared, decayed = build_optimizer(model, recipe).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    kinds = {names[id(parameter)].split(".")[-2] for parameter in spared["params"]}
    assert kinds == {"norm", "norm1", "norm2"}
    assert any(".cooling.norm." in names[id(parameter)] for parameter in decayed["params"])
    assert any(".position_bias.layers.0.0." in names[id(parameter)] for parameter in decayed["params"])


def test_layers_are_scaled_for_classifiers_only() -> None:
    with pytest.raises(ValueError, match=r"optim\.layer_decay is for classification, not for detection"):
        load_recipe("objects", ["optim.layer_decay=0.8"])
