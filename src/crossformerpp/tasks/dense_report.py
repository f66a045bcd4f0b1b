"""The facts that a report of a detector or segmenter shows: truth beside prediction, and the worst classes."""

import shlex
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from crossformerpp.analysis.objects import draw_objects, drawn_objects
from crossformerpp.analysis.overlay import blend
from crossformerpp.analysis.report import Pair, Report, Table
from crossformerpp.data.crops import WholeImages
from crossformerpp.data.detection import EvalImages, open_image, truth
from crossformerpp.data.names import read_text
from crossformerpp.data.pixels import Pixels, as_picture
from crossformerpp.data.split import Split
from crossformerpp.tasks import find_task
from crossformerpp.tasks.report import FinishedRun, open_run, parts_of_model, speed

_NUM_SHOWN, _NUM_CLASSES = 12, 25  # images and classes at most
_MONITORS = {"detection": "box_AP", "segmentation": "miou"}
_NAMES = {
    "box_AP": "box AP",
    "box_AP50": "box AP at IoU 0.5",
    "mask_AP": "mask AP",
    "miou": "mean IoU",
    "pixel_accuracy": "of all pixels correct",
}
_VERBS = {"detection": "Find objects", "segmentation": "Segment"}


def describe_run(path: Path, seconds: float = 2.0) -> Report:
    """Gather the report of a finished run.

    Args:
        seconds: About how long to time the model.

    Raises:
        ValueError: It is no finished run, or its data is not where it was.
    """
    run = open_run(path, ("images",))
    task = run.recipe.task
    monitor = _MONITORS[task]
    predictor: Any = find_task(task).predictor(run.saved, device="cpu")
    split = find_task(task).split(run.recipe, "val", run.saved.class_names)
    pairs, first = _pairs(split, predictor)
    timed = speed(run, {"one image, from pixels to answer": (1, partial(predictor, first))}, seconds)
    shown = [(name, run.metrics[key]) for key, name in _NAMES.items() if run.metrics.get(key) is not None]
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    best = run.metrics.get(monitor)
    judged = run.metrics["images"]
    return Report(
        title=f"{_NAMES[monitor]} {best:.1%} on {judged:,} images"
        if best is not None
        else f"{judged:,} images",
        subtitle=(
            f"{run.recipe.model.name} for {task}, trained on {len(run.saved.class_names)} classes with "
            f"{run.about['train_samples']:,} images of {run.data} and evaluated on {judged:,} others."
        ),
        headline=[
            *((f"{value:.1%}", name) for name, value in shown),
            (f"{parameters / 1e6:.2f}M", "parameters"),
            (str(run.training_time), "h:min:s of training"),
            (timed.rows[0][1], "for one image"),
        ],
        figures=[run.learning_curve(monitor)],
        class_names=run.saved.class_names,
        classes=_worst_classes(run),
        model=parts_of_model(predictor.model, _side(run)),
        speed=timed,
        machine=run.machine,
        next_steps=_next_steps(run),
        about=run.beginning,
        recipe=read_text(path / "recipe.yaml"),
        pairs=pairs,
    )


def _pairs(split: Split, predictor: Any) -> tuple[list[Pair], Image.Image | Pixels]:
    """Images spread evenly over the split, truth beside prediction; and the first of them as it is."""
    dataset: Any = split.dataset
    numbers = range(0, len(dataset), max(1, len(dataset) // _NUM_SHOWN))[:_NUM_SHOWN]
    pairs, images = [], []
    for number in numbers:
        image, true = _true(dataset, number, split.class_names, predictor)
        images.append(image)
        picture = predictor(image).pictures(as_picture(image))[""]
        pairs.append(Pair(split.names[number], true, picture))
    return pairs, images[0]


def _true(
    dataset: Any, number: int, names: list[str], predictor: Any
) -> tuple[Image.Image | Pixels, Image.Image]:
    """An image, and the same with its truth drawn into it."""
    if isinstance(dataset, EvalImages):
        entry = dataset.coco.images[number]
        image = open_image(entry, dataset.coco.pixels)
        objects = [thing for thing in truth(entry, dataset.with_masks)["objects"] if not thing["iscrowd"]]
        return image, draw_objects(as_picture(image), drawn_objects(objects, names))
    assert isinstance(dataset, WholeImages)
    image, labels = dataset.source.open(number)
    return image, blend(as_picture(image), labels, predictor.colors)


def _worst_classes(run: FinishedRun) -> Table:
    """From the worst on, by the task's own figure; classes without one are left out."""
    names = (
        ("class", "box_AP", "box_AP50") if run.recipe.task == "detection" else ("class", "iou", "accuracy")
    )
    rows = [row for row in run.table("per_class.csv", names) if row[names[1]] not in ("", "nan")]
    rows.sort(key=lambda row: float(row[names[1]]))
    return Table(
        tuple(name.replace("_", " ") for name in names),
        [(row["class"], *(f"{float(row[name]):.1%}" for name in names[1:])) for row in rows[:_NUM_CLASSES]],
    )


def _side(run: FinishedRun) -> int:
    """The shorter side of the images that the network sees, about."""
    recipe = run.recipe
    return recipe.data.short_side[-1] if recipe.task == "detection" else recipe.inference.short_side or 512


def _next_steps(run: FinishedRun) -> list[tuple[str, str]]:
    place = shlex.quote(str(run.path))
    return [
        (f"{_VERBS[run.recipe.task]} in your own images:", f"crossformer predict {place} PHOTOS"),
        ("Make one file of it for other programs:", f"crossformer export {place} --out model.onnx"),
        (
            "Change any setting of this run and compare:",
            f"crossformer train {place}/recipe.yaml --set optim.lr=0.0001 --out runs/other",
        ),
    ]
