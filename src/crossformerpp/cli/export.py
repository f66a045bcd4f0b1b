"""`crossformer export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson, Budget, Overwrite


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory, a checkpoint, a converted file.")],
    out: Annotated[
        Path | None, typer.Option(help="Output file; default: the run's name in the current folder.")
    ] = None,
    form: Annotated[
        Literal["onnx", "torch-export", "aoti"], typer.Option("--format", help="Format of the file.")
    ] = "onnx",
    features: Annotated[
        bool, typer.Option("--features", help="Export the backbone's feature maps without the head.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(min=32, help="Approximate shorter side of the images; default: the recipe's."),
    ] = None,
    budget: Budget = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Export a trained model to ONNX, torch.export or AOTInductor and compare it with eager PyTorch."""
    from crossformerpp.export import export as write
    from crossformerpp.export.formats import SUFFIXES

    destination = out or Path(checkpoint.resolve().stem + SUFFIXES[form])
    report = write(
        checkpoint, destination, form, features=features, size=size, budget=budget, overwrite=overwrite
    )
    rows = [("×".join(map(str, shape)), *found) for shape, found in report.differences.items()]
    if as_json:
        names = ("images", "difference", "share")
        show_json(
            {
                "file": str(report.destination),
                "task": report.task,
                "outputs": list(report.outputs),
                "short_sides": list(report.short_sides),
                "compared": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )
        return
    show_table(
        ("images", "largest difference to eager", "of the largest output"),
        [(shape, f"{difference:.1e}", f"{share:.1e}") for shape, difference, share in rows],
    )
    least, most = report.short_sides
    sides = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
    outputs = ", ".join(report.outputs)
    say(f"{report.destination}: {report.task} ({outputs}), for images with a shorter side of {sides} pixels")
