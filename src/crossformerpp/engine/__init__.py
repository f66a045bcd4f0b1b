"""From a recipe to a run: fit, resume, evaluate.

How a task plugs in
===================
The engine owns the Trainer, the run directory, checkpoints, resume, logs and the learning curve. It knows
a task only through `crossformerpp.tasks.Task`. A new task, say detection, brings:

1. `recipes/detection.py`: `DetectionRecipe(BaseRecipe)` with `task: Literal["detection"]`, a `data` section
   (its `root` is what `--data FOLDER` sets) and sections of its own; added to `recipes.load.RECIPES`.
   Pages go to `recipes/<folder>/<name>.yaml` and are called `<folder>/<name>` on the command line.
2. `data/…`: map-style data sets that know no recipe, only plain arguments. `__getitem__` may be random; the
   engine seeds torch, numpy and `random` around it from (seed, epoch, index). Never keep state in a data set.
3. `tasks/detection/` (or one file): an object with the three methods of `tasks.Task`, returned by
   `tasks.find_task` under its name:

   - `split(recipe, "train" | "val", class_names)` → `data.split.Split` (data set, class names, collate,
     groups);
   - `module(recipe, class_names)` → a subclass of `tasks.module.TaskModule`, which has the optimiser, the
     schedule and the EMA already and asks for three methods: `loss(batch)` → dict with "loss" and parts to
     log, `evaluate_batch(model, batch)` which adds to metrics, `evaluation()` which sums them up over all
     processes (exactly: every sample counts once) as a `plug.Evaluation`, and forgets them. Its class
     attributes `monitor` and `monitor_mode` name the metric that chooses the best checkpoint;
   - `predictor(saved)` → a `plug.Predictor`: image → `plug.Prediction` (table rows, JSON, pictures).

Pictures are drawn by the task, with `crossformerpp.analysis` (pictures of matplotlib, annotation by Pillow).
A module must not draw random numbers outside `loss`, and must do so from torch's, numpy's or `random`'s
global generators only: the engine seeds them before every batch from (seed, rank, batch number), which is
why a resumed run continues bit for bit and no generator state is stored.

Training is one stream of batches, numbered from 0 over the whole run; "epoch" is the quotient of that number
and the batches in an epoch. Both iteration-based and epoch-based recipes are this stream, and resuming is
starting it at another number.
"""

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from crossformerpp.data.names import printable, read_json, without_controls
from crossformerpp.data.sampling import num_samples
from crossformerpp.data.split import Split
from crossformerpp.data.writing import replacing_folder, write_json
from crossformerpp.engine import processes
from crossformerpp.engine.callbacks import (
    Log,
    LossGuard,
    LossNotFiniteError,
    Saver,
    SeedEachBatch,
    StopOnSignal,
    TrainingInterruptedError,
)
from crossformerpp.engine.changes import changes, data_change, data_mark
from crossformerpp.engine.errors import said_plainly
from crossformerpp.engine.files import AtomicCheckpointIO, RunFolder, surroundings
from crossformerpp.engine.inside import LogInside
from crossformerpp.engine.loaders import RunData, first_batch
from crossformerpp.engine.processes import is_first
from crossformerpp.engine.progress import ProgressBar
from crossformerpp.recipes.load import apply_overrides, dump_recipe, load_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe, TrainerSection
from crossformerpp.recipes.tiles import tile_overrides
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import promise as promises
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.classification.thresholds import keep_thresholds, read_thresholds
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan
from crossformerpp.tasks.saved import SavedRun, open_saved

__all__ = ["LossNotFiniteError", "TrainingInterruptedError", "evaluate", "is_first", "resume", "train"]


