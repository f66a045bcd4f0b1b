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
        ValueError: The warm-up is as long as the run.
    """
    section, trainer = recipe.schedule, recipe.trainer
    # timm counts in epochs of `updates` steps; a run that is measured in steps has epochs of one step
    epochs, updates = (trainer.epochs, plan.steps_per_epoch) if trainer.epochs else (trainer.steps, 1)
    assert epochs is not None
    warmup = section.warmup_epochs or 0
    if section.warmup_steps is not None:
        warmup = section.warmup_steps / updates
    elif section.warmup_epochs is not None and trainer.steps is not None:
        warmup = section.warmup_epochs * plan.steps_per_epoch
    if warmup >= epochs:
        raise ValueError(f"schedule: the warm-up is as long as the run ({plan.steps} steps)")
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=section.name,
        num_epochs=epochs,
        decay_milestones=section.milestones,
        decay_rate=section.power if section.name == "poly" else section.factor,
        min_lr=section.min_lr,
        warmup_lr=section.warmup_lr,
        warmup_epochs=warmup,  # type: ignore[arg-type]  # a fraction is fine: it is only multiplied
        step_on_epochs=section.update == "epoch",
        updates_per_epoch=updates,
    )
    return scheduler
