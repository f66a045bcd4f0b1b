"""`crossformer train … --minutes 20`: as many steps as the time allows, and a schedule of that length."""

import math
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from crossformerpp.data.sampling import num_samples
from crossformerpp.engine.callbacks import TrainingInterruptedError, at_step_end
from crossformerpp.engine.files import RunFolder
from crossformerpp.engine.fitting import fit
from crossformerpp.engine.loaders import RunData
from crossformerpp.engine.memory import with_accumulation
from crossformerpp.engine.preparing import prepare
from crossformerpp.engine.processes import is_first
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan

WARM_UP, LEAST_STEPS = 2, 5  # steps that are not timed, and those that are at least
TRIAL_STEPS = 1_000_000  # at most
TRIAL_SHARE, TRIAL_SECONDS = 0.03, 30.0  # of the time, and at most, for more timed steps
RESERVE = 0.08  # of the time: steps may become slower than they were in the trial
EVALUATION_SHARE = 0.2  # of the time, at most, where the recipe evaluates more than once


@dataclass(frozen=True)
class Times:
    """Seconds of a step, of an evaluation with what is saved and drawn, until data and model are open, and since the
    time began."""

    step: float
    evaluation: float
    opening: float
    spent: float


class Stopwatch(Callback):
    """Times the steps of a trial and the evaluation after them, and ends it. All processes take the first one's times,
    for they must plan alike."""

    def __init__(self, seconds: float, opening: float, began: float) -> None:
        self.seconds, self.opening, self.began = seconds, opening, began
        self.times: Times | None = None
        self._marks: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._marks.clear()  # memory ran out: steps are taken in more batches from here on

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not at_step_end(trainer):
            return
        if trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()  # steps are handed over long before they are done
        self._marks.append(time.monotonic())
        timed = len(self._marks) - WARM_UP
        is_enough = timed > LEAST_STEPS and self._marks[-1] - self._marks[WARM_UP] >= self.seconds
        if trainer.strategy.reduce_boolean_decision(is_enough, all=False):
            trainer.should_stop = True  # after an evaluation

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = (self._marks[-1] - self._marks[WARM_UP]) / (len(self._marks) - WARM_UP - 1)
        now = time.monotonic()
        found = (step, now - self._marks[-1], self.opening, now - self.began)
        self.times = Times(*trainer.strategy.broadcast(found))


def plan_run(recipe: BaseRecipe, minutes: float, began: float) -> tuple[BaseRecipe, dict[str, Any]]:
    """The recipe for the time, and what run.json notes of the plan.

    Args:
        began: When the time began, by the monotonic clock.

    Raises:
        ValueError: As `prepare`, or there is too little time.
    """
    opened = time.monotonic()
    module, data = prepare(trial_of(recipe), is_trial=True)
    opening = time.monotonic() - opened
    assert data.train is not None
    whole = Plan.of(recipe.trainer, num_samples(data.train))
    seconds = min(TRIAL_SECONDS, TRIAL_SHARE * 60 * minutes)
    times = measure(module, data, Stopwatch(seconds, opening, began))
    # memory may have run out in the trial
    recipe = with_accumulation(recipe, module.recipe.trainer.accumulate)
    planned = plan_for(recipe, whole, minutes, times)
    plan = {"minutes": minutes, "steps": planned.trainer.steps, "seconds": asdict(times)}
    return planned, {"plan": plan}


def trial_of(recipe: BaseRecipe) -> BaseRecipe:
    """The recipe of a trial: long enough, with an evaluation in the end alone, and without loggers."""
    values = recipe.model_dump()
    length = {"epochs": None, "steps": TRIAL_STEPS, "eval_every": TRIAL_STEPS, "checkpoint_every": None}
    values["trainer"] |= length | {"patience": None, "inside_every": None, "loggers": []}
    values["schedule"] = {"name": "constant"}
    return parse_recipe(values, "of the trial")


def measure(module: TaskModule, data: RunData, watch: Stopwatch) -> Times:
    """The times of a run, from a trial of it in a folder that does not stay.

    Args:
        module: Is trained, and of no use afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="crossformer-trial-") as folder:
        run = RunFolder(Path(folder))
        run.last.parent.mkdir()
        with run.lock:
            try:
                fit(module, data, run, trial=watch)
            except TrainingInterruptedError:
                raise KeyboardInterrupt from None
    assert watch.times is not None
    return watch.times


def plan_for(recipe: BaseRecipe, whole: Plan, minutes: float, times: Times) -> BaseRecipe:
    """The recipe shortened or lengthened to end within the time, its schedule and its evaluations with it.

    Args:
        whole: The recipe's own length.

    Raises:
        ValueError: Not even one step and the evaluations fit.
    """
    steps, every = _length(recipe, whole, 60 * minutes * (1 - RESERVE) - times.spent, times)
    if steps < 1:
        least = (times.spent + times.step + 2 * times.opening + 2 * times.evaluation) / (1 - RESERVE) / 60
        raise ValueError(
            f"--minutes {minutes:g} is too short: a step takes {times.step:.2g} s and an evaluation "
            f"{times.evaluation:.2g} s, of which there are two; pass --minutes {math.ceil(10 * least) / 10:g} or more"
        )
    ratio = steps / whole.steps
    values = recipe.model_dump()
    schedule, trainer = values["schedule"], values["trainer"]
    per_unit = whole.in_steps(recipe.trainer, 1)
    warmup = schedule["warmup_steps"] or round((schedule["warmup_epochs"] or 0) * whole.steps_per_epoch)
    marks = {max(1, round(mark * per_unit * ratio)) for mark in schedule["milestones"]}
    schedule |= {
        "warmup_epochs": None,
        "warmup_steps": min(round(warmup * min(1.0, ratio)), steps - 1),
        "update": "step",
        "milestones": sorted(marks),
    }
    trainer |= {"epochs": None, "steps": steps, "eval_every": every, "minutes": minutes}
    if is_first():
        end = datetime.now() + timedelta(seconds=60 * minutes - times.spent)
        print(
            f"plan for {minutes:g} minutes: {steps:,} steps ({steps / whole.steps_per_epoch:.3g} epochs) of "
            f"{times.step:.3g} s, an evaluation every {every:,} of {times.evaluation:.3g} s; done by {end:%H:%M:%S}",
            file=sys.stderr,
        )
    return parse_recipe(values, f"planned for {minutes:g} minutes")


def _length(recipe: BaseRecipe, whole: Plan, seconds: float, times: Times) -> tuple[int, int]:
    """Steps, and steps between evaluations."""
    section = recipe.trainer
    every = whole.in_steps(section, section.eval_every) if section.eval_every else whole.steps_per_epoch
    left = (
        seconds - 2 * times.opening - times.evaluation
    )  # of the run, and of its result with tables and pictures
    steps = int(left / (times.step + times.evaluation / every))
    most = max(1, int(EVALUATION_SHARE * seconds / times.evaluation))
    if steps < every or steps // every > most:  # fewer evaluations, the last at the end
        count = 1 if steps < every else most
        steps = int((left - count * times.evaluation) / times.step)
        every = max(1, -(-steps // count))
    return steps, every
