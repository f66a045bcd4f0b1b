"""Distillation: the loss is Hinton's, the teacher is asked what the student sees and stays what it is."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from crossformerpp import engine
from crossformerpp.tasks import find_task
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification.distillation import Teacher, distillation_loss
from crossformerpp.tasks.saved import open_saved
from tiny import tiny_recipe

NAMES = [str(digit) for digit in range(10)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_hintons_by_hand(temperature):
    student, teacher = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    expected = 0.0
    for own, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in values] for values in (wanted, own))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    found = distillation_loss(student, teacher, temperature)
    assert found.item() == pytest.approx(temperature**2 * expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    """Another network, trained on the digits for two steps."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    engine.train(tiny_recipe("model.name=resnet10t", "model.options={}", "ema=null", "trainer.steps=2"), run)
    return run


def student(teacher_run, *overrides):
    return tiny_recipe(
        f"distill={{teacher: resnet10t, checkpoint: {teacher_run}}}",
        "augment.mixup=0",
        "augment.cutmix=0",
        *overrides,
    )


def test_the_loss_of_a_batch_is_the_weighted_sum(teacher_run):
    recipe = student(teacher_run, "distill.weight=0.25", "distill.temperature=2")
    torch.manual_seed(0)
    module = find_task("classification").module(recipe, NAMES)
    module.model.eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    losses = module.loss((images, labels, labels))
    teacher = timm.create_model("resnet10t", num_classes=10).eval()
    teacher.load_state_dict(open_saved(teacher_run).weights)
    with torch.no_grad():
        logits = module.model(images)
        taught = distillation_loss(logits, teacher(images), 2.0)
    hard = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses["loss"], 0.75 * hard + 0.25 * taught)
    torch.testing.assert_close(losses["loss_teacher"], taught)
    losses["loss"].backward()
    assert all(p.grad is not None for p in module.model.parameters())
    assert not any(p.requires_grad for p in module.teacher.model.parameters())


def test_a_student_learns_and_its_run_knows_nothing_of_the_teachers_weights(teacher_run, tmp_path):
    metrics = engine.train(student(teacher_run, "trainer.log_every=1"), tmp_path / "run")
    assert metrics["samples"] == 450
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "train_loss_teacher" in header
    saved = open_saved(tmp_path / "run")
    assert saved.recipe.distill.teacher == "resnet10t"
    assert saved.weights.keys() == create_model(saved.recipe.model, num_classes=10).state_dict().keys()
    teacher_run.rename(tmp_path / "gone")  # a finished student needs no teacher
    try:
        assert engine.evaluate(tmp_path / "run")["top1"] == metrics["top1"]
    finally:
        (tmp_path / "gone").rename(teacher_run)


def test_the_teacher_sees_its_own_normalisation():
    images = torch.rand(2, 3, 8, 8)
    seen, own = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    normalised = [
        (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in (seen, own)
    ]
    model = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(model.weight)
    nn.init.zeros_(model.bias)
    torch.testing.assert_close(Teacher(model, own, seen)(normalised[0]), normalised[1], atol=1e-5, rtol=1e-5)
    assert torch.equal(Teacher(model, seen, seen)(normalised[0]), normalised[0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{teacher: resnet10, checkpoint: CKPT}", "no model 'resnet10'; did you mean"),
        ("{teacher: resnet10t, checkpoint: /nowhere}", "distill.checkpoint /nowhere: no such file"),
        (
            "{teacher: resnet18, checkpoint: CKPT}",
            "distill.teacher=resnet18 with 10 classes: .*another model",
        ),
        (
            "{teacher: resnet18, checkpoint: pretrained}",
            "timm's weights know 1000 classes and the data have 10",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(section, message, tmp_path):
    save_file(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "t.safetensors")
    recipe = tiny_recipe(f"distill={section.replace('CKPT', str(tmp_path / 't.safetensors'))}")
    with pytest.raises(ValueError, match=message):
        find_task("classification").module(recipe, NAMES)


def test_pretrained_weights_that_cannot_be_loaded_are_an_error():
    recipe = tiny_recipe("distill={teacher: crossformer_tiny, checkpoint: pretrained}")
    with pytest.raises(ValueError, match="timm's weights could not be loaded"):
        find_task("classification").module(recipe, [str(number) for number in range(1000)])
