"""Running out of memory: the same steps, taken in more batches.

A step that does not fit is dropped before it changed anything, the run is saved as it was before the step, and goes on
from there as one that was interrupted and resumed with a larger `trainer.accumulate`: its steps have the same samples
with the same augmentation. Batch norms see the images of a batch together, so that more batches would train another
network: their runs end with a message.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossformerpp.data.names import read_json
from crossformerpp.data.writing import write_json
from crossformerpp.engine.callbacks import Saver
from crossformerpp.engine.files import RunFolder
from crossformerpp.recipes.load import apply_overrides, dump_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.memory import is_out_of_memory
from crossformerpp.tasks.module import TaskModule

NOTES = "accumulate"  # under which run.json says which accumulation the steps had
GUARDED = 3  # steps in which several processes look at each other: memory rarely runs out in later ones


class MemoryWatch(Callback):
    """Sees memory run out, and what to do: `refusal` says why nothing helps; else the run goes on (`goes_on`), and the
    module's recipe has a larger `trainer.accumulate` from step `step` on.

    Of several processes (DDP) all take the same decision. An exchange of gradients that one of them never joins cannot
    be taken back, so in the first steps, and in those after a change, gradients are exchanged once all have theirs.
    """

    def __init__(self, run: RunFolder, start_step: int) -> None:
        self.run = run
        self.saver: Saver | None = None
        self.step = 0
        self.goes_on = False
        self.refusal: str | None = None
        self._changes = [0, start_step]  # what all processes know alike, unlike the run's notes
        self._is_updating = False  # the weights may be half changed
        self._is_agreed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        self._is_updating = self._is_agreed = False
        pl_module.around_gradients = lambda closure: self._watched(trainer, pl_module, closure)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self._is_updating and self._is_guarded(trainer):  # a batch of several of a step
            self._agree(trainer, None)
        self._is_updating = False

    def _watched(self, trainer: pl.Trainer, module: nn.Module, closure: Callable[[], Any]) -> Any:
        """Compute gradients, exchanging them where that is not left to DDP."""
        if not self._is_guarded(trainer):
            result = closure()
            self._is_updating = True
            return result
        error, result = None, None
        try:
            with trainer.strategy.block_backward_sync():  # type: ignore[attr-defined]
                result = closure()
        except RuntimeError as found:
            if not is_out_of_memory(found):
                raise
            error = found
        self._agree(trainer, error)
        for parameter in module.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad.div_(trainer.world_size))
        self._is_updating = True
        return result

    def _is_guarded(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        return (
            trainer.world_size > 1
            and isinstance(trainer.strategy, DDPStrategy)
            and any(begin <= step < begin + GUARDED for begin in self._changes)
            # batch norms may exchange statistics, and their batches cannot be divided
            and not has_batch_norm(trainer.lightning_module)
        )

    def _agree(self, trainer: pl.Trainer, error: BaseException | None) -> None:
        """
        Raises:
            torch.OutOfMemoryError: Here or in another process.
        """
        if trainer.strategy.reduce_boolean_decision(error is not None, all=False):
            self._is_agreed = True
            raise error or torch.OutOfMemoryError("another process ran out of memory")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if not is_out_of_memory(exception):
            return
        assert isinstance(pl_module, TaskModule)
        if trainer.training and not self._is_agreed and not self._is_updating and self._is_guarded(trainer):
            trainer.strategy.reduce_boolean_decision(
                True, all=False
            )  # the others are at `on_train_batch_end`
            self._is_agreed = True
        self.refusal = self._refusal(trainer, pl_module)
        if self.refusal is not None:
            self.refusal += f" ({str(exception).strip().splitlines()[0]})"
            return
        before, after = pl_module.recipe.trainer.accumulate, next_accumulation(pl_module, trainer.world_size)
        assert after is not None
        self.goes_on, self.step = True, trainer.global_step
        self._changes.append(self.step)
        pl_module.recipe = with_accumulation(pl_module.recipe, after)
        if trainer.is_global_zero:
            print(
                f"out of memory at step {self.step + 1}: its images are taken in {after} batches instead of {before}, "
                "and so are those of all later steps",
                file=sys.stderr,
            )
            self.run.write_recipe(dump_recipe(pl_module.recipe))
            note_accumulation(self.run, self.step, after)
        if self.step:
            assert self.saver is not None
            self.saver.save(trainer)

    def _refusal(self, trainer: pl.Trainer, module: TaskModule) -> str | None:
        """Why the run cannot go on; None if it can."""
        section, step = module.recipe.trainer, trainer.global_step + 1
        together = section.batch_size // (trainer.world_size * section.accumulate)
        goes_on = f"; `crossformer train --resume {self.run.path}` goes on" if self.run.last.is_file() else ""
        if not trainer.training:
            return f"out of memory in an evaluation: pass --set trainer.eval_batch_size=1{goes_on}"
        if self._is_updating:
            return (
                f"out of memory at step {step}, when its gradients were applied: more batches to a step do not help, "
                f"a smaller model or another optim.name does{goes_on}"
            )
        after = next_accumulation(module, trainer.world_size)
        if after is None:
            return (
                f"out of memory at step {step} with {together} image(s) at once, which are the fewest possible: pass "
                "smaller images, a smaller model or --set model.grad_checkpointing=true"
            )
        by_hand = f"pass --set trainer.accumulate={after}{goes_on}"
        if has_batch_norm(module):
            return (
                f"out of memory at step {step} with {together} image(s) at once. The model has batch norms, which "
                f"fewer images at once would train otherwise, so that this is for you to decide: {by_hand}"
            )
        if trainer.world_size > 1 and not self._is_agreed:
            return f"out of memory at step {step} in one of {trainer.world_size} processes: {by_hand}"
        return None


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module that is in training has batch norms that learn their statistics."""
    return any(isinstance(part, _BatchNorm) and part.training for part in module.modules())


def next_accumulation(module: TaskModule, world: int) -> int | None:
    """The least accumulation that is at least twice that of the recipe and possible; None if there is none."""
    section = module.recipe.trainer
    return least_accumulation(module, world, 2 * section.accumulate)


def least_accumulation(module: TaskModule, world: int, least: int) -> int | None:
    """The least possible accumulation from `least` on."""
    samples = module.recipe.trainer.batch_size // world
    for count in range(least, samples + 1):
        if samples % count == 0 and samples // count % module.batch_multiple == 0:
            return count
    return None


def with_accumulation(recipe: BaseRecipe, accumulate: int) -> BaseRecipe:
    """The same recipe with another `trainer.accumulate`."""
    values = recipe.model_dump()
    apply_overrides(values, [f"trainer.accumulate={accumulate}"])
    return parse_recipe(values, "of the run")


def note_accumulation(run: RunFolder, step: int, accumulate: int) -> None:
    """Note in run.json that the steps after `step` have this accumulation; what is noted of later steps is void."""
    about = read_json(run.about) if run.about.is_file() else {}
    about = about if isinstance(about, dict) else {}
    notes = [[at, count] for at, count in noted_accumulation(run) if at < step]
    write_json(run.about, about | {NOTES: [*notes, [step, accumulate]]})


def noted_accumulation(run: RunFolder) -> list[tuple[int, int]]:
    """What run.json notes: from which step on which accumulation, in order."""
    about = read_json(run.about) if run.about.is_file() else {}
    notes = about.get(NOTES) if isinstance(about, dict) else None
    return [(step, count) for step, count in notes] if isinstance(notes, list) else []
