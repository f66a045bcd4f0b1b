"""`crossformer convert`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json
from crossformerpp.cli.train import AsJson, Overwrite


def convert(
    source: Annotated[Path, typer.Argument(help="A .pth file released by the authors.")],
    destination: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model the weights belong to, e.g. crossformer_small. Detected for detectors and segmenters."
        ),
    ] = None,
    task: Annotated[
        Literal["classification", "detection", "segmentation"],
        typer.Option(
            help="What to convert: a classifier or backbone, a whole detector, or a whole segmenter."
        ),
    ] = "classification",
    options: Annotated[
        str,
        typer.Option(
            help="With --task detection or segmentation: other model options than the file's (YAML), e.g. "
            "'group_sizes: [14, 14, 7, 7]'."
        ),
    ] = "{}",
    lda: Annotated[
        Literal["spanning", "regional"] | None,
        typer.Option(help="Long-distance grouping the weights were trained with; default: the model's."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint released by the authors to safetensors, without executing anything in it."""
    from crossformerpp.recipes.load import parse_options

    chosen = parse_options(options)
    if task != "classification":
        if model is not None:
            raise ValueError(
                f"--model {model} --task {task}: leave out --model; the backbone is detected from the weights"
            )
        _convert_dense(source, destination, task, chosen | ({"lda": lda} if lda else {}), overwrite, as_json)
        return
    if model is None:
        raise ValueError(
            "pass --model NAME, such as crossformer_small, or --task for a whole detector or segmenter"
        )
    if chosen:
        raise ValueError(f"--options {options!r} is for --task detection and segmentation: leave it out")
    from crossformerpp import checkpoints

    report = checkpoints.convert(source, destination, model, lda=lda, overwrite=overwrite)
    if as_json:
        show_json(
            {
                "model": report.model,
                "destination": str(report.destination),
                "tensors": report.num_tensors,
                "params": report.num_params,
                "num_classes": report.num_classes,
                "lda": report.lda,
                "dropped": list(report.dropped),
            }
        )
        return
    head = "no head" if report.num_classes is None else f"{report.num_classes} classes"
    dropped = f"; left out: {', '.join(report.dropped)}" if report.dropped else ""
    say(
        f"{report.destination}: {report.model}, {report.num_tensors} tensors, {head}, {report.lda} LDA{dropped}"
    )


def _convert_dense(
    source: Path,
    destination: Path,
    task: Literal["detection", "segmentation"],
    options: dict[str, Any],
    overwrite: bool,
    as_json: bool,
) -> None:
    from crossformerpp.tasks.released import convert_dense

    report = convert_dense(source, destination, task, options=options, overwrite=overwrite)
    if as_json:
        show_json(report.to_json())
        return
    groups = ", ".join(f"{name} {value}" for name, value in report.groups.items())
    say(
        f"{report.destination}: {report.head} on {report.model}, {report.num_tensors} tensors, "
        f"{len(report.class_names)} classes; {groups} (by {report.groups_from})"
    )
    for note in report.notes:
        say(f"note: {note}")
