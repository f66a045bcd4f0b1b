"""Rare classes: how often they are drawn, what they weigh, what is said of them; by independent computation."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score
from sklearn.utils.class_weight import compute_class_weight

from crossformerpp import engine
from crossformerpp.data.balance import class_counts, hint_on_few, sample_weights
from crossformerpp.data.sampling import BatchStream, SeededDataset
from crossformerpp.data.split import Split
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.losses import build_loss
from crossformerpp.tasks.classification.module import ClassificationModule
from test_data_sampling import Noise
from tiny import tiny_recipe

COUNTS = [900, 90, 9, 1]
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]
NAMES = ["many", "some", "few", "one"]


def drawn(how: str, epochs: int = 20, **settings: int) -> list[list[tuple[int, ...]]]:
    weights = sample_weights(LABELS, 4, how)  # type: ignore[arg-type]
    return list(BatchStream(1000, 50, 20 * epochs, seed=1, weights=weights, **settings))


@pytest.mark.parametrize(("how", "power"), [("balanced", 0.0), ("sqrt", 0.5)])
def test_classes_come_as_often_as_promised(how: str, power: float) -> None:
    wanted = np.array(COUNTS) ** power / (np.array(COUNTS) ** power).sum()
    stream = drawn(how)
    found = Counter(LABELS[index] for batch in stream for _, index, _ in batch)
    np.testing.assert_allclose([found[label] / 20_000 for label in range(4)], wanted, atol=4e-3)
    for epoch in range(
        20
    ):  # within an epoch every image comes as often as its neighbours of the class, but for one
        counts = Counter(index for batch in stream[20 * epoch : 20 * epoch + 20] for _, index, _ in batch)
        for label in range(4):
            expected = 1000 * wanted[label] / COUNTS[label]
            own = [counts[index] for index in range(1000) if LABELS[index] == label]
            assert {*own} <= {int(np.floor(expected + 1e-9)), int(np.ceil(expected - 1e-9))}


def test_draws_of_one_image_in_an_epoch_are_told_apart() -> None:
    batches = drawn("balanced", epochs=1)
    draws = [draw for batch in batches for draw in batch]
    assert len(set(draws)) == len(draws) == 1000
    lonely = [draw for draw in draws if draw[1] == 999]
    assert sorted(time for *_, time in lonely) == list(range(250))
    dataset = SeededDataset(Noise(), seed=0)
    assert dataset[lonely[0]] != dataset[lonely[1]]
    assert dataset[lonely[0]] == dataset[lonely[0]]


@pytest.mark.parametrize("start", [3, 25])
def test_weighted_draws_resume_and_divide_exactly(start: int) -> None:
    whole = drawn("sqrt", epochs=2)
    assert drawn("sqrt", epochs=2, start=start) == whole[start:]
    parts = [drawn("sqrt", epochs=2, world=2, rank=rank, accumulate=5) for rank in range(2)]
    for step in range(40):
        together = [draw for part in parts for batch in part[5 * step : 5 * step + 5] for draw in batch]
        assert sorted(together) == sorted(whole[step])


def test_an_image_of_several_classes_is_drawn_as_its_rarest() -> None:
    labels = [[0]] * 6 + [[0, 1], [1, 0], []]
    assert class_counts(labels, 3).tolist() == [8, 2, 0]
    np.testing.assert_allclose(sample_weights(labels, 3, "balanced"), [1 / 8] * 6 + [1 / 2] * 2 + [1 / 8])
    np.testing.assert_allclose(sample_weights(labels, 3, "sqrt")[5:7], [8**-0.5, 2**-0.5])


def loss_with(*overrides: str) -> torch.nn.Module:
    recipe = tiny_recipe("augment.mixup=0", *overrides)
    assert isinstance(recipe, ClassificationRecipe)
    return build_loss(recipe, NAMES, COUNTS, 1000)


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 4), torch.arange(16) % 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs_with_scikit_learns_weights(smoothing: float) -> None:
    logits, labels = logits_and_labels()
    weights = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    torch_loss = F.cross_entropy(
        logits, labels, torch.from_numpy(weights).float(), reduction="none", label_smoothing=smoothing
    )
    found = loss_with("loss.class_weights=balanced", f"label_smoothing={smoothing}")(logits, labels)
    torch.testing.assert_close(found, torch_loss.mean())


@pytest.mark.parametrize("how", ["balanced", "effective"])
@pytest.mark.parametrize("several", ["multi_label=true", "multi_label=false"])
def test_a_class_without_images_weighs_one_and_changes_no_other(how: str, several: str) -> None:
    """As if it had one image it would weigh hundreds of times as much as the others, and smoothing would predict it."""
    recipe = tiny_recipe("augment.mixup=0", several, "data.root=x", f"loss.class_weights={how}")
    assert isinstance(recipe, ClassificationRecipe)
    without = build_loss(recipe, NAMES, COUNTS, 1000).weights
    found = build_loss(recipe, [*NAMES, "none"], [*COUNTS, 0], 1000).weights
    torch.testing.assert_close(found, torch.cat([without, torch.ones(1)]))


def test_effective_numbers_and_given_weights() -> None:
    logits, labels = logits_and_labels()
    numbers = np.array([(1 - 0.99**n) / (1 - 0.99) for n in COUNTS])
    weights = 1 / numbers
    weights *= 1000 / (weights * COUNTS).sum()
    found = loss_with("loss.class_weights=effective", "loss.beta=0.99")
    torch.testing.assert_close(found.weights, torch.from_numpy(weights).float())
    listed, named = (loss_with(f"loss.class_weights={w}") for w in ("[1, 1, 5, 1]", "{few: 5}"))
    torch.testing.assert_close(listed(logits, labels), named(logits, labels))
    per_image = F.cross_entropy(logits, labels, torch.tensor([1.0, 1, 5, 1]), reduction="sum")
    torch.testing.assert_close(listed(logits, labels), per_image / 16)


def test_focal_loss_and_logit_adjustment_are_their_formulas() -> None:
    logits, labels = logits_and_labels()
    true = logits.softmax(1)[torch.arange(16), labels]
    torch.testing.assert_close(
        loss_with("loss.name=focal", "loss.gamma=1.5")(logits, labels),
        (-((1 - true) ** 1.5) * true.log()).mean(),
    )
    torch.testing.assert_close(
        loss_with("loss.name=focal", "loss.gamma=0")(logits, labels), F.cross_entropy(logits, labels)
    )
    shifted = logits + 0.5 * torch.log(torch.tensor(COUNTS) / 1000)
    torch.testing.assert_close(
        loss_with("loss.name=logit_adjusted", "loss.tau=0.5")(logits, labels),
        F.cross_entropy(shifted, labels),
    )


def test_losses_take_mixed_targets_and_leave_no_trace_in_checkpoints() -> None:
    logits, labels = logits_and_labels()
    mixed = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(labels.flip(0), 4)
    for name in ("cross_entropy", "focal", "logit_adjusted"):
        loss = loss_with(f"loss.name={name}", "loss.class_weights=[1, 2, 3, 4]")
        parts = 0.7 * loss(logits, labels) + 0.3 * loss(logits, labels.flip(0))
        torch.testing.assert_close(loss(logits, mixed), parts)
        assert not loss.state_dict()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.class_weights=[1, 2]", "2 weights for 4 classes"),
        ("loss.class_weights={dog: 2}", "no class 'dog' among many, some, few, one"),
    ],
)
def test_weights_of_other_classes_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_with(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.name=bce"], r"loss\.name=bce is not for multi_label=false; there are cross_entropy, focal"),
        (["loss.name=logit_adjusted", "data.sampling=balanced"], "already draws all classes equally often"),
        (
            ["multi_label=true", "data.root=x", "data.real_labels=imagenet"],
            r"data\.real_labels is for one label per image",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(*overrides)


def test_the_hint_names_the_classes_and_what_to_set() -> None:
    hint = hint_on_few(np.array(COUNTS), NAMES, is_balanced=False)
    assert hint is not None
    assert "one 1, few 9, some 90; the most frequent has 900" in hint
    assert "--set data.sampling=balanced" in hint
    assert "--set loss.name=logit_adjusted" in hint
    several = hint_on_few(np.array(COUNTS), NAMES, is_balanced=False, multi_label=True)
    assert "--set loss.class_weights=effective" in str(several)
    assert "finetune" in hint
    assert "sampling" not in str(hint_on_few(np.array(COUNTS), NAMES, is_balanced=True))
    assert hint_on_few(np.array([120, 100, 30]), NAMES[:3], is_balanced=False) is None


def test_per_class_figures_are_scikit_learns(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 200, p=np.array(COUNTS) / 1000)
    probabilities = generator.dirichlet(np.ones(4), 200).astype(np.float32)
    guesses = probabilities.argmax(1)
    labels[:4] = range(4)
    found = ClassificationEvaluation(
        torch.arange(200), torch.from_numpy(labels), torch.from_numpy(probabilities), NAMES
    )
    assert found.metrics["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert found.metrics["mean_class_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    found._write_classes(tmp_path / "classes.csv")
    rows = [line.split(",") for line in (tmp_path / "classes.csv").read_text().splitlines()]
    assert rows[0][-2:] == ["precision", "f1"]
    expected = precision_score(labels, guesses, average=None, labels=range(4), zero_division=0)
    assert [float(row[4]) for row in rows[1:]] == pytest.approx(expected, abs=1e-4)


def test_a_run_counts_the_classes_of_its_data_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    settings = (
        "data.sampling=sqrt",
        "loss.name=focal",
        "loss.class_weights=effective",
        "schedule.name=constant",
    )
    whole = engine.train(tiny_recipe(*settings, "trainer.steps=3"), tmp_path / "whole")
    engine.train(tiny_recipe(*settings, "trainer.steps=2"), tmp_path / "parts")
    parts = engine.resume(tmp_path / "parts", ["trainer.steps=3"])
    weights = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert whole["top1"] == parts["top1"]


def test_a_module_learns_the_counts_from_its_split() -> None:
    recipe = tiny_recipe("loss.class_weights=balanced", "augment.mixup=0")
    module = engine.find_task("classification").module(recipe, NAMES)
    assert isinstance(module, ClassificationModule)
    with pytest.warns(UserWarning, match="one 1, few 9"):
        module.meet(Split(Noise(), NAMES, labels=LABELS))
    torch.testing.assert_close(module.criterion.weights[3].item(), 1000 / 4)
