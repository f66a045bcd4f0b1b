"""`crossformer predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from crossformerpp.cli.output import say, show_json, show_table, track
from crossformerpp.cli.train import AsJson, Budget, Overrides, Overwrite


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or an exported .onnx file.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option(help="Output folder for annotated pictures; default: a new ./predictions.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of classes to report.")] = 5,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum score of reported objects; default: 0.5.")
    ] = None,
    budget: Budget = None,
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="Use the run's large setting only where its small one is unsure."),
    ] = False,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Predict images: a table, an annotated picture for each, predictions.json."""
    from crossformerpp import predict as room
    from crossformerpp.data.writing import fresh_folder

    # of several images the bar counts images, of a single large one its windows
    options: dict[str, Any] = {"top_k": top_k, "show_progress": len(images) == 1 and images[0].is_file()}
    if min_score is not None:
        options["min_score"] = min_score
    predictor = room.load_predictor(
        checkpoint, device, overrides or (), budget=budget, cascade=cascade, **options
    )
    found = room.find_images(images)
    folder = out or fresh_folder(Path("predictions"))
    predictions = room.predict(predictor, found, folder, overwrite=overwrite)
    results = list(track(predictions, len(found), "predict"))
    if as_json:
        show_json([result.to_json() for result in results])
    else:
        rows = [
            (str(result.image) if number == 0 else "", *row)
            for result in results
            if result.prediction is not None
            for number, row in enumerate(result.prediction.rows())
        ]
        if rows:
            show_table(("image", *predictor.columns), rows)
        say(f"annotated pictures and predictions.json are in {folder}")
    if cascade:
        say(predictor.summary())  # type: ignore[attr-defined]
    errors = [result.error for result in results if result.error is not None]
    for error in errors:
        say(f"crossformer: {error}")
    if len(errors) > 1:
        say(f"crossformer: {len(errors)} of {len(results)} images could not be predicted")
    if errors:
        raise typer.Exit(2)
