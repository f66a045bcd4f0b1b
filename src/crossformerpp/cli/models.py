"""`crossformer models` and `crossformer convert`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson, Overwrite


def models(
    task: Annotated[
        Literal["classification", "detection", "segmentation"],
        typer.Option(help="Whose models; of the dense tasks those of the paper's tables."),
    ] = "classification",
    as_json: AsJson = False,
) -> None:
    """List models with their parameters and multiply-accumulates, as counted; of the dense tasks beside the paper's."""
    if task == "detection":
        _detectors(as_json)
    elif task == "segmentation":
        _segmenters(as_json)
    else:
        _classifiers(as_json)


def _classifiers(as_json: bool) -> None:
    records = [_measure(name) for name in _variants()]
    if as_json:
        show_json(records)
        return
    show_table(
        ("name", "params", "MACs at 224", "group sizes G", "intervals I"),
        [
            (
                record["name"],
                f"{record['params'] / 1e6:.3f}M",
                f"{record['macs'] / 1e9:.2f}G",
                ", ".join(map(str, record["group_sizes"])),
                ", ".join(map(str, record["intervals"])),
            )
            for record in records
        ],
    )


def convert(
    source: Annotated[Path, typer.Argument(help="A released .pth file.")],
    destination: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str, typer.Option(help="Variant, e.g. crossformer_small.")],
    lda: Annotated[
        Literal["spanning", "regional"] | None,
        typer.Option(help="LDA grouping the weights were trained with; default: the variant's."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a released checkpoint to safetensors, without executing anything in it."""
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


def _detectors(as_json: bool) -> None:
    from crossformerpp.tasks.detection.table import EXPLANATION, SIZE, model_rows

    rows = list(model_rows())
    if as_json:
        show_json([row.to_json() for row in rows])
        return
    height, width = SIZE
    table = [(row.name, f"{row.detector} {row.schedule}", *_counts(row)) for row in rows]
    show_table(
        ("name", "detector", "G", "I", "params", "paper's", "MACs", "paper's"), table, f"at {width}×{height}"
    )
    say(EXPLANATION)


def _segmenters(as_json: bool) -> None:
    from crossformerpp.tasks.segmentation.table import SIZE, model_rows

    rows = list(model_rows())
    if as_json:
        show_json([row.to_json() for row in rows])
        return
    table = [(row.name, row.decoder, *_counts(row)) for row in rows]
    show_table(
        ("name", "decoder", "G", "I", "params", "paper's", "MACs", "paper's"), table, f"at {SIZE}×{SIZE}"
    )


def _counts(row: Any) -> tuple[str, ...]:
    groups = (", ".join(map(str, values)) for values in (row.group_sizes, row.intervals))
    params = (f"{row.params / 1e6:.2f}M", f"{row.paper_params / 1e6:.1f}M")
    return (*groups, *params, f"{row.macs / 1e9:.1f}G", f"{row.paper_macs / 1e9:.1f}G")


def _variants() -> list[str]:
    import crossformerpp

    return list(crossformerpp.VARIANTS)


def _measure(name: str) -> dict[str, Any]:
    import timm
    import torch

    from crossformerpp.analysis.complexity import count_complexity

    with torch.device("meta"):
        model: Any = timm.create_model(name)
    cost = count_complexity(model, (3, 224, 224))
    stages = [list(stage.blocks) for stage in model.stages]
    return {
        "name": name,
        "params": cost.params,
        "macs": cost.macs,
        "group_sizes": [_one([block.attn.group_size for block in blocks]) for blocks in stages],
        "intervals": [_one([block.attn.interval for block in blocks]) for blocks in stages],
    }


def _one(values: list[int]) -> int | list[int]:
    """A stage's value; a list where its blocks differ."""
    return values[0] if len(set(values)) == 1 else values
