"""`crossformer models` and `crossformer convert`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson, Overwrite


def models(
    task: Annotated[
        Literal["classification", "detection", "segmentation"],
        typer.Option(help="Task of the models; for detection and segmentation those of the paper's tables."),
    ] = "classification",
    as_json: AsJson = False,
) -> None:
    """List models with their parameters and multiply-accumulates; for dense tasks beside the paper's figures."""
    if task == "detection":
        _dense_models(("III", "IV"), as_json)
    elif task == "segmentation":
        _dense_models(("V",), as_json)
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
    model: Annotated[
        str | None,
        typer.Option(
            help="Variant, e.g. crossformer_small; with --task detection or segmentation it is found."
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
        typer.Option(
            help="Groups of a detector or segmenter, e.g. 'group_sizes: [14, 14, 7, 7]'; default: the file's."
        ),
    ] = "{}",
    lda: Annotated[
        Literal["spanning", "regional"] | None,
        typer.Option(help="LDA grouping the weights were trained with; default: the variant's."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a released checkpoint to safetensors without executing any of its contents."""
    from crossformerpp import checkpoints

    if task != "classification":
        if model is not None:
            raise ValueError(
                f"--model {model}: leave it out, the weights of a whole model tell which backbone it has"
            )
        _convert_dense(source, destination, task, options, lda, overwrite, as_json)
        return
    if model is None:
        raise ValueError(
            "pass --model NAME, such as crossformer_small, or --task for a whole detector or segmenter"
        )
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
    options: str,
    lda: Literal["spanning", "regional"] | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from crossformerpp.recipes.load import parse_options
    from crossformerpp.tasks.released import convert_dense

    chosen = parse_options(options) | ({"lda": lda} if lda else {})
    report = convert_dense(source, destination, task, options=chosen, overwrite=overwrite)
    if as_json:
        show_json(
            {
                "model": report.model,
                "head": report.head,
                "destination": str(report.destination),
                "tensors": report.num_tensors,
                "params": report.num_params,
                "class_names": report.class_names,
                "groups": report.groups,
                "groups_from": report.groups_from,
                "dropped": list(report.dropped),
            }
        )
        return
    groups = ", ".join(f"{name} {value}" for name, value in report.groups.items())
    say(
        f"{report.destination}: {report.head} on {report.model}, {report.num_tensors} tensors, "
        f"{len(report.class_names)} classes; {groups} (by {report.groups_from})"
    )


def _dense_models(tables: Sequence[str], as_json: bool) -> None:
    from crossformerpp.tasks.tables import table_rows

    rows = [row for table in tables for row in table_rows(table) if row.is_ours]
    if as_json:
        show_json([row.to_json() for row in rows])
        return
    height, width = rows[0].size
    show_table(
        (
            "model",
            "head",
            "schedule",
            "params",
            "paper's",
            "GMACs",
            "as the paper counts",
            "paper's FLOPs, G",
        ),
        [
            (
                row.name,
                row.head or "",
                row.schedule or "",
                f"{(row.params or 0) / 1e6:.2f}M",
                f"{(row.paper_params or 0) / 1e6:.1f}M",
                *(f"{(macs or 0) / 1e9:.1f}" for macs in (row.macs, row.paper_count, row.paper_macs)),
            )
            for row in rows
        ],
        f"one image of {width}×{height}",
    )
    for row in rows:
        if row.note:
            say(f"{row.name}: {row.note}")


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
        "group_sizes": [_one([block.attn.rule.group_size for block in blocks]) for blocks in stages],
        "intervals": [_one([block.attn.rule.interval for block in blocks]) for blocks in stages],
    }


def _one(values: list[int]) -> int | list[int]:
    """A stage's value; a list where its blocks differ."""
    return values[0] if len(set(values)) == 1 else values