def train(
    recipe: BaseRecipe, out: Path, *, overwrite: bool = False, command: str | None = None
) -> dict[str, float]:
    """Train from a recipe into a new run directory, and evaluate the result.

    Args:
        out: The run directory.
        overwrite: Replace an older run there.
        command: What to note as the command that began the run.

    Returns:
        The metrics of the final evaluation, which are also in `out/metrics.json`.

    Raises:
        ValueError: The recipe, the data or the folder cannot be used; nothing was written.
        UnusableImageError: An image or mask cannot be used; `resume(out)` goes on once it is fixed.
        LossNotFiniteError: The loss became NaN or infinite.
        TrainingInterruptedError: Ctrl-C or SIGTERM; `resume(out)` goes on.
    """
    run = RunFolder(out)
    if is_first():
        run.check(overwrite)
    module, data = _prepare(recipe)
    with _locked(run):
        if is_first():
            run.create(dump_recipe(recipe), overwrite)
            write_json(run.about, surroundings(command or " ".join(sys.argv)) | _sizes(module, data))
            if module.started_from is not None:
                print(module.started_from, file=sys.stderr)
            if data.train is not None and data.train.counts:
                counts = ", ".join(f"{count:,} {name}" for name, count in data.train.counts.items())
                print(f"training data: {counts}", file=sys.stderr)
        _fit(module, data, run)
        return evaluate(out, out=out)


def resume(out: Path, overrides: Iterable[str] = ()) -> dict[str, float]:
    """Resume an interrupted run exactly where it stopped, and evaluate the result.

    The run's recipe.yaml may have been changed in settings that leave its state as it is; stderr says which.

    Args:
        overrides: `a.b=value` texts that change it further.

    Raises:
        ValueError: There is no run, nothing to resume, or a setting or the data changed with which it cannot
            go on.
        UnusableImageError, LossNotFiniteError, TrainingInterruptedError: As `train`.
    """
    run = RunFolder(out)
    if not run.recipe.is_file():
        raise ValueError(f"{out}: not a run (no recipe.yaml in it)")
    if not run.last.is_file():
        raise ValueError(f"{out}: stopped before its first checkpoint; begin again with --overwrite")
    with _locked(run):
        return _go_on(run, overrides)


def _go_on(run: RunFolder, overrides: Iterable[str]) -> dict[str, float]:
    out = run.path
    saved = open_saved(run.last)
    recipe = load_recipe(str(run.recipe), overrides)
    changed = changes(saved.recipe, recipe)
    module, data = _prepare(recipe, saved.class_names)
    about = read_json(run.about) if run.about.is_file() else {}
    about = about if isinstance(about, dict) else {}  # an editor spoilt it; the run does not need it
    noted = saved.data.get("train", {"samples": about["train_samples"]} if "train_samples" in about else None)
    assert data.train is not None
    if (text := data_change(noted, data.train)) is not None:
        raise ValueError(
            f"{out}: its training data changed ({text}), so that it cannot go on as if nothing had happened; put them "
            "back, or begin a new run with --set model.checkpoint=RUN"
        )
    data.start_step = saved.step
    del saved  # the trainer reads it again; do not hold it twice
    if is_first():
        run.sweep()
        assert module.plan is not None
        if data.start_step == module.plan.steps:
            print(f"{out} has finished; it is only evaluated again", file=sys.stderr)
        for text in changed:
            print(f"changed since the last checkpoint: {text}", file=sys.stderr)
        run.write_recipe(dump_recipe(recipe))
        resumed = about.get("resumed")
        resumed = resumed if isinstance(resumed, list) else []
        entry = {"step": data.start_step, "changed": changed}
        write_json(run.about, about | {"resumed": [*resumed, entry]})
    _fit(module, data, run, checkpoint=run.last)
    return evaluate(out, out=out)


def _locked(run: RunFolder) -> AbstractContextManager:
    """One process, or group of processes, per run: the first of them holds the folder."""
    return run.lock if is_first() else nullcontext()


