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

_TABLE = 100  # images up to which a table is printed
_ERRORS = 20  # images named that could not be predicted
_FEW_BATCHES = 4  # up to which starting workers is not worth while


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or an exported .onnx file.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, .tar shards, quoted patterns, or @LIST, a file with one a line."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Output folder; default: a new ./predictions.")] = None,
    pictures: Annotated[bool, typer.Option(help="Draw an annotated picture of each image.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out where a run was stopped.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Number of classes to report.")] = 5,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum score of reported objects; default: 0.5.")
    ] = None,
    budget: Budget = None,
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="Use the run's large setting only where its small one is unsure."),
    ] = False,
    tiles: Tiles = None,
    overlap: Overlap = None,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that the network sees at once; default: the task's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; default: by images and cores.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Predict images: predictions.jsonl and .csv as they come, annotated pictures, a table of a few images."""
    from crossformerpp import predict as room
    from crossformerpp.data.writing import fresh_folder

    if resume and (out is None or overwrite):
        raise ValueError("--resume needs --out, the folder to go on in, and excludes --overwrite")
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
    folder = out or fresh_folder(Path("predictions"))
    batch_size = batch_size or predictor.batch_size
    if workers is None:
        workers = 0 if len(found) <= _FEW_BATCHES * batch_size else max(1, (os.cpu_count() or 1) // 2)
    settings: dict[str, Any] = {"pictures": pictures, "batch_size": batch_size, "workers": workers}
    with room.PredictionRun(predictor, found, folder, overwrite=overwrite, resume=resume, **settings) as run:
        try:
            rows = _rows(run, keep=len(found) <= _TABLE and not as_json)
        except KeyboardInterrupt:
            say(f"interrupted; the same command goes on with --out {shlex.quote(str(folder))} --resume")
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
