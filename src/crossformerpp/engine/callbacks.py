"""What happens around the steps of a run: seeding, saving, stopping, logging."""

import math
import signal
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from crossformerpp.analysis.pictures import draw_learning_curve
from crossformerpp.data.names import safe_name
from crossformerpp.data.sampling import seed_generators
from crossformerpp.data.writing import replacing, write_picture
from crossformerpp.engine.files import MetricsTable, RunFolder
from crossformerpp.engine.loggers import log_picture
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan

_SUMS = "crossformerpp_log"  # under which a checkpoint keeps the row of metrics.csv that is being summed up


class LossNotFiniteError(ValueError):
    """The loss became infinite or NaN."""


class TrainingInterruptedError(Exception):
    """Someone asked the run to stop; it can be resumed."""


def at_step_end(trainer: pl.Trainer) -> bool:
    """Whether the batch that just ended completed an optimiser step, rather than only accumulating."""
    return (trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0


class SeedEachBatch(Callback):
    """Makes dropout, drop path and mixup functions of (seed, process, batch number), hence resumable."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        seed_generators(self.seed, trainer.global_rank, trainer.fit_loop.total_batch_idx)


class LossGuard(Callback):
    """Stops a run whose loss is no number.

    The check stays on the device; the host looks at it only now and then, and before each save, so that a
    checkpoint never holds spoilt weights.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.first_bad: Tensor | None = None  # step, or infinity

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, TaskModule)
        loss = pl_module.losses["loss"]
        step = torch.where(loss.isfinite(), math.inf, float(trainer.global_step))
        self.first_bad = step if self.first_bad is None else torch.minimum(self.first_bad, step)
        if loss.device.type == "cpu":
            self.check()

    def check(self, trainer: pl.Trainer | None = None) -> None:
        """Of this process, or of all of the trainer's: gradients are shared, and so is what spoils them.

        Raises:
            LossNotFiniteError: Names the step and the last good checkpoint.
        """
        step = math.inf if self.first_bad is None else self.first_bad.item()
        is_bad = math.isfinite(step)
        if trainer is not None:
            is_bad = trainer.strategy.reduce_boolean_decision(is_bad, all=False)
        if is_bad:
            place = f"at step {step:.0f}" if math.isfinite(step) else "in another process"
            good = (
                f"the last good checkpoint is {self.run.last}"
                if self.run.last.exists()
                else "none was saved yet"
            )
            raise LossNotFiniteError(
                f"the loss is not a number {place}; {good}. A lower optim.lr, a longer warm-up or "
                "trainer.precision=32-true may help"
            )


