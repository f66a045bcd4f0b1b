"""A length for the time that there is, and batches for the memory that there is."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossformerpp import engine
from crossformerpp.engine import planning, sizing
from crossformerpp.engine.planning import Times, plan_for
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification.module import ClassificationModule
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule
from test_engine import evaluations, last
from tiny import tiny_recipe

EPOCHS = (
    "trainer.steps=null",
    "trainer.epochs=100",
    "trainer.eval_every=5",
    "schedule.warmup_steps=null",
    "schedule.warmup_epochs=20",
)


@pytest.mark.parametrize("minutes", [0.5, 2, 20, 600])
@pytest.mark.parametrize("evaluation", [0.1, 5.0])
def test_a_plan_fills_its_time_and_no_more(minutes: float, evaluation: float) -> None:
    recipe, whole = tiny_recipe(*EPOCHS), Plan(2100, 21)
    times = Times(step=0.25, evaluation=evaluation, opening=0.5, spent=3.0)
    planned = plan_for(recipe, whole, minutes, times).trainer
    assert planned.steps is not None
    assert planned.eval_every is not None
    count = -(-planned.steps // planned.eval_every)  # one follows the last step
    used = 3 + 2 * 0.5 + planned.steps * 0.25 + (count + 1) * evaluation
    assert 0.75 * 60 * minutes < used + 0.25 <= 60 * minutes
    if count > 1:
        assert count * evaluation <= 0.2 * 60 * minutes + evaluation
    assert planned.minutes == minutes


def test_a_planned_schedule_is_the_recipes_in_short() -> None:
    recipe, whole = tiny_recipe(*EPOCHS, "optim.lr=0.01"), Plan(2100, 21)
    planned = plan_for(recipe, whole, 2, Times(0.25, 0.5, 0.5, 0.0))
    assert planned.trainer.steps is not None
    rates = []
    for page, plan in ((recipe, whole), (planned, Plan(planned.trainer.steps, 21))):
        optimizer = build_optimizer(torch.nn.Linear(2, 2), page)
        schedule = build_schedule(optimizer, page, plan)
        of_run = []
        for share in (0.0, 0.1, 0.2, 0.5, 0.9):
            schedule.step_update(round(share * plan.steps))
            of_run.append(optimizer.param_groups[0]["lr"])
        rates.append(of_run)
    assert rates[1] == pytest.approx(rates[0], rel=0.03)


def test_milestones_are_planned_too() -> None:
    overrides = ("schedule.name=multistep", "schedule.milestones=[50, 75]", "schedule.update=epoch")
    planned = plan_for(tiny_recipe(*EPOCHS, *overrides), Plan(2100, 21), 2, Times(0.25, 0.5, 0.5, 0.0))
    assert planned.trainer.steps is not None
    shares = [mark / planned.trainer.steps for mark in planned.schedule.milestones]
    assert shares == pytest.approx([0.5, 0.75], abs=0.01)


def test_too_little_time_is_refused_with_how_much_it_takes() -> None:
    with pytest.raises(
        ValueError, match=r"--minutes 0\.1 is too short: a step takes 2 s .*pass --minutes 0\.8"
    ):
        plan_for(tiny_recipe(), Plan(4, 21), 0.1, Times(2.0, 20.0, 0.5, 1.0))


def trainer_of_a_trial(broadcast: Any = lambda own: own) -> Any:
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), reduce_boolean_decision=lambda mine, all: mine, broadcast=broadcast
    )
    loop = SimpleNamespace(total_batch_idx=0)
    return SimpleNamespace(strategy=strategy, fit_loop=loop, accumulate_grad_batches=1, should_stop=False)


def test_all_processes_plan_by_the_times_of_the_first() -> None:
    """Every one of them: plans that differ by a step would wait for each other for ever."""
    first = (0.5, 2.0, 1.0, 9.0)
    trainer = trainer_of_a_trial(broadcast=lambda own: first)
    watch = planning.Stopwatch(seconds=0.0, opening=3.0, began=0.0)
    module: Any = None
    for _ in range(8):
        watch.on_train_batch_end(trainer)
    watch.on_train_end(trainer, module)
    assert watch.times == Times(*first)
    assert trainer.should_stop


def test_steps_before_memory_ran_out_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(planning.time, "monotonic", lambda: clock[0])
    trainer, module, watch = trainer_of_a_trial(), None, planning.Stopwatch(0.0, opening=0.5, began=0.0)
    for seconds, steps in (
        (1, 4),
        (100, 1),
        (3, 8),
    ):  # a step; until memory has run out and the run goes on; a step
        if steps != 1:
            watch.on_train_start(trainer, module)  # type: ignore[arg-type]
        for _ in range(steps):
            clock[0] += seconds
            if steps != 1:
                watch.on_train_batch_end(trainer)
    watch.on_train_end(trainer, module)  # type: ignore[arg-type]
    assert watch.times is not None
    assert (watch.times.step, watch.times.spent) == (3, 4 + 100 + 24)


def test_a_run_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_length", lambda *_: (6, 3))  # rather than how fast this machine is now
    run = tmp_path / "run"
    engine.train(tiny_recipe(), run, minutes=5)
    recipe = load_recipe(str(run / "recipe.yaml"))
    assert (recipe.trainer.steps, recipe.trainer.eval_every, recipe.trainer.minutes) == (6, 3, 5)
    assert [int(step) for step, *_ in evaluations(run)] == [3, 6]
    noted = json.loads((run / "run.json").read_text())["plan"]
    assert noted["steps"] == 6
    assert 0 < noted["seconds"]["step"] < 60
    engine.resume(run)
    assert last(run)["global_step"] == 6


def memory_for(images: int, recipe: Any) -> float:
    """Bytes for so many images at once, computed from two batches that are larger than those of the trial."""
    split = find_task(recipe.task).split(recipe, "train")
    torch.manual_seed(0)
    module = find_task(recipe.task).module(recipe, split.class_names).train()
    samples = [split.dataset[index] for index in range(48)]
    used = [
        sizing._memory_of_step(module, split.collate(samples[:count]), torch.device("cpu"))
        for count in (16, 48)
    ]
    weights = sum(p.numel() * 4 for p in module.model.parameters())
    return (used[1] - used[0]) / 32 * images + sizing.COPIES * weights


@pytest.mark.parametrize(("images", "accumulate"), [(1000, 1), (66, 1), (40, 2), (17, 4), (3, 32)])
def test_accumulation_is_the_least_that_fits(
    monkeypatch: pytest.MonkeyPatch, images: int, accumulate: int
) -> None:
    recipe = tiny_recipe("trainer.accumulate=auto")
    size = memory_for(images, recipe) + 1
    monkeypatch.setattr(sizing, "memory", lambda *_: size)
    chosen = sizing.choose_batches(recipe).trainer
    assert (chosen.batch_size, chosen.accumulate) == (64, accumulate)


def test_a_batch_is_the_largest_that_fits_and_the_rate_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = tiny_recipe("trainer.batch_size=auto", "optim.lr_batch_size=64", "trainer.accumulate=2")
    size = memory_for(25, auto)
    monkeypatch.setattr(sizing, "memory", lambda *_: size)
    engine.train(auto, tmp_path / "run")
    recipe = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (recipe.trainer.batch_size, recipe.trainer.accumulate) == (32, 2)  # two batches of 16
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(recipe.optim.lr / 2)
    size = memory_for(100_000, auto)
    assert sizing.choose_batches(auto).trainer.batch_size == 64  # 1,347 images: 16 steps an epoch or more
    with pytest.raises(ValueError, match=r"needs optim\.lr_batch_size"):
        sizing.choose_batches(tiny_recipe("trainer.batch_size=auto"))


def test_all_processes_measure_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and what a loss draws, as detectors draw proposals, follow from the recipe's seed alone."""
    real, seen = ClassificationModule.loss, list[torch.Tensor]()

    def loss(self: ClassificationModule, batch: Any) -> dict[str, torch.Tensor]:
        seen.extend([next(self.parameters()).detach().flatten(), torch.rand(5)])
        return real(self, batch)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    for seed in (1, 2):  # of two processes
        torch.manual_seed(seed)
        sizing.choose_batches(tiny_recipe("trainer.accumulate=auto"))
    half = len(seen) // 2
    assert half == 4  # two batches
    assert all(map(torch.equal, seen[:half], seen[half:]))


def test_batch_norms_keep_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "memory", lambda *_: 1.0)
    recipe = tiny_recipe("trainer.accumulate=auto", "model.name=resnet18", "model.options={}")
    assert sizing.choose_batches(recipe).trainer.accumulate == 1


def test_all_settings_of_an_elastic_step_are_in_memory_at_once() -> None:
    def per_image(*overrides: str) -> float:
        recipe = tiny_recipe(*overrides)
        return memory_for(1, recipe) - memory_for(0, recipe)

    elastic = "model.elastic={group_sizes: [[4], [4], [2], [1]], draw: [largest, largest, largest]}"
    assert per_image(elastic) > 2.7 * per_image()


def test_only_auto_and_positive_numbers_are_counts() -> None:
    with pytest.raises(
        ValueError, match=r"trainer\.accumulate: must be a positive number or auto \(given: 0\)"
    ):
        tiny_recipe("trainer.accumulate=0")
    with pytest.raises(ValueError, match=r"trainer\.batch_size"):
        tiny_recipe("trainer.batch_size=many")
    assert tiny_recipe("trainer.accumulate=auto").model_dump()["trainer"]["accumulate"] == "auto"