def evaluate(
    path: Path,
    *,
    root: Path | None = None,
    out: Path | None = None,
    overrides: Iterable[str] = (),
    tiles: tuple[int | None, float | None] = (None, None),
    conformal: float | None = None,
) -> dict[str, float]:
    """Evaluate a run or a checkpoint on its validation data, or on other data.

    Args:
        root: A folder of data to use instead of the run's own.
        out: Where to write metrics.json, tables and pictures; None: nowhere.
        overrides: `a.b=value` texts, e.g. another data.size or trainer.workers.
        tiles: Side and overlap of the tiles to look at images in; see `recipes.tiles.tile_overrides`.
        conformal: Calibrate a classifier's answers to hold the truth with this probability, and keep the threshold
            beside the weights.

    Raises:
        ValueError: The checkpoint or the data cannot be used.
    """
    saved = open_saved(path)
    overrides = [*tile_overrides(saved.recipe.task, *tiles), *overrides]
    if conformal is not None and saved.recipe.task != "classification":
        raise ValueError(f"--conformal is for classifiers; {path} is for {saved.recipe.task}")
    if conformal is not None and getattr(saved.recipe, "multi_label", False):
        raise ValueError(
            "--conformal is for one label per image; with multi_label every class has its threshold"
        )
    if conformal is not None and any(text.startswith(("data.", "model.")) for text in overrides):
        raise ValueError("--conformal calibrates what `predict` does; leave out --set data.… and model.…")
    recipe = evaluated_recipe(saved, root, overrides)
    task = find_task(recipe.task)
    split = task.split(recipe, "val" if root is None else "test", saved.class_names)
    if root is None:
        warn_of_changed_data(saved.data.get("val"), split, str(recipe.model_dump()["data"]["root"]))
    else:
        say_found(None, split)
    trainer = _trainer(recipe, [ProgressBar(Plan(steps=saved.step, steps_per_epoch=1))], logger=False)
    started = time.perf_counter()
    module = judge(saved, recipe, split, trainer)
    seconds = time.perf_counter() - started
    evaluation = module.last_evaluation
    assert evaluation is not None
    promise = None
    if isinstance(evaluation, ClassificationEvaluation):
        evaluation, promise = promises.judge_promise(
            evaluation, promises.read_promise(saved), conformal, is_other=root is not None
        )
    if isinstance(evaluation, LabelSetEvaluation) and root is not None:
        evaluation = replace(evaluation, thresholds=read_thresholds(saved))
    if out is not None and trainer.is_global_zero:
        about = {
            "checkpoint": str(saved.path),
            "step": saved.step,
            "data": str(root) if root else "validation",
            "images_per_second": round(num_samples(split) / seconds, 2),
        }
        with replacing_folder(out) as draft:
            write_json(draft / "metrics.json", evaluation.metrics | about)
            evaluation.write(draft, split)
    if promise is not None and conformal is not None and trainer.is_global_zero:
        promises.write_promise(saved, promise)
    is_own = root is None and not any(text.startswith(("data.", "model.")) for text in overrides)
    if isinstance(evaluation, LabelSetEvaluation) and is_own and trainer.is_global_zero:
        keep_thresholds(saved, evaluation.chosen_thresholds, evaluation.num_images)
    return evaluation.metrics


def evaluated_recipe(saved: SavedRun, root: Path | None = None, overrides: Iterable[str] = ()) -> BaseRecipe:
    """The recipe by which a run is evaluated: without what is for training alone.

    Raises:
        ValueError: An override cannot be made.
    """
    values = saved.recipe.model_dump()
    apply_overrides(values, overrides)
    values["model"]["checkpoint"] = None  # the weights come from the checkpoint at hand,
    values["model"]["elastic"] = None
    values["ema"] = None  # which has the averaged ones already, if there are any
    values.pop("distill", None)  # a teacher is for training
    if root is not None:
        values["data"]["root"] = root
    return parse_recipe(values, f"in {saved.path}")


def judge(saved: SavedRun, recipe: BaseRecipe, split: Split, trainer: pl.Trainer | None = None) -> TaskModule:
    """A run's network as a recipe builds it, and in `last_evaluation` what it does on a split.

    Raises:
        ValueError: The weights do not fit the recipe.
    """
    module = find_task(recipe.task).module(recipe, saved.class_names)
    load_weights(module.model, saved.weights, saved.path)
    trainer = trainer or _trainer(recipe, [], logger=False)
    with _quiet(), threads(recipe.trainer), said_plainly(recipe):
        trainer.validate(module, datamodule=RunData(recipe.trainer, split), verbose=False)
    return module


def say_found(train: Split | None, val: Split) -> None:
    """Say on stderr what a folder of data was taken for; nothing of built-in data."""
    if val.found and is_first():
        counts = f"{num_samples(val)} val images"
        if train is not None:
            drawn = ", split by lot" if train.is_drawn else ""
            counts = f"{num_samples(train)} train / {counts}{drawn}"
        text = f"found: {val.found}, {counts}, {len(val.class_names)} classes"
        print(without_controls(printable(text)), file=sys.stderr)


