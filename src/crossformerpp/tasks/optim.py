"""timm's optimisers and schedules, as a recipe asks for them."""

from dataclasses import dataclass

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from crossformerpp.recipes.schema import BaseRecipe, TrainerSection


@dataclass(frozen=True)
class Plan:
    """How long a run is, counted in optimiser steps."""

    steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, trainer: TrainerSection, num_samples: int) -> "Plan":
        """The plan for a training set; incomplete batches at the end of an epoch are left out."""
        steps_per_epoch = max(1, num_samples // trainer.batch_size)
        return cls(trainer.steps or (trainer.epochs or 0) * steps_per_epoch, steps_per_epoch)

    def in_steps(self, trainer: TrainerSection, amount: int) -> int:
        """An amount of the trainer's unit (epochs, or steps) in steps."""
        return amount if trainer.steps else amount * self.steps_per_epoch


def build_optimizer(model: nn.Module, recipe: BaseRecipe) -> Optimizer:
    """The recipe's optimiser, with timm's groups: no decay on norms, biases and `no_weight_decay()`.

    Raises:
        ValueError: timm knows no such optimiser, or it takes no such option.
    """
    section = recipe.optim
    lr = section.lr
    if section.lr_batch_size is not None:
        lr *= recipe.trainer.batch_size / section.lr_batch_size
    try:
        return create_optimizer_v2(
            model,
            opt=section.name,
            lr=lr,
            weight_decay=section.weight_decay,
            layer_decay=section.layer_decay,
            **section.options,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"optim: {error}") from None


def build_schedule(optimizer: Optimizer, recipe: BaseRecipe, plan: Plan) -> Scheduler:
    """timm's schedule; a pure function of the step (or epoch), so that it has no state to lose.

    Raises:
        ValueError: The warm-up is as long as the run, or units are mixed that do not go together.
    """
    section, trainer = recipe.schedule, recipe.trainer
    # how many of timm's units, which are steps or epochs, a unit of the trainer and an epoch have
    if section.update == "step":
        length, per_unit, per_epoch = plan.steps, plan.in_steps(trainer, 1), plan.steps_per_epoch
    elif trainer.epochs is not None and section.warmup_steps is None:
        length, per_unit, per_epoch = trainer.epochs, 1, 1
    else:
        raise ValueError("schedule: update=epoch goes with trainer.epochs and without warmup_steps")
    warmup = section.warmup_steps or round((section.warmup_epochs or 0) * per_epoch)
    if warmup >= length:
        unit = "steps" if section.update == "step" else "epochs"
        key = "warmup_steps" if section.warmup_steps else "warmup_epochs"
        raise ValueError(
            f"schedule: the warm-up takes {warmup} {unit}, and the whole run has {length}; train for longer, or "
            f"say --set schedule.{key}=0"
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=section.name,
        num_epochs=length,
        # timm lowers the rate one unit before the milestone
        decay_milestones=[milestone * per_unit + 1 for milestone in section.milestones],
        decay_rate=section.power if section.name == "poly" else section.factor,
        min_lr=section.min_lr,
        warmup_lr=section.warmup_lr,
        warmup_epochs=warmup,
        step_on_epochs=section.update == "epoch",
        updates_per_epoch=1,
    )
    return scheduler
