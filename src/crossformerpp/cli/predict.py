"""`crossformer predict`."""

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossformerpp.cli.output import say, show_json_list, show_table, track
from crossformerpp.cli.train import AsJson, Budget, Overlap, Overrides, Overwrite, Tiles

if TYPE_CHECKING:
    from crossformerpp.predict import PredictionRun

_TABLE = 100  # most images for which a table is printed
_ERRORS = 20  # most failed images that are named
_FEW_BATCHES = 4  # so few batches do not repay starting workers


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A run directory, a checkpoint, a converted file, a shared folder or an exported .onnx file."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, .tar shards, quoted glob patterns, or @FILE, a text file with one path per line."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; default: predictions, or predictions-2, … if it exists."),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Write an annotated copy of each image.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted prediction in --out.")
    ] = False,
    top_k: Annotated[
        int, typer.Option(min=1, help="Number of classes to report per image (classification).")
    ] = 5,
    min_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest score of reported objects (detection); default: 0.5."),
    ] = None,
    budget: Budget = None,
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade",
            help="Use the larger setting of `analyze cascade` only for images where the smaller one is unsure.",
        ),
    ] = False,
    tiles: Tiles = None,
    overlap: Overlap = None,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per batch; default: 32 for classifiers, 1 for detectors and segmenters."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read images; default: half the cores, none for few images."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run a model on images: predictions.jsonl, predictions.csv and annotated pictures."""
    from crossformerpp import predict as room
    from crossformerpp.data.writing import fresh_folder

    if resume and (out is None or overwrite):
        raise ValueError(
            "--resume needs --out, the folder to continue in, and cannot be combined with --overwrite"
        )
    # of several images the bar counts images, of a single large one its windows
    options: dict[str, Any] = {
        "top_k": top_k,
        "show_progress": len(images) == 1 and Path(images[0]).is_file(),
    }
    if min_score is not None:
        options["min_score"] = min_score
    predictor = room.load_predictor(
        checkpoint,
        device,
        overrides or (),
        budget=budget,
        cascade=cascade,
        tiles=tiles,
        overlap=overlap,
        **options,
    )
    found = room.open_images(images, predictor.pixels.extensions)
    if out is None and room.Processes.started().world > 1:
        raise ValueError("several processes need one folder that all of them can see: pass --out FOLDER")
    folder = out or fresh_folder(Path("predictions"))
    batch_size = batch_size or predictor.batch_size
    if workers is None:
        workers = 0 if len(found) <= _FEW_BATCHES * batch_size else max(1, (os.cpu_count() or 1) // 2)
    settings: dict[str, Any] = {"pictures": pictures, "batch_size": batch_size, "workers": workers}
    with room.PredictionRun(predictor, found, folder, overwrite=overwrite, resume=resume, **settings) as run:
        try:
            rows = _rows(run, keep=len(found) <= _TABLE and not as_json)
        except KeyboardInterrupt:
            say(
                f"interrupted; to continue, repeat the command with --out {shlex.quote(str(folder))} --resume"
            )
            raise typer.Exit(130) from None
    if cascade:
        say(predictor.summary())  # type: ignore[attr-defined]
    if not run.is_first:
        return
    if as_json:
        show_json_list(room.read_records(folder / "predictions.jsonl"))
    elif rows:
        show_table(("image", *predictor.columns), rows)
    _report(folder, len(found), room.read_records(folder / "predictions.jsonl"), pictures)


def _rows(run: "PredictionRun", keep: bool) -> list[tuple[str, ...]]:
    """Predict all images; the rows of the table."""
    if run.done:
        say(f"{run.done} of {run.total} images were done before")
    started, before = time.perf_counter(), run.done
    rows: list[tuple[str, ...]] = []
    for result in track(run, run.total, "predict", done=run.done, unit="images"):
        if keep and result.prediction is not None:
            own = enumerate(result.prediction.rows())
            rows += [(result.image if number == 0 else "", *row) for number, row in own]
    if run.done - before > _TABLE:
        speed = (run.done - before) / (time.perf_counter() - started)
        say(f"{run.done - before} images at {speed:.1f} images/s")
    return rows


def _report(folder: Path, total: int, records: Iterator[dict[str, Any]], pictures: bool) -> None:
    """Where results are, and which images have none.

    Raises:
        typer.Exit: There are such images.
    """
    what = "predictions.jsonl, predictions.csv" + (" and annotated pictures" if pictures else "")
    say(f"{what} are in {folder}")
    errors = (record["error"] for record in records if "error" in record)
    count = 0
    for count, error in enumerate(errors, 1):
        if count <= _ERRORS:
            say(f"crossformer: {error}")
    if count > 1:
        more = "; the others are in predictions.csv" if count > _ERRORS else ""
        say(f"crossformer: {count} of {total} images could not be predicted{more}")
    if count:
        raise typer.Exit(2)
