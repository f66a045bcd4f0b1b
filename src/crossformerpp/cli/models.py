"""`crossformer models`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson


def models(
    task: Annotated[
        Literal["classification", "detection", "segmentation"],
        typer.Option(help="Classifiers, or the detectors and segmenters of the paper's tables."),
    ] = "classification",
    as_json: AsJson = False,
) -> None:
    """List the models with their parameters and multiply-accumulates (MACs)."""
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


def _dense_models(tables: Sequence[str], as_json: bool) -> None:
    from crossformerpp.tasks.tables import kept_rows

    rows = [row for table in tables for row in kept_rows(table) if row.is_ours]
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

    from crossformerpp.analysis.paper_count import count_as_the_paper

    with torch.device("meta"):
        model: Any = timm.create_model(name)
    stages = [list(stage.blocks) for stage in model.stages]
    return {
        "name": name,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        # by formula, what `count_complexity` takes a forward pass for
        "macs": count_as_the_paper(name, {}, 224, 224, padded=False) + model.num_features * model.num_classes,
        "group_sizes": [_one([block.attn.rule.group_size for block in blocks]) for blocks in stages],
        "intervals": [_one([block.attn.rule.interval for block in blocks]) for blocks in stages],
    }


def _one(values: list[int]) -> int | list[int]:
    """A stage's value; a list where its blocks differ."""
    return values[0] if len(set(values)) == 1 else values
