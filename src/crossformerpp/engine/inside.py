"""Amplitude and attention distance of every block during training: inside.csv and the loggers."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from crossformerpp.analysis.inside import look_inside
from crossformerpp.engine.callbacks import at_step_end
from crossformerpp.engine.files import MetricsTable, RunFolder
from crossformerpp.tasks.module import TaskModule

_NUM_IMAGES = 4  # of the first process' batch


class LogInside(Callback):
    """Every few steps looks at the batch just learnt from, with the weights after the step; see `look_inside`."""

    def __init__(self, run: RunFolder, every: int) -> None:
        self.every = every
        self.table = MetricsTable(run.inside_csv)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.table.load(until_step=checkpoint["global_step"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not (trainer.is_global_zero and at_step_end(trainer) and step % self.every == 0):
            return
        assert isinstance(pl_module, TaskModule)
        backbone, images = pl_module.look(batch)
        row = look_inside(backbone, images[:_NUM_IMAGES])
        self.table.append({"step": step, **row})
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
