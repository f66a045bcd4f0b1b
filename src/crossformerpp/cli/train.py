"""`crossformer train` and `crossformer eval`."""

import csv
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from crossformerpp.cli.output import say, show_json, show_metrics, show_table, track

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with the data set; sets data.root of the recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a recipe setting, e.g. trainer.epochs=30 (YAML values); may be repeated."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Most an image may cost, e.g. 30ms or 2.1GMACs: use the best setting that `analyze budget` found."
    ),
]
Tiles = Annotated[
    int | None,
    typer.Option(help="Process images in tiles of this side in pixels (detection, segmentation)."),
]
Overlap = Annotated[
    float | None, typer.Option(help="Overlap of neighbouring tiles, as a fraction of --tiles; default: 0.2.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A built-in recipe or a .yaml file. Built in: digits, mnist, digit_labels; for your data finetune, "
            "linear_probe, folder, small_images, objects, masks; digit_scenes/…, imagenet/…, imagenet22k/…, coco/…, "
            "ade20k/… (docs/recipes.md lists them all)."
        ),
    ] = None,
    data: Data = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to write; default: runs/RECIPE.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run directory of an interrupted run to resume.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Time limit in minutes; a short trial chooses steps, schedule and evaluations to fit.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a model from a recipe and evaluate it."""
    from crossformerpp.recipes.load import load_recipe

    began = time.monotonic()
    if (recipe is None) == (resume is None):
        raise ValueError(
            "give a recipe, or --resume RUN, not both; see crossformer train --help for the built-in recipes"
        )
    if resume is not None and (data is not None or out is not None or overwrite or minutes is not None):
        raise ValueError(
            "--resume uses the run's own recipe and plan: leave out --data, --out, --minutes and --overwrite; "
            "for more time pass --set trainer.minutes=…"
        )
    # report a mistyped setting before loading the engine's libraries, which takes seconds
    page = None if recipe is None else load_recipe(recipe, overrides or (), data)

    from crossformerpp import engine
    from crossformerpp.tasks.saved import find_checkpoint

    try:
        if resume is not None:
            run, metrics = resume, engine.resume(resume, overrides or ())
        else:
            assert recipe is not None
            assert page is not None
            run = out or Path("runs") / Path(recipe).stem
            command = f"crossformer {shlex.join(sys.argv[1:])}"
            metrics = engine.train(
                page, run, overwrite=overwrite, command=command, minutes=minutes, began=began
            )
    except engine.TrainingInterruptedError:
        folder = resume or run
        if engine.is_first():
            say(f"interrupted; resume with: crossformer train --resume {shlex.quote(str(folder))}")
        raise typer.Exit(130) from None
    if not engine.is_first():
        return
    if as_json:
        show_json({"run": str(run), **metrics, **_errors_json(run)})
    else:
        show_metrics(metrics, f"{run}: final evaluation of {find_checkpoint(run).name}")
        _show_errors(run)
        say(f"the run is in {run}: metrics, pictures, checkpoints, recipe.yaml")


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, a converted file or an exported file.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Evaluate on other data: any data set that `train` takes; default: the run's validation data.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json and pictures; default: a new RUN/eval.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="For an exported file: the run it was exported from, to compare it with."),
    ] = None,
    tiles: Tiles = None,
    overlap: Overlap = None,
    conformal: Annotated[
        float | None,
        typer.Option(
            help="Calibrate a classifier to predict sets of classes that contain the true class with this "
            "probability, e.g. 0.9 (conformal prediction)."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model or an exported file, and write metrics.json and pictures."""
    from crossformerpp import engine
    from crossformerpp.data.writing import claim_folder, fresh_folder

    if conformal is not None and data is not None and not is_exported(run):
        raise ValueError("--conformal calibrates on the run's validation data; leave out --data")
    if checkpoint is not None and not is_exported(run):
        raise ValueError(
            f"--checkpoint is for exported files (.onnx, .pt2), which {run} is not: leave it out"
        )
    folder = fresh_folder((run if run.is_dir() else run.parent) / "eval") if out is None else out
    if out is not None:
        claim_folder(out, overwrite)
    beside = None
    if is_exported(run):
        from crossformerpp.export import certificate

        found = certificate.certify(
            run,
            root=data,
            checkpoint=checkpoint,
            overrides=overrides or (),
            tiles=(tiles, overlap),
            conformal=conformal,
            track=lambda items, total: track(items, total, "eval"),
        )
        metrics = found.metrics()
        certificate.write_results(found, folder)
        beside = found.write()
    else:
        metrics = engine.evaluate(
            run,
            root=data,
            out=folder,
            overrides=overrides or (),
            tiles=(tiles, overlap),
            conformal=conformal,
        )
    if not engine.is_first():
        return
    if as_json:
        show_json({"run": str(run), **metrics, **_errors_json(folder)})
        return
    show_metrics(metrics, str(run))
    _show_errors(folder)
    say(f"metrics.json and pictures are in {folder}")
    if beside is not None:
        say(f"the certificate is in {run} and in {beside}")


def _show_errors(folder: Path) -> None:
    """A table of a detector's errors by kind, if the evaluation counted them."""
    if rows := _errors(folder):
        names = [name.replace("_", " ") for name in rows[0]]
        show_table(names, [list(row.values()) for row in rows], "errors of the boxes, all in errors.csv")


def _errors_json(folder: Path) -> dict[str, Any]:
    """The same as plain data, under `errors`."""
    numbers = {
        row["kind"]: {
            "errors": int(row["errors"]),
            "AP50_lost": float(row["AP50_lost"]) if row["AP50_lost"] else None,
        }
        for row in _errors(folder)
    }
    return {"errors": numbers} if numbers else {}


def _errors(folder: Path) -> list[dict[str, str]]:
    file = folder / "error_kinds.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def is_exported(path: Path) -> bool:
    """Whether a path is of an exported file, by its name."""
    return path.suffix in (".onnx", ".pt2")
