"""The progress bar of a run, on stderr: epoch, step, loss, speed, time left; a line per evaluation."""

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crossformerpp.engine.callbacks import at_step_end
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan


class ProgressBar(Callback):
    """rich's bar in a terminal; elsewhere (a log file, CI) only the line per evaluation.

    Args:
        goes_on: Whether the run's summary was printed before memory ran out.
    """

    def __init__(self, plan: Plan, goes_on: bool = False) -> None:
        self.plan, self.goes_on = plan, goes_on
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.training: TaskID | None = None
        self.evaluating: TaskID | None = None
        self._clock, self._count, self._speed = time.perf_counter(), 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        if trainer.is_global_zero and not self.goes_on:
            self.console.print(
                summary(trainer, pl_module, self.plan), markup=False, highlight=False, soft_wrap=True
            )
        self._start(trainer)
        if self.bar is not None:
            self.training = self.bar.add_task(
                "train", total=self.plan.steps, completed=trainer.global_step, detail=""
            )
        self._clock = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TaskModule)
        if not at_step_end(trainer):
            return
        self._count += pl_module.recipe.trainer.batch_size
        elapsed = time.perf_counter() - self._clock
        if self.bar is None or self.training is None:
            self._speed = self._count / elapsed
            return
        if elapsed < 0.5 and trainer.global_step < self.plan.steps:
            return  # reading the loss makes a GPU wait, so rarely
        self._speed, self._count, self._clock = self._count / elapsed, 0, time.perf_counter()
        epoch = trainer.global_step / self.plan.steps_per_epoch
        total = self.plan.steps / self.plan.steps_per_epoch
        loss = pl_module.losses["loss"].item()
        detail = f"epoch {epoch:.1f}/{total:.0f}  loss {loss:.4f}  {self._speed:.0f} img/s"
        self.bar.update(self.training, completed=trainer.global_step, detail=detail)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)
        if self.bar is not None:
            total = sum(int(count) for count in trainer.num_val_batches)
            self.evaluating = self.bar.add_task("evaluate", total=total, detail="")

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.bar is not None and self.evaluating is not None:
            self.bar.advance(self.evaluating)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        if self.bar is not None and self.evaluating is not None:
            self.bar.remove_task(self.evaluating)
            self.evaluating = None
        if trainer.state.fn == "fit" and trainer.is_global_zero and pl_module.last_evaluation is not None:
            epoch = trainer.global_step / self.plan.steps_per_epoch
            metrics = pl_module.last_evaluation.metrics
            shown = "  ".join(
                f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float)
            )
            line = (
                f"epoch {epoch:.4g} (step {trainer.global_step}): {shown}{self._outlook(trainer, pl_module)}"
            )
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._clock, self._count = time.perf_counter(), 0

    def _outlook(self, trainer: pl.Trainer, module: TaskModule) -> str:
        if not self._speed:
            return ""
        samples = (self.plan.steps - trainer.global_step) * module.recipe.trainer.batch_size
        left = timedelta(seconds=round(samples / self._speed))
        return f"  ({self._speed:.0f} img/s" + (f", {left} of training left)" if samples else ")")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _start(self, trainer: pl.Trainer) -> None:
        if self.bar is None and trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self.bar.start()


def summary(trainer: pl.Trainer, module: TaskModule, plan: Plan) -> str:
    """What is about to be trained: parts of the model, length, processes."""
    section = module.recipe.trainer
    parts = [
        f"{name} {_count(sum(p.numel() for p in part.parameters()))}"
        for name, part in module.model.named_children()
    ]
    total = sum(p.numel() for p in module.model.parameters())
    trainable = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    device = trainer.strategy.root_device.type
    return (
        f"{module.recipe.model.name}: {_count(total)} parameters ({', '.join(parts)}), {_count(trainable)} "
        f"trainable; {len(module.class_names)} classes\n"
        f"{plan.steps} steps of {section.batch_size} images, {plan.steps_per_epoch} an epoch; "
        f"{trainer.world_size} process(es) on {device}, {trainer.precision}"
    )


def _count(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number:,}"
