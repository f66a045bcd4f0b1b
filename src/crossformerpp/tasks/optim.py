"""timm's optimisers and schedules, built from a recipe."""

from dataclasses import dataclass
from typing import Any

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
    """The recipe's optimiser, with parameter groups as `optim.undecayed` requires.

    Raises:
        ValueError: timm knows no such optimiser, or it takes no such option.
    """
    section = recipe.optim
    try:
        return create_optimizer_v2(
            model,
            opt=section.name,
            lr=section.lr * batch_factor(recipe),
            weight_decay=section.weight_decay,
            layer_decay=section.layer_decay,
            filter_bias_and_bn=section.undecayed == "vectors",
            param_group_fn=_without_norms if section.undecayed == "norms" else None,
            **section.options,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"optim: {error}") from None


def batch_factor(recipe: BaseRecipe) -> float:
    """The factor by which the batch size scales the recipe's rates."""
    reference = recipe.optim.lr_batch_size
    return 1.0 if reference is None else recipe.trainer.batch_size / reference


def _without_norms(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: the backbone's norms, which are not decayed, and everything else.

    In the released UPerNet they are the parameters with `norm` in their name. There are none in the head (`bn`), in
    cooling layers (`ex_ln`) and in position biases.
    """
    has_backbone = any(name == "backbone" for name, _ in model.named_children())
    spared: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_inside = name.startswith("backbone.") or not has_backbone
        is_norm = is_inside and "norm" in name and ".cooling." not in name
        (spared if is_norm else decayed).append(parameter)
    return [{"params": spared, "weight_decay": 0.0}, {"params": decayed}]


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
            f"pass --set schedule.{key}=0"
        )
    scale = batch_factor(recipe) if section.scale_with_batch else 1.0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=section.name,
        num_epochs=length,
        # timm lowers the rate one unit before the milestone
        decay_milestones=[milestone * per_unit + 1 for milestone in section.milestones],
        decay_rate=section.power if section.name == "poly" else section.factor,
        min_lr=section.min_lr * scale,
        warmup_lr=section.warmup_lr * scale,
        warmup_epochs=warmup,
        step_on_epochs=section.update == "epoch",
        updates_per_epoch=1,
    )
    return scheduler
