"""What a user waits for, as a share of the model's own speed: predict, eval and train on a folder of JPEG photographs.

    python -m benchmarks.end_to_end [--task classification|detection] [--images 512] [--rounds 3]

In each round the model's own speed is measured before and after the commands, on images that are ready in memory:
inference in the batches that `predict` uses, and a bare training step (forward, loss, backward, AdamW). The table gives
the medians of the rounds and the share of the model's own speed that is left. The photographs are views of those of
scikit-learn and scikit-image, 500×375 at JPEG quality 90; weights are fresh.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.photographs import SIZE, write_photographs
from crossformerpp import engine
from crossformerpp.engine.callbacks import SeedEachBatch
from crossformerpp.predict import PredictionRun, load_predictor, open_images
from crossformerpp.recipes.load import load_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks import find_task

BARS = {"predict": 0.9, "predict, pictures": 0.75, "eval": 0.9, "train": 0.95}
_WARM_UP = 3  # training steps that are not counted


def recipe_of(task: str, root: Path, steps: int, *overrides: str) -> BaseRecipe:
    """CrossFormer++-S at 224×224, or RetinaNet on it at the photographs' own size."""
    settings = ["trainer.epochs=null", f"trainer.steps={steps}", f"trainer.eval_every={steps}", *overrides]
    settings += ["schedule.warmup_epochs=0", "trainer.accelerator=cpu"]
    if task == "classification":
        return load_recipe("folder", (*settings, "ema=null"), root)
    dense = ["detector.name=retinanet", f"data.short_side=[{SIZE[1]}]", f"data.long_side={SIZE[0]}"]
    return load_recipe(
        "objects", (*settings, *dense, "trainer.batch_size=4", "trainer.eval_batch_size=1"), root
    )


def write_data(task: str, root: Path, number: int) -> Path:
    """The photographs as a data set of the task, with made-up labels; the folder that is evaluated and predicted."""
    if task == "classification":
        for half in ("train", "val"):
            for seed, name in enumerate(("one", "two")):
                write_photographs(root / half / name, number // 2, seed=seed + 2 * (half == "val"))
        return root / "val"
    (root / "annotations").mkdir(parents=True)
    for seed, half in enumerate(("train", "val")):
        paths = write_photographs(root / half, number, seed=seed)
        images = [
            {"id": place, "file_name": path.name, "width": SIZE[0], "height": SIZE[1]}
            for place, path in enumerate(paths)
        ]
        objects = [
            {
                "id": 2 * place + k,
                "image_id": place,
                "category_id": k,
                "bbox": [40 + 90 * k, 60, 120, 150],
                "area": 18000,
            }
            | {"iscrowd": 0}
            for place in range(number)
            for k in (0, 1)
        ]
        page = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 0, "name": "one"}, {"id": 1, "name": "two"}],
        }
        (root / "annotations" / f"instances_{half}.json").write_text(json.dumps(page))
    return root / "val"


def own_inference(predictor: Any, folder: Path, seconds: float) -> float:
    """Images per second of the network alone, on prepared images."""
    images = open_images([folder])
    prepared = [
        predictor.prepare(images.open(number)) for number in range(min(predictor.batch_size, len(images)))
    ]
    inputs: Any = prepared
    if hasattr(predictor, "mean"):
        inputs = (torch.stack(prepared).float().div_(255) - predictor.mean) / predictor.std
    with torch.inference_mode():
        predictor.model(inputs)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            predictor.model(inputs)
            count += len(prepared)
    return count / (time.perf_counter() - started)


def own_training(recipe: BaseRecipe, seconds: float) -> float:
    """Images per second of a bare training step, on one batch."""
    task = find_task(recipe.task)
    split = task.split(recipe, "train")
    module = task.module(recipe, split.class_names).train()
    batch = split.collate([split.dataset[number] for number in range(recipe.trainer.batch_size)])
    optimizer = torch.optim.AdamW(module.parameters(), recipe.optim.lr)
    count, started = -1, 0.0
    while count < 0 or time.perf_counter() - started < seconds:
        module.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if count < 0:
            started = time.perf_counter()
        count += 1
    return count * recipe.trainer.batch_size / (time.perf_counter() - started)


