"""Amplitude and attention distance during training: what is logged is true, and training does not notice."""

import csv

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crossformerpp import engine
from crossformerpp.analysis.amplitude import block_amplitudes
from crossformerpp.analysis.attention_maps import block_attentions
from crossformerpp.analysis.inside import look_inside
from crossformerpp.engine.changes import changes
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks import find_task
from crossformerpp.tasks.backbone import create_model
from test_engine import assert_same_state, last
from test_tasks_detection_model import batch as detection_batch
from tiny import tiny_recipe, tiny_values


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The tiny run with the log every two steps, and without."""
    folder = tmp_path_factory.mktemp("inside")
    engine.train(tiny_recipe("trainer.inside_every=2"), folder / "with")
    engine.train(tiny_recipe(), folder / "without")
    return folder


def rows(run):
    with (run / "inside.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_training_is_the_same_to_the_last_bit(runs):
    assert_same_state(last(runs / "with"), last(runs / "without"))
    assert not (runs / "without" / "inside.csv").exists()


def test_every_block_has_its_three_numbers_at_every_interval(runs):
    found = rows(runs / "with")
    assert [row["step"] for row in found] == [2, 4]
    blocks = ["1.1", "2.1", "3.1", "3.2", "4.1"]
    names = [f"{kind}/{block}" for kind in ("amplitude_max", "amplitude_mean") for block in blocks]
    names += [f"attention_distance/{block}" for block in blocks]
    assert set(found[0]) == {"step", *names}
    assert all(
        row[f"amplitude_max/{block}"] > row[f"amplitude_mean/{block}"] > 0
        for row in found
        for block in blocks
    )


def test_tensorboard_has_the_same_numbers(runs):
    events = EventAccumulator(str(runs / "with" / "tensorboard"))
    events.Reload()
    for name, expected in rows(runs / "with")[0].items():
        if name != "step":
            assert [event.step for event in events.Scalars(name)] == [2, 4]
            assert events.Scalars(name)[0].value == pytest.approx(expected, rel=1e-6)


def test_the_numbers_are_those_of_the_analysis_and_the_model_stays_as_it_was():
    torch.manual_seed(0)
    model = create_model(ModelSection(**tiny_values()["model"])).train()
    model.stages[0].blocks[0].norm1.eval()  # a mixed state must come back mixed
    images = torch.randn(2, 3, 64, 96)
    found = look_inside(model, images)
    assert model.training
    assert not model.stages[0].blocks[0].norm1.training
    model.eval()
    for amplitude in block_amplitudes(model, [images]):
        assert found[f"amplitude_max/{amplitude.stage}.{amplitude.block}"] == amplitude.maximum
    for block in block_attentions(model, [images]):
        expected = block.head_distances.mean().item() * block.stride
        assert found[f"attention_distance/{block.stage}.{block.block}"] == pytest.approx(expected)


def test_a_network_without_attention_has_amplitudes():
    found = look_inside(create_model(ModelSection(name="resnet10t")), torch.randn(1, 3, 64, 64))
    assert {name.partition("/")[0] for name in found} == {"amplitude_max", "amplitude_mean"}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_backbones_of_dense_tasks_are_looked_into(task):
    values = {
        "task": task,
        "model": tiny_values()["model"],
        "data": {"source": "digit_scenes"},
        "trainer": {"steps": 1, "inside_every": 1},
    }
    if task == "detection":
        values["detector"] = {"name": "retinanet", "pyramid_channels": 8}
        batch = detection_batch()
    else:
        values["head"] = {"name": "semantic_fpn", "channels": 8, "pyramid_channels": 8}
        batch = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    module = find_task(task).module(parse_recipe(values, "tiny"), ["a", "b", "c"]).train()
    backbone, images = module.look(batch)
    assert images.shape[:2] == (2, 3)
    assert images.is_floating_point()
    found = look_inside(backbone, images)
    assert found["attention_distance/3.2"] > 0
    assert all(part.training for part in module.model.modules())


def test_a_resumed_run_forgets_later_rows(runs, tmp_path):
    engine.train(tiny_recipe("trainer.inside_every=1"), tmp_path / "run")
    engine.resume(tmp_path / "run", ["trainer.steps=5"])
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_the_log_may_be_switched_on_when_a_run_is_resumed():
    assert changes(tiny_recipe(), tiny_recipe("trainer.inside_every=2")) == ["trainer.inside_every: None → 2"]


@pytest.mark.parametrize("change", ["model.compile=true", "trainer.strategy=fsdp"])
def test_what_hides_the_layers_is_refused(change):
    with pytest.raises(ValueError, match=r"trainer.inside_every.*model.compile"):
        tiny_recipe("trainer.inside_every=1", change)
