"""The Trainer of a run, and training until its end whatever happens on the way."""

import gc
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from crossformerpp.engine import processes
from crossformerpp.engine.callbacks import Log, LossGuard, Saver, SeedEachBatch, StopOnSignal
from crossformerpp.engine.ending import EarlyEnd
from crossformerpp.engine.errors import said_plainly
from crossformerpp.engine.files import AtomicCheckpointIO, RunFolder
from crossformerpp.engine.inside import LogInside
from crossformerpp.engine.loaders import RunData
from crossformerpp.engine.loggers import open_loggers
from crossformerpp.engine.memory import MemoryWatch
from crossformerpp.engine.progress import ProgressBar
from crossformerpp.recipes.schema import BaseRecipe, TrainerSection
from crossformerpp.tasks.memory import is_out_of_memory
from crossformerpp.tasks.module import TaskModule


def fit(
    module: TaskModule,
    data: RunData,
    run: RunFolder,
    checkpoint: Path | None = None,
    *,
    began: float | None = None,
    trial: Callback | None = None,
) -> None:
    """Train until the end of the run. Where memory runs out, its steps are taken from there on in more batches.

    Args:
        began: When the time of `trainer.minutes` began, by the monotonic clock; None: now.
        trial: Ends what is only tried and shows no progress.

    Raises:
        ValueError: Memory runs out, and more batches would not help or would train another network.
    """
    watch = MemoryWatch(run, data.start_step)
    began = time.monotonic() if began is None else began
    while True:
        try:
            _fit(module, data, run, checkpoint, watch, began, trial)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # outside of `except`: the error's frames hold what fills the memory
        if watch.refusal is not None:
            raise ValueError(watch.refusal)
        module.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        data.section, data.start_step = module.recipe.trainer, watch.step
        checkpoint = run.last if watch.step else None
        if checkpoint is not None:  # which holds the time until now
            began = time.monotonic()


def _fit(
    module: TaskModule,
    data: RunData,
    run: RunFolder,
    checkpoint: Path | None,
    watch: MemoryWatch,
    began: float,
    trial: Callback | None,
) -> None:
    section, plan = module.recipe.trainer, module.plan
    assert plan is not None
    epoch = plan.steps_per_epoch
    eval_every = plan.in_steps(section, section.eval_every) if section.eval_every else epoch
    save_every = section.checkpoint_every or (epoch if section.epochs else eval_every)
    guard = LossGuard(run)
    saver = Saver(run, save_every, eval_every, plan.steps, guard)
    watch.saver = saver
    # each relies on those before it: a save wants sound weights and a written log, a stop wants a save
    callbacks = [
        watch,
        SeedEachBatch(section.seed),
        guard,
        Log(run, plan, section.log_every),
        *([LogInside(run, section.inside_every)] if section.inside_every else []),
        *([ProgressBar(plan, watch.goes_on), EarlyEnd(section, saver, began)] if trial is None else []),
        saver,
        *([] if trial is None else [trial]),
        StopOnSignal(saver),
    ]
    with quiet(), threads(section), open_loggers(section, run, data.start_step) as loggers:
        trainer = build_trainer(
            module.recipe,
            callbacks,
            logger=loggers,
            max_steps=plan.steps,
            max_epochs=-1,
            accumulate_grad_batches=section.accumulate,
            gradient_clip_val=module.recipe.optim.clip_norm,
            val_check_interval=eval_every * section.accumulate,
            check_val_every_n_epoch=None,
        )
        with said_plainly(module.recipe, run):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if saver.is_pending(trainer.global_step):
                trainer.validate(module, datamodule=data, verbose=False)
    if saver.saved_step < trainer.global_step and trainer.global_step > data.start_step:
        saver.save(trainer)


def build_trainer(recipe: BaseRecipe, callbacks: list[Callback], **settings: Any) -> pl.Trainer:
    """Lightning's Trainer with the recipe's devices and precision, and nothing of its own about files."""
    with quiet():
        return pl.Trainer(
            accelerator=recipe.trainer.accelerator,
            precision=processes.precision(recipe.trainer),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # ours know the processes
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **processes.settings(recipe),
            **settings,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints about settings that the recipe decides, and its warning that a loader cannot
    resume in mid-epoch: ours starts at the right batch by itself.
    """
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def threads(section: TrainerSection) -> Iterator[None]:
    """With as many threads of the CPU as the recipe says."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(section.threads or before)
        yield
    finally:
        torch.set_num_threads(before)
