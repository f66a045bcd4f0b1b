"""Elastic training: which groupings a step trains, and that it trains nothing else."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from crossformerpp import engine
from crossformerpp.layers.group_size import Groups
from crossformerpp.recipes.schema import ElasticSection
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification.distillation import distillation_loss
from crossformerpp.tasks.elastic import Elastic
from crossformerpp.tasks.saved import read_training_state
from tiny import tiny_recipe

NAMES = [str(number) for number in range(10)]
RANGES = "group_sizes: [[2, 4, 8], [2, 4], [1, 2], [1]], intervals: [[adaptive, 2], [1], [1], [1]]"
PLAIN = ["ema=null", "augment.mixup=0", "model.options.drop_path_rate=0"]


def module_of(elastic: str, *overrides: str):
    recipe = tiny_recipe(f"model.elastic={{{elastic}}}", *overrides)
    torch.manual_seed(0)
    module = find_task("classification").module(recipe, NAMES)
    module._trainer = SimpleNamespace(global_step=3)
    return module


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8)


def test_settings_are_drawn_from_their_ranges_by_seed_and_step() -> None:
    module = module_of(RANGES + ", per: block, lda: [regional, spanning]")
    elastic = module.elastic
    assert elastic.smallest.groups == Groups(
        ((2,), (2,), (1, 1), (1,)), (("adaptive",), (1,), (1, 1), (1,)), ("regional",) * 4
    )
    assert elastic.largest.groups == Groups(
        ((8,), (4,), (2, 2), (1,)), ((2,), (1,), (1, 1), (1,)), ("spanning",) * 4
    )
    drawn = [elastic.random(step, 2) for step in range(200)]
    again = module_of(RANGES + ", per: block, lda: [regional, spanning]").elastic
    assert drawn == [again.random(step, 2) for step in range(200)]
    assert {each.size for each in drawn} == {None}
    drawn = [each.groups for each in drawn]
    assert {groups.group_sizes[0][0] for groups in drawn} == {2, 4, 8}
    assert {groups.intervals[0][0] for groups in drawn} == {"adaptive", 2}
    assert {groups.group_sizes[2] for groups in drawn} == set(itertools.product((1, 2), repeat=2))
    assert {groups.lda[1] for groups in drawn} == {"regional", "spanning"}
    other = Elastic(module.recipe.model.elastic, module.model, seed=1)
    assert drawn != [other.random(step, 2).groups for step in range(200)]


def test_of_a_stage_all_blocks_draw_alike_unless_asked() -> None:
    drawn = [module_of(RANGES).elastic.random(step, 0) for step in range(20)]
    assert {each.groups.group_sizes[2] for each in drawn} == {(1, 1), (2, 2)}


def test_a_step_has_the_mean_loss_and_gradient_of_its_settings(batch) -> None:
    module = module_of(RANGES, *PLAIN)
    own = module.model.groups
    losses = module.training_step(batch, 0)
    losses.backward()
    gradient = module.model.head.fc.weight.grad.clone()
    assert module.model.groups == own
    module.zero_grad()
    expected = []
    for drawn in (module.elastic.largest, module.elastic.smallest, module.elastic.random(3, 2)):
        module.model.set_groups(*drawn.groups)
        expected.append(module.loss(batch)["loss"])
        (expected[-1] / 3).backward()
    assert len({loss.item() for loss in expected}) > 1  # settings differ at all
    torch.testing.assert_close(losses, torch.stack(expected).mean())
    torch.testing.assert_close(gradient, module.model.head.fc.weight.grad)


def test_the_largest_teaches_the_others(batch) -> None:
    module = module_of(RANGES + ", distill: 0.75, draw: [largest, smallest]", *PLAIN)
    loss = module.training_step(batch, 0)
    logits = []
    for drawn in (module.elastic.largest, module.elastic.smallest):
        module.model.set_groups(*drawn.groups)
        logits.append(module.model(batch[0]))
    largest, smallest = (module.criterion(each, batch[1]) for each in logits)
    taught = distillation_loss(logits[1], logits[0], temperature=1.0)
    torch.testing.assert_close(loss, (largest + 0.25 * smallest + 0.75 * taught) / 2)


def test_images_are_resized_to_the_sizes_of_the_range(batch) -> None:
    module = module_of(RANGES + ", sizes: [32, 48], draw: [largest, smallest, random]", *PLAIN)
    seen = []
    module.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    module.training_step(batch, 0)
    assert seen[:2] == [(8, 3, 48, 48), (8, 3, 32, 32)]
    assert seen[2][2:] == (module.elastic.random(3, 2).size,) * 2
    assert {module.elastic.random(step, 0).size for step in range(30)} == {32, 48}
    flat = torch.ones(1, 3, 32, 32) * 0.5
    torch.testing.assert_close(module.elastic.largest.view(flat), torch.ones(1, 3, 48, 48) * 0.5)


def test_groups_are_restored_where_a_step_fails(batch) -> None:
    module = module_of(RANGES, *PLAIN)
    own = module.model.groups
    with pytest.raises(IndexError):
        module.training_step((batch[0], batch[1] + 20, batch[2]), 0)
    assert module.model.groups == own


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    settings = f"model.elastic={{{RANGES}, draw: [random, random]}}", "trainer.checkpoint_every=1"
    engine.train(tiny_recipe(*settings), tmp_path / "whole")
    engine.train(tiny_recipe(*settings, "trainer.steps=4"), tmp_path / "plain")  # the control: runs repeat
    with pytest.MonkeyPatch.context() as patch:
        step = engine.TaskModule.training_step

        def interrupted(module, *arguments):
            if module.global_step == 3:
                raise engine.TrainingInterruptedError
            return step(module, *arguments)

        patch.setattr(engine.TaskModule, "training_step", interrupted)
        with pytest.raises(engine.TrainingInterruptedError):
            engine.train(tiny_recipe(*settings), tmp_path / "stopped")
    engine.resume(tmp_path / "stopped")
    states = [
        read_training_state(tmp_path / n / "checkpoints/last.ckpt") for n in ("whole", "plain", "stopped")
    ]
    for key, value in states[0]["state_dict"].items():
        assert all(torch.equal(value, state["state_dict"][key]) for state in states[1:]), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.elastic={group_sizes: [[2]]}"], "has 1 ranges for 4 stages"),
        (["model.elastic={group_sizes: [[2], [], [1], [1]]}"], "at least 1 item"),
        (["model.elastic={group_sizes: [[2], [2], [1], [0]]}"], "greater than 0"),
        ([f"model.elastic={{{RANGES}, distill: 1, draw: [random]}}"], "begin with largest"),
        ([f"model.elastic={{{RANGES}}}", "model.compile=true"], "neither grad_checkpointing nor compile"),
        ([f"model.elastic={{{RANGES}}}", "model.options.attention=swin"], "of LSDA only"),
        ([f"model.elastic={{{RANGES}}}", "model.name=resnet18", "model.options={}"], "no CrossFormer in it"),
    ],
)
def test_mistakes_are_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        find_task("classification").module(tiny_recipe(*settings), NAMES)


def test_only_classifiers_distil() -> None:
    section = ElasticSection(group_sizes=[[1]] * 4, distill=1.0)
    assert section.draw[0] == "largest"
    from crossformerpp.recipes.load import load_recipe

    with pytest.raises(ValueError, match="for classification, not for segmentation"):
        load_recipe("digit_scenes/semantic_fpn", [f"model.elastic={{{RANGES}, distill: 1}}"])
    with pytest.raises(ValueError, match=r"elastic\.sizes is for classification"):
        load_recipe("digit_scenes/semantic_fpn", [f"model.elastic={{{RANGES}, sizes: [64]}}"])