def train(recipe: BaseRecipe, run: Path) -> float:
    """Images per second of `train` between its fourth step and its last."""
    times: list[float] = []
    original = SeedEachBatch.on_train_batch_start

    def hooked(self: Any, *arguments: Any, **settings: Any) -> None:
        times.append(time.perf_counter())
        original(self, *arguments, **settings)

    SeedEachBatch.on_train_batch_start = hooked  # type: ignore[method-assign]
    try:
        engine.train(recipe, run, overwrite=True)
    finally:
        SeedEachBatch.on_train_batch_start = original  # type: ignore[method-assign]
    return (len(times) - 1 - _WARM_UP) * recipe.trainer.batch_size / (times[-1] - times[_WARM_UP])


def predict(predictor: Any, folder: Path, out: Path, pictures: bool, workers: int) -> float:
    """Images per second of `predict`, from the first file to the last line."""
    images = open_images([folder])
    started = time.perf_counter()
    with PredictionRun(predictor, images, out, overwrite=True, pictures=pictures, workers=workers) as run:
        for _ in run:
            pass
    return len(images) / (time.perf_counter() - started)


def measure(arguments: argparse.Namespace, room: Path) -> Iterator[tuple[str, str, float]]:
    """(what, the own speed that it belongs to or "", images per second), round by round."""
    folder = write_data(arguments.task, room / "data", arguments.images)
    recipe = recipe_of(arguments.task, room / "data", arguments.steps, *arguments.set)
    run = room / "run"
    for number in range(arguments.rounds):
        if "train" in arguments.what or number == 0:
            yield "own step", "", own_training(recipe, arguments.seconds)
            yield "train", "own step", train(recipe, run)
            yield "own step", "", own_training(recipe, arguments.seconds)
        predictor = load_predictor(run, "cpu")
        for what in ("predict", "predict, pictures", "eval"):
            if what.partition(",")[0] not in arguments.what:
                continue
            yield "own", "", own_inference(predictor, folder, arguments.seconds)
            if what == "eval":
                engine.evaluate(run, out=room / f"eval{number}")
                metrics = json.loads((room / f"eval{number}" / "metrics.json").read_text())
                yield "eval", "own", metrics["images_per_second"]
            else:
                speed = predict(predictor, folder, room / "out", "pictures" in what, arguments.workers)
                yield what, "own", speed
        yield "own", "", own_inference(predictor, folder, arguments.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=("classification", "detection"), default="classification")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of each measurement of the model's own speed"
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="of predict")
    parser.add_argument("--what", nargs="+", default=["predict", "eval", "train"])
    parser.add_argument("--set", action="append", default=[], help="settings of the recipe")
    arguments = parser.parse_args()
    if arguments.steps < _WARM_UP + 2:
        parser.error(f"--steps {arguments.steps}: at least {_WARM_UP + 2}, of which {_WARM_UP} warm up")
    speeds: dict[str, list[float]] = defaultdict(list)
    belongs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as room:
        for what, own, speed in measure(arguments, Path(room)):
            print(f"{what}: {speed:.2f} images/s", flush=True)
            speeds[what].append(speed)
            belongs[what] = own
    table = Table(
        title=f"{arguments.task}, {arguments.images} photographs, {torch.get_num_threads()} threads"
    )
    for name in ("", "images/s", "share of the model's own", "bar"):
        table.add_column(name)
    for what, values in speeds.items():
        speed = statistics.median(values)
        own = belongs[what]
        share = f"{speed / statistics.median(speeds[own]):.3f}" if own else ""
        table.add_row(what, f"{speed:.2f}", share, f"{BARS[what]:.2f}" if own else "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