class Saver(Callback):
    """last.ckpt every few steps and around each evaluation; best.ckpt by the task's metric.

    A checkpoint that was saved before its evaluation is marked, and resuming from it begins with that.
    """

    def __init__(self, run: RunFolder, every: int, eval_every: int, steps: int, guard: LossGuard) -> None:
        self.run, self.every, self.eval_every, self.steps, self.guard = run, every, eval_every, steps, guard
        self.best: float | None = None
        self.evaluated_step = 0
        self.saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "evaluated_step": self.evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.evaluated_step = state_dict["best"], state_dict["evaluated_step"]

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows this step; one follows the last."""
        return step % self.eval_every == 0 or step == self.steps

    def is_pending(self, step: int) -> bool:
        """Whether the run stopped between this step and the evaluation that follows it."""
        return step > 0 and self.is_evaluated(step) and self.evaluated_step < step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_pending(trainer.global_step):
            # Lightning would go on to the next batch; this is how its own loop evaluates
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if at_step_end(trainer) and (step % self.every == 0 or self.is_evaluated(step)):
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        value = pl_module.result
        self.evaluated_step = trainer.global_step
        is_best = self.best is None or value >= self.best  # of equals the one trained longer
        if is_best:
            self.best = value
        if trainer.state.fn == "fit":
            self.save(trainer)
        if is_best and trainer.is_global_zero:
            self.run.keep_as_best()
        trainer.strategy.barrier()  # the other processes shall not look for best.ckpt too early

    def save(self, trainer: pl.Trainer) -> None:
        """Save last.ckpt, if the weights are sound."""
        self.guard.check(trainer)
        if trainer.is_global_zero:
            self.run.lock.check()
        trainer.save_checkpoint(self.run.last)
        self.saved_step = trainer.global_step


class StopOnSignal(Callback):
    """Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; a second one at once.

    Of several processes all stop after the same step, whichever was asked. torchrun passes a Ctrl-C on to
    processes that have it from the terminal already, so a second one within `PATIENCE` is the same one.
    """

    PATIENCE = 2.0  # seconds
    GPU_EVERY = 10  # steps between the processes' looks at each other: each makes a GPU wait

    def __init__(self, saver: Saver) -> None:
        self.saver = saver
        self.asked = False
        self._when = 0.0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            # else Lightning has restored what was there before the run
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._previous.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if at_step_end(trainer) and self._is_asked(trainer):
            self.saver.save(trainer)
            raise TrainingInterruptedError

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        if trainer.strategy.root_device.type == "cuda" and trainer.global_step % self.GPU_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # the step before was saved, marked as not yet evaluated; several processes stop after the next step
        if self.asked and trainer.world_size == 1:
            raise TrainingInterruptedError

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._when > self.PATIENCE:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._when = True, now


class Log(Callback):
    """metrics.csv, the loggers and the learning curve."""

    def __init__(self, run: RunFolder, plan: Plan, every: int) -> None:
        self.run, self.plan, self.every = run, plan, every
        self.table = MetricsTable(run.metrics_csv)
        self._sums: dict[str, Tensor] = {}
        self._steps: tuple[int, dict[str, Tensor]] = (
            0,
            {},
        )  # batches and sums without a step that is not done
        self._batches = 0  # in the sums,
        self._timed = 0  # and of these since `_since`, in this process
        self._since = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The sums of the row that is not yet written: it shall not begin with the resumption."""
        batches, totals = self._steps
        sums = {
            name: trainer.strategy.reduce(total.clone(), reduce_op="mean").cpu()
            for name, total in totals.items()
        }
        checkpoint[_SUMS] = {
            "batches": batches,
            "sums": sums,
            "accumulate": trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.table.load(until_step=checkpoint["global_step"])
        begun = checkpoint.get(_SUMS, {"batches": 0, "sums": {}})
        self._batches, self._sums = begun["batches"], dict(begun["sums"])
        if (before := begun.get("accumulate", 1)) != (now := trainer.accumulate_grad_batches) and before:
            self._batches = self._batches * now // before  # as many steps
            self._sums = {name: total * (now / before) for name, total in self._sums.items()}
        self._steps = self._batches, dict(self._sums)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
        self._sums = {name: total.to(pl_module.device) for name, total in self._sums.items()}
        self._steps = self._batches, dict(self._sums)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, TaskModule)
        for name, value in pl_module.losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._batches += 1
        self._timed += 1
        if not at_step_end(trainer):
            return
        if trainer.global_step % self.every == 0:
            self._write(trainer, self._train_row(trainer, pl_module))
        self._steps = self._batches, dict(self._sums)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        assert pl_module.last_evaluation is not None
        row = self._row(trainer)
        row |= {f"val_{name}": value for name, value in pl_module.last_evaluation.metrics.items()}
        self._write(trainer, row)
        if trainer.is_global_zero:
            with replacing(self.run.curve) as file:
                draw_learning_curve(self.table.rows, pl_module.monitor).savefig(file, dpi=100, format="png")
            self._show(trainer, pl_module.pictures())
        self._since += time.perf_counter() - self._paused

    def _show(self, trainer: pl.Trainer, pictures: dict[str, Image.Image]) -> None:
        for name, picture in pictures.items():
            write_picture(self.run.path / f"{safe_name(name)}.png", picture)
            for logger in trainer.loggers:
                log_picture(logger, name, picture, trainer.global_step)

    def _row(self, trainer: pl.Trainer) -> dict[str, float]:
        step = trainer.global_step
        return {"step": step, "epoch": round(step / self.plan.steps_per_epoch, 4)}

    def _train_row(self, trainer: pl.Trainer, module: TaskModule) -> dict[str, float]:
        row = self._row(trainer)
        for name, total in self._sums.items():
            mean = trainer.strategy.reduce(total / self._batches, reduce_op="mean")
            row["train_loss" if name == "loss" else f"train_{name}"] = float(mean)
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        now = time.perf_counter()
        per_batch = module.recipe.trainer.batch_size / trainer.accumulate_grad_batches
        row["samples_per_second"] = self._timed * per_batch / (now - self._since)
        self._sums, self._batches, self._timed, self._since = {}, 0, 0, now
        return row

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        self.table.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, int(row["step"]))
