"""When a run ends before its last step: no better result for a while, or its time is over."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from crossformerpp.engine.callbacks import Saver, StopOnSignal, at_step_end
from crossformerpp.recipes.schema import TrainerSection
from crossformerpp.tasks.module import TaskModule


class EarlyEnd(Callback):
    """Ends a run properly, with its evaluation and result, after `trainer.patience` evaluations without a better one,
    or in time for `trainer.minutes`.

    It stands before the `Saver`, so that a checkpoint holds what it has counted: a resumed run goes on counting.
    Lightning's EarlyStopping reads logged metrics, which this engine has not, and takes its patience from the
    checkpoint rather than from the recipe.
    """

    def __init__(self, section: TrainerSection, saver: Saver, began: float) -> None:
        self.patience = section.patience
        self.seconds = None if section.minutes is None else 60 * section.minutes
        self.saver = saver
        self.best: float | None = None
        self.waited = 0  # evaluations since the best one
        self.ended_at: int | None = None  # step at which the time was over
        self._before = 0.0  # seconds, of the run's earlier sittings
        self._began = began
        self._evaluating = 0.0  # seconds, of the longest evaluation
        self._evaluation_began = 0.0

    @property
    def spent(self) -> float:
        """Seconds that the run took, over all of its sittings."""
        return self._before + time.monotonic() - self._began

    @property
    def reason(self) -> str | None:
        """Why the run ends early; None if it does not."""
        if self.patience is not None and self.waited >= self.patience:
            return f"{self.waited} evaluations in a row brought no better result (trainer.patience)"
        if self.seconds is not None and self.ended_at is not None:
            return f"its {self.seconds / 60:g} minutes are over (trainer.minutes)"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "waited": self.waited,
            "ended_at": self.ended_at,
            "seconds": self.spent,
            "evaluating": self._evaluating,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self._before, self._evaluating = state_dict["seconds"], state_dict["evaluating"]
        if self.seconds is not None and self._before + 2 * self._evaluating >= self.seconds:
            self.ended_at = state_dict["ended_at"]  # more minutes may have been given since
        if self.ended_at is not None:
            self.saver.steps = self.ended_at  # an evaluation follows this step, if it has not yet

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._obey(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.seconds is None or not at_step_end(trainer) or trainer.global_step == self.saver.steps:
            return
        if self._is_time_over(trainer):
            self.ended_at = self.saver.steps = trainer.global_step  # an evaluation follows
            self._obey(trainer)

    def _is_time_over(self, trainer: pl.Trainer) -> bool:
        assert self.seconds is not None
        # this run's last evaluation and that of its result are still to come
        is_over = self.spent + 2 * self._evaluating >= self.seconds
        if trainer.world_size == 1:
            return is_over
        if trainer.strategy.root_device.type == "cuda" and trainer.global_step % StopOnSignal.GPU_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(is_over, all=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        self._evaluating = max(self._evaluating, time.monotonic() - self._evaluation_began)
        value = pl_module.result
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        self._obey(trainer)

    def _obey(self, trainer: pl.Trainer) -> None:
        if self.reason is not None:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        assert pl_module.plan is not None
        if self.reason is not None and trainer.is_global_zero and trainer.global_step < pl_module.plan.steps:
            text = f"ended at step {trainer.global_step} of {pl_module.plan.steps}: {self.reason}"
            print(text, file=sys.stderr)
