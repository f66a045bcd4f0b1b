"""`crossformer convert`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json
from crossformerpp.cli.train import AsJson, Overwrite


def convert(
    source: Annotated[Path, typer.Argument(help="A released .pth file.")],
    destination: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Variant, e.g. crossformer_small. Not with --task: a detector's weights tell its backbone."
        ),
    ] = None,
    task: Annotated[
        Literal["classification", "detection", "segmentation"],
        typer.Option(
            help="What to convert: a classifier (or a backbone alone), a whole detector or segmenter."
        ),
    ] = "classification",
    options: Annotated[
        str,
        typer.Option(help="With --task: groups other than the file's, e.g. 'group_sizes: [14, 14, 7, 7]'."),
    ] = "{}",
    lda: Annotated[
        Literal["spanning", "regional"] | None,
        typer.Option(help="LDA grouping the weights were trained with; default: the variant's."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a released checkpoint to safetensors without executing any of its contents."""
    from crossformerpp.recipes.load import parse_options

    chosen = parse_options(options)
    if task != "classification":
        if model is not None:
            raise ValueError(
                f"--model {model} --task {task}: leave out --model, the weights tell which backbone it is"
            )
        _convert_dense(source, destination, task, chosen | ({"lda": lda} if lda else {}), overwrite, as_json)
        return
    if model is None:
        raise ValueError(
            "pass --model NAME, such as crossformer_small, or --task for a whole detector or segmenter"
        )
    if chosen:
        raise ValueError(f"--options {options!r} belongs to --task detection or segmentation")
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
