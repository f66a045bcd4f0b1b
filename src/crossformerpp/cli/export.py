"""`crossformer export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_metrics, show_table, track
from crossformerpp.cli.train import AsJson, Budget, Overwrite


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, a converted file or a shared folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file; default: NAME.onnx or NAME.pt2 in the current folder, after the run."
        ),
    ] = None,
    form: Annotated[
        Literal["onnx", "torch-export", "aoti"], typer.Option("--format", help="Format of the file.")
    ] = "onnx",
    features: Annotated[
        bool, typer.Option("--features", help="Export the backbone's feature maps without the head.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Shorter side of the images in pixels, rounded to what the model needs; default: the recipe's.",
        ),
    ] = None,
    dynamic_size: Annotated[
        bool,
        typer.Option(
            "--dynamic-size",
            help="Export a classifier with dynamic height and width (other tasks always have them).",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantize to int8 (ONNX only) and measure the loss of accuracy; needs --calibrate."
        ),
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder of representative images to calibrate int8 with.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Data to evaluate the int8 model on; default: the run's validation data."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Largest loss of top-1, box AP or mIoU that --int8 accepts.")
    ] = 0.01,
    budget: Budget = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Export a trained model to ONNX, torch.export or AOTInductor and compare it with eager PyTorch."""
    from crossformerpp.export import export as write
    from crossformerpp.export.formats import SUFFIXES

    if int8 != (calibrate is not None):
        raise ValueError("--int8 and --calibrate FOLDER go together: pass both, or neither")
    if int8 and (form != "onnx" or features):
        raise ValueError("--int8 is for whole models in ONNX; leave out --format and --features")
    if int8 and budget is not None:
        raise ValueError("--int8 is compared with the run at its own setting: leave out --budget")
    if data is not None and not int8:
        raise ValueError(
            "--data goes with --int8; to evaluate any exported file: crossformer eval FILE --data …"
        )
    whole = checkpoint.resolve()
    destination = out or Path((whole.name if whole.is_dir() else whole.stem) + SUFFIXES[form])
    certificate = None
    if calibrate is not None:
        from crossformerpp.export.int8 import export_int8

        report, certificate = export_int8(
            checkpoint,
            destination,
            calibrate,
            root=data,
            max_drop=max_drop,
            size=size,
            dynamic_size=dynamic_size,
            overwrite=overwrite,
            track=lambda items, total: track(items, total, "evaluate int8"),
        )
    else:
        report = write(
            checkpoint,
            destination,
            form,
            features=features,
            size=size,
            dynamic_size=dynamic_size,
            budget=budget,
            overwrite=overwrite,
        )
    rows = [("×".join(map(str, shape)), *found) for shape, found in report.differences.items()]
    if as_json:
        names = ("images", "difference", "share")
        page = {
            "file": str(report.destination),
            "task": report.task,
            "outputs": list(report.outputs),
            "short_sides": list(report.short_sides),
            "compared": [dict(zip(names, row, strict=True)) for row in rows],
        }
        show_json(page if certificate is None else page | {"certificate": certificate.to_json()})
        return
    show_table(
        ("images", "largest difference to eager", "of the largest output"),
        [(shape, f"{difference:.1e}", f"{share:.1e}") for shape, difference, share in rows],
        None if certificate is None else "float32, before quantization",
    )
    if certificate is not None:
        show_metrics(
            certificate.metrics(), f"int8, compared with {certificate.checkpoint} on {certificate.data}"
        )
    least, most = report.short_sides
    sides = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
    outputs = ", ".join(report.outputs)
    say(f"{report.destination}: {report.task} ({outputs}), for images with a shorter side of {sides} pixels")
