"""What a run needs before it begins: its data, its model, and what is to be said of them."""

import sys
from typing import Any

import torch

from crossformerpp.data.names import printable, without_controls
from crossformerpp.data.sampling import num_samples
from crossformerpp.data.split import Split
from crossformerpp.engine import processes
from crossformerpp.engine.changes import data_mark
from crossformerpp.engine.loaders import RunData, first_batch
from crossformerpp.engine.loggers import check_loggers
from crossformerpp.engine.processes import is_first
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan


def prepare(
    recipe: BaseRecipe, class_names: list[str] | None = None, *, is_trial: bool = False
) -> tuple[TaskModule, RunData]:
    """Open the data and build the model: what is wrong with them is known before anything is written.

    Args:
        is_trial: Say nothing of what was found; the run itself says it.
    """
    task = find_task(recipe.task)
    train_split = task.split(recipe, "train", class_names)
    val_split = task.split(recipe, "val", train_split.class_names)
    plan = Plan.of(recipe.trainer, num_samples(train_split))
    if recipe.trainer.overfit_batch:
        train_split = first_batch(train_split, recipe.trainer)
    if not is_trial:
        say_found(train_split, val_split)
    require_enough(val_split, processes.world(recipe.trainer))
    marks = {"train": data_mark(train_split), "val": data_mark(val_split)}
    data = RunData(recipe.trainer, val_split, train_split, plan)
    data.stream(rank=0, world=processes.world(recipe.trainer))  # refuses a batch that cannot be
    processes.settings(recipe)  # for its errors,
    check_loggers(recipe.trainer)  # and for theirs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.trainer.seed)
        module = task.module(recipe, train_split.class_names)
    module.meet(train_split)
    module.plan, module.data_marks = plan, marks
    module.configure_optimizers()  # for its errors
    return module, data


def require_enough(val: Split, world: int) -> None:
    """
    Raises:
        ValueError: A process would have no image to evaluate.
    """
    if num_samples(val) < world:
        raise ValueError(
            f"{num_samples(val)} validation images for {world} processes: use {num_samples(val)} or fewer"
        )


def sizes(module: TaskModule, data: RunData) -> dict[str, Any]:
    """Of the data and the model, for run.json."""
    assert data.train is not None
    return {
        "model": module.recipe.model.name,
        "params": sum(parameter.numel() for parameter in module.model.parameters()),
        "classes": len(module.class_names),
        "train_samples": num_samples(data.train),
        "train_counts": dict(data.train.counts),
        "val_samples": num_samples(data.val),
        "started_from": module.started_from and module.started_from.to_json(),
        "processes": processes.world(module.recipe.trainer),
    }


def say_found(train: Split | None, val: Split) -> None:
    """Say on stderr what a folder of data was taken for; nothing of built-in data."""
    if val.found and is_first():
        counts = f"{num_samples(val)} val images"
        if train is not None:
            drawn = ", split at random" if train.is_drawn else ""
            counts = f"{num_samples(train)} train / {counts}{drawn}"
        text = f"found: {val.found}, {counts}, {len(val.class_names)} classes"
        print(without_controls(printable(text)), file=sys.stderr)
