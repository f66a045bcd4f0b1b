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

import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from crossformerpp.data.names import printable, read_json
from crossformerpp.data.sampling import num_samples
from crossformerpp.data.split import Split
from crossformerpp.data.writing import replacing_folder, write_json
from crossformerpp.engine.callbacks import LossNotFiniteError, TrainingInterruptedError
from crossformerpp.engine.changes import changes, data_change
from crossformerpp.engine.errors import said_plainly
from crossformerpp.engine.files import RunFolder, surroundings
from crossformerpp.engine.fitting import build_trainer, fit, quiet, threads
from crossformerpp.engine.loaders import RunData
from crossformerpp.engine.memory import NOTES, note_accumulation
from crossformerpp.engine.planning import plan_run
from crossformerpp.engine.preparing import prepare, require_enough, say_found, sizes
from crossformerpp.engine.processes import is_first
from crossformerpp.engine.progress import ProgressBar
from crossformerpp.engine.sizing import choose_batches
from crossformerpp.recipes.load import apply_overrides, dump_recipe, load_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.tiles import tile_overrides
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import promise as promises
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.classification.thresholds import keep_thresholds, read_thresholds
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.optim import Plan
from crossformerpp.tasks.saved import SavedRun, open_saved, with_own_weights

__all__ = ["LossNotFiniteError", "TrainingInterruptedError", "evaluate", "is_first", "resume", "train"]


def train(
    recipe: BaseRecipe,
    out: Path,
    *,
    overwrite: bool = False,
    command: str | None = None,
    minutes: float | None = None,
    began: float | None = None,
) -> dict[str, float]:
    """Train from a recipe into a new run directory, and evaluate the result.

    Args:
        out: The run directory.
        overwrite: Replace an older run there.
        command: What to note as the command that began the run.
        minutes: Plan the length of the run for this time, from a trial.
        began: When the time began, by the monotonic clock; default: now.

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
    began = time.monotonic() if began is None else began
    recipe = choose_batches(recipe)
    plan: dict[str, Any] = {}
    if minutes is not None:
        recipe, plan = plan_run(recipe, minutes, began)
    module, data = prepare(recipe)
    with _locked(run):
        if is_first():
            run.create(dump_recipe(recipe), overwrite)
            about = surroundings(command or " ".join(sys.argv)) | sizes(module, data)
            write_json(run.about, about | plan | {NOTES: [[0, recipe.trainer.accumulate]]})
            if module.started_from is not None:
                print(module.started_from, file=sys.stderr)
            if data.train is not None and data.train.counts:
                counts = ", ".join(f"{count:,} {name}" for name, count in data.train.counts.items())
                print(f"training data: {counts}", file=sys.stderr)
        fit(module, data, run, began=began)
        metrics = evaluate(out, out=out)
    if minutes is not None and is_first():
        print(f"took {(time.monotonic() - began) / 60:.3g} of {minutes:g} minutes", file=sys.stderr)
    return metrics


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
    recipe = choose_batches(load_recipe(str(run.recipe), overrides))
    trained = with_own_weights(recipe)
    changed = changes(saved.recipe, trained)
    module, data = prepare(trained, saved.class_names)
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
        if any(text.startswith("trainer.accumulate:") for text in changed):
            note_accumulation(run, data.start_step, recipe.trainer.accumulate)
    fit(module, data, run, checkpoint=run.last)
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
    is_as_trained = not any(text.startswith(("data.", "model.")) for text in overrides)
    if conformal is not None:
        _refuse_conformal(saved.recipe, path, is_as_trained)
    recipe = evaluated_recipe(saved, root, overrides)
    task = find_task(recipe.task)
    split = task.split(recipe, "val" if root is None else "test", saved.class_names)
    if root is None:
        warn_of_changed_data(saved.data.get("val"), split, str(recipe.model_dump()["data"]["root"]))
    else:
        say_found(None, split)
    trainer = build_trainer(recipe, [ProgressBar(Plan(steps=saved.step, steps_per_epoch=1))], logger=False)
    require_enough(split, trainer.world_size)
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
    if not trainer.is_global_zero:
        return evaluation.metrics
    if out is not None:
        about = {
            "checkpoint": str(saved.path),
            "step": saved.step,
            "data": str(root) if root else "validation",
            "images_per_second": round(num_samples(split) / seconds, 2),
        }
        with replacing_folder(out) as draft:
            write_json(draft / "metrics.json", evaluation.metrics | about)
            evaluation.write(draft, split)
    if promise is not None and conformal is not None:
        promises.write_promise(saved, promise)
    if isinstance(evaluation, LabelSetEvaluation) and root is None and is_as_trained:
        keep_thresholds(saved, evaluation.chosen_thresholds, evaluation.num_images)
    return evaluation.metrics


def _refuse_conformal(recipe: BaseRecipe, path: Path, is_as_trained: bool) -> None:
    """
    Raises:
        ValueError: The run's answers, or its answers at these settings, cannot be calibrated.
    """
    if recipe.task != "classification":
        raise ValueError(f"--conformal is for classifiers; {path} is for {recipe.task}")
    if getattr(recipe, "multi_label", False):
        raise ValueError(
            "--conformal is for one label per image; with multi_label every class has its threshold"
        )
    if not is_as_trained:
        raise ValueError("--conformal calibrates what `predict` does; leave out --set data.… and model.…")


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
    trainer = trainer or build_trainer(recipe, [], logger=False)
    with quiet(), threads(recipe.trainer), said_plainly(recipe):
        trainer.validate(module, datamodule=RunData(recipe.trainer, split), verbose=False)
    return module


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
