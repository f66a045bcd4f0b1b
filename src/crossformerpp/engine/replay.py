"""`crossformer replay RUN --step N`: the batch of a step, its pictures and its losses, to the bit.

Which samples a step has, how they are augmented and mixed follows from the recipe alone. Its losses need the weights
before it: of a checkpoint at or before the step, trained on up to the step.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from crossformerpp.analysis.annotate import image_grid
from crossformerpp.data.names import read_json
from crossformerpp.data.sampling import Draw, seed_generators
from crossformerpp.data.split import Split
from crossformerpp.data.writing import replacing_folder, write_json, write_picture
from crossformerpp.engine.callbacks import SeedEachBatch
from crossformerpp.engine.changes import data_change
from crossformerpp.engine.errors import said_plainly
from crossformerpp.engine.files import RunFolder
from crossformerpp.engine.fitting import build_trainer, quiet, threads
from crossformerpp.engine.loaders import RunData
from crossformerpp.engine.memory import noted_accumulation
from crossformerpp.engine.preparing import prepare
from crossformerpp.recipes.load import apply_overrides, load_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.saved import SavedRun, open_saved, with_own_weights
from crossformerpp.tasks.watched import WatchedBatch

COLUMNS = ("process", "batch", "number", "sample", "label", "mixed_with", "loss")


@dataclass(frozen=True)
class ReplayedBatch:
    """What one process saw at once.

    Attributes:
        number: Of the batch in the whole run, from 0.
        draws: (epoch, index, …) of each sample.
        seen: The samples as the loss saw them.
        losses: Of the batch, by name; empty without the step's weights.
    """

    process: int
    number: int
    draws: list[Draw]
    seen: WatchedBatch
    losses: dict[str, float]


@dataclass
class Replay:
    """A step of a run.

    Attributes:
        trained_from: The step of the checkpoint whose weights were trained up to this step; None: no losses,
        why_not: for this reason.
    """

    step: int
    names: Sequence[str]
    batches: list[ReplayedBatch] = field(default_factory=list)
    trained_from: int | None = None
    why_not: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A row per sample, with `COLUMNS`."""
        rows = []
        for batch in self.batches:
            indices = batch.seen.numbers or [draw[1] for draw in batch.draws]
            names = [self.names[index] if self.names else f"sample {index}" for index in indices]
            for number, (name, label, partner, loss) in enumerate(
                zip(names, batch.seen.labels, batch.seen.partners, batch.seen.losses, strict=True)
            ):
                mixed_with = "" if partner is None else names[partner]
                shown = loss if self.trained_from is not None else ""
                values = (batch.process, batch.number, number, name, label, mixed_with, shown)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
        return rows

    def pictures(self) -> dict[str, Image.Image]:
        """A grid of the samples per batch."""
        return {f"batch-{batch.process}-{batch.number}": self._grid(batch) for batch in self.batches}

    def _grid(self, batch: ReplayedBatch) -> Image.Image:
        losses = [f" · {loss:.3f}" if self.trained_from is not None else "" for loss in batch.seen.losses]
        texts = [
            f"{n} {label}{loss}"
            for n, (label, loss) in enumerate(zip(batch.seen.labels, losses, strict=True))
        ]
        return image_grid(batch.seen.pictures, texts, [None] * len(texts))

    def write(self, folder: Path) -> None:
        """samples.csv, step.json and a picture per batch, all or nothing."""
        with replacing_folder(folder) as draft:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows())
            (draft / "samples.csv").write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))
            write_json(draft / "step.json", self.to_json())
            for name, picture in self.pictures().items():
                write_picture(draft / f"{name}.png", picture)

    def to_json(self) -> dict[str, Any]:
        """The step and its batches' losses."""
        batches = [{"process": b.process, "batch": b.number, "losses": b.losses} for b in self.batches]
        return {
            "step": self.step,
            "epoch": self.batches[0].draws[0][0],
            "trained_from_step": self.trained_from,
            "batches": batches,
        }