def warn_of_changed_data(before: dict[str, Any] | None, split: Split, root: str) -> None:
    """Warn where a split is not the one that a checkpoint's mark says."""
    text = data_change(before, split)
    if text is None:
        return
    drawn = (
        "; the split into train and val was drawn again from this folder, so that the model may have been trained on "
        "some of these images. Keep val/ beside train/, or evaluate other images with --data"
        if split.is_drawn
        else "; figures of before do not compare"
    )
    warnings.warn(f"{printable(root)}: changed since training: {text}{drawn}", stacklevel=2)


def _prepare(recipe: BaseRecipe, class_names: list[str] | None = None) -> tuple[TaskModule, RunData]:
    """Open the data and build the model: what is wrong with them is known before anything is written."""
    task = find_task(recipe.task)
    train_split = task.split(recipe, "train", class_names)
    val_split = task.split(recipe, "val", train_split.class_names)
    plan = Plan.of(recipe.trainer, num_samples(train_split))
    if recipe.trainer.overfit_batch:
        train_split = first_batch(train_split, recipe.trainer)
    say_found(train_split, val_split)
    marks = {"train": data_mark(train_split), "val": data_mark(val_split)}
    data = RunData(recipe.trainer, val_split, train_split, plan)
    data.stream(rank=0, world=processes.world(recipe.trainer))  # refuses a batch that cannot be
    processes.settings(recipe)  # for its errors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.trainer.seed)
        module = task.module(recipe, train_split.class_names)
    module.meet(train_split)
    module.plan, module.data_marks = plan, marks
    module.configure_optimizers()  # for its errors
    return module, data


def _fit(module: TaskModule, data: RunData, run: RunFolder, checkpoint: Path | None = None) -> None:
    section, plan = module.recipe.trainer, module.plan
    assert plan is not None
    epoch = plan.steps_per_epoch
    eval_every = plan.in_steps(section, section.eval_every) if section.eval_every else epoch
    save_every = section.checkpoint_every or (epoch if section.epochs else eval_every)
    guard = LossGuard(run)
    saver = Saver(run, save_every, eval_every, plan.steps, guard)
    # each relies on those before it: a save wants sound weights and a written log, a stop wants a save
    callbacks = [
        SeedEachBatch(section.seed),
        guard,
        Log(run, plan, section.log_every),
        *([LogInside(run, section.inside_every)] if section.inside_every else []),
        ProgressBar(plan),
        saver,
        StopOnSignal(saver),
    ]
    logger = TensorBoardLogger(run.path, name="", version="tensorboard", purge_step=data.start_step or None)
    trainer = _trainer(
        module.recipe,
        callbacks,
        logger=logger,
        max_steps=plan.steps,
        max_epochs=-1,
        accumulate_grad_batches=section.accumulate,
        gradient_clip_val=module.recipe.optim.clip_norm,
        val_check_interval=eval_every * section.accumulate,
        check_val_every_n_epoch=None,
    )
    with _quiet(), threads(section), said_plainly(module.recipe, run):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if saver.is_pending(trainer.global_step):
            trainer.validate(module, datamodule=data, verbose=False)
    if saver.saved_step < trainer.global_step and trainer.global_step > data.start_step:
        saver.save(trainer)


def _trainer(recipe: BaseRecipe, callbacks: list[Callback], **settings: Any) -> pl.Trainer:
    section = recipe.trainer
    precision = section.precision
    if precision == "auto":
        has_gpu = section.accelerator in ("auto", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if has_gpu and torch.cuda.is_bf16_supported() else "32-true"
    with _quiet():
        return pl.Trainer(
            accelerator=section.accelerator,
            precision=precision,
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
def _quiet() -> Iterator[None]:
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


def _sizes(module: TaskModule, data: RunData) -> dict[str, Any]:
    assert data.train is not None
    return {
        "model": module.recipe.model.name,
        "params": sum(parameter.numel() for parameter in module.model.parameters()),
        "classes": len(module.class_names),
        "train_samples": num_samples(data.train),
        "train_counts": dict(data.train.counts),
        "val_samples": num_samples(data.val),
        "started_from": module.started_from and module.started_from.to_json(),
    }