def replay(path: Path, step: int, *, from_start: bool = False) -> Replay:
    """Repeat a step of a run.

    Args:
        step: From 1.
        from_start: Train from the beginning where no checkpoint is at or before the step.

    Raises:
        ValueError: It is no run, has no such step, or its data changed.
    """
    run = RunFolder(path)
    if not run.recipe.is_file() or not run.last.is_file():
        raise ValueError(f"{path}: not a run with a checkpoint, whose steps could be replayed")
    saved = [open_saved(file) for file in (run.last, run.best) if file.is_file()]
    about = read_json(run.about) if run.about.is_file() else {}
    before = max((one for one in saved if one.step < step), key=lambda one: one.step, default=None)
    recipe, why_not = _recipe_of(run, about, step, before or saved[0], 0 if before is None else before.step)
    processes = int(about.get("processes") or 1)
    module, data = prepare(recipe, saved[0].class_names, is_trial=True)
    assert data.train is not None
    assert module.plan is not None
    if not 1 <= step <= module.plan.steps:
        raise ValueError(f"--step {step}: the run has steps 1 to {module.plan.steps}")
    if (text := data_change(saved[0].data.get("train"), data.train)) is not None:
        raise ValueError(f"{path}: its training data changed since ({text}): its batches cannot be shown")
    if processes > 1:
        why_not = why_not or f"the run had {processes} processes, whose gradients cannot be repeated in one"
    if before is None and step > 1 and not from_start:
        why_not = why_not or (
            f"no checkpoint before step {step}; pass --from-start to train the {step - 1} steps before it again"
        )
    found = Replay(step, data.train.names, why_not=why_not)
    if why_not is None:
        found.trained_from = 0 if before is None else before.step
        found.batches = _trained(module, data, step, before)
    else:
        found.batches = _drawn(module, data, data.train, step, processes)
    return found


def _recipe_of(
    run: RunFolder, about: dict[str, Any], step: int, saved: SavedRun, begin: int
) -> tuple[BaseRecipe, str | None]:
    """The recipe that a step had, for one process; and why its losses cannot be had, as far as that is the reason."""
    changed = [entry["step"] for entry in about.get("resumed") or [] if entry["changed"]]
    recipe = (
        saved.recipe if any(at >= step for at in changed) else with_own_weights(load_recipe(str(run.recipe)))
    )
    notes = noted_accumulation(run)
    values = recipe.model_dump()
    if notes:
        accumulate = [count for at, count in notes if at < step][-1:] or [notes[0][1]]
        apply_overrides(values, [f"trainer.accumulate={accumulate[0]}"])
    apply_overrides(values, ["trainer.devices=1", "trainer.nodes=1", "trainer.loggers=[]"])
    between = [at for at in (*changed, *(at for at, _ in notes)) if begin < at < step]
    why_not = f"settings changed at step {between[0]}, after the checkpoint" if between else None
    return parse_recipe(values, f"in {run.path}"), why_not


class _Recorder(Callback):
    """Watches the batches of one step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[tuple[WatchedBatch, dict[str, float]]] = []
        self._watched: list[WatchedBatch] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            pl_module.watch = self._watched.append  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TaskModule)
        if self._watched:
            losses = {name: float(value) for name, value in pl_module.losses.items()}
            self.seen.append((self._watched[0], losses))
            self._watched.clear()


def _trained(module: TaskModule, data: RunData, step: int, before: SavedRun | None) -> list[ReplayedBatch]:
    """The step as training takes it, from the checkpoint before it on."""
    section = module.recipe.trainer
    recorder = _Recorder(step)
    checkpoint = None if before is None else before.path
    data.start_step = 0 if before is None else before.step
    trainer = build_trainer(
        module.recipe,
        [SeedEachBatch(section.seed), recorder],
        logger=False,
        max_steps=step,
        max_epochs=-1,
        accumulate_grad_batches=section.accumulate,
        gradient_clip_val=module.recipe.optim.clip_norm,
        limit_val_batches=0,
    )
    with quiet(), threads(section), said_plainly(module.recipe):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    first = (step - 1) * section.accumulate
    draws = _draws(data, step, process=0, processes=1)
    return [
        ReplayedBatch(0, first + place, draws[place], seen, losses)
        for place, (seen, losses) in enumerate(recorder.seen)
    ]


def _drawn(module: TaskModule, data: RunData, split: Split, step: int, processes: int) -> list[ReplayedBatch]:
    """The step's batches with whatever weights: what they show does not depend on them."""
    module.train()
    batches = []
    seen: list[WatchedBatch] = []
    module.watch = seen.append
    section = module.recipe.trainer
    dataset = data.seeded(split)
    for process in range(processes):
        for place, draws in enumerate(_draws(data, step, process, processes)):
            number = (step - 1) * section.accumulate + place
            batch = split.collate([dataset[draw] for draw in draws])
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                seed_generators(section.seed, process, number)
                module.loss(batch)
            batches.append(ReplayedBatch(process, number, draws, seen.pop(), {}))
    return batches


def _draws(data: RunData, step: int, process: int, processes: int) -> list[list[Draw]]:
    """The draws of the samples of a step, by batch."""
    stream = data.stream(process, processes, start_step=step - 1)
    return list(itertools.islice(stream, data.section.accumulate))
