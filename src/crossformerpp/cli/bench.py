"""`crossformer bench`."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.output import show_json, show_table, track
from crossformerpp.cli.train import AsJson, Overwrite

Protocol = Annotated[
    Literal["turns", "paper"],
    typer.Option(
        help="turns: models take turns and each run is waited for; paper: one model at a time, 50 warm-up runs, "
        "then 30 without waiting in between."
    ),
]


def bench(
    models: Annotated[
        list[str],
        typer.Argument(help="timm model names; the others are compared with the last one."),
    ],
    batch: Annotated[list[int], typer.Option(min=1, help="Images per batch; may be repeated.")] = [16, 1],  # noqa: B006
    size: Annotated[list[str], typer.Option(help="SIDE or HEIGHTxWIDTH; may be repeated.")] = ["224"],  # noqa: B006
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Data type of weights and images.")
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the models with torch.compile.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--train", help="Time training steps instead of inference.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's.")] = None,
    options: Annotated[
        str, typer.Option(help="Options of CrossFormer models as YAML, e.g. 'group_sizes: [14, 14, 7, 7]'.")
    ] = "{}",
    seconds: Annotated[
        float, typer.Option(help="Approximate time per size and batch size, with --protocol turns.")
    ] = 10.0,
    protocol: Protocol = "turns",
    out: Annotated[Path | None, typer.Option(help="Folder for bench.csv and bench.png.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare the speed and memory of timm models: ms per batch, images/s, share of the machine's peak, memory."""
    import torch

    from crossformerpp.analysis.benchmark import Setting
    from crossformerpp.analysis.benchmark import bench as measure
    from crossformerpp.analysis.throughput import require_device
    from crossformerpp.recipes.load import parse_options

    if out is not None:
        import matplotlib  # noqa: F401  (draws what is written; better missed now than after the timing)

        taken = [name for name in ("bench.csv", "bench.png") if (out / name).exists()]
        if out.is_file() or (taken and not overwrite):
            place = out / taken[0] if taken else out
            raise ValueError(f"{place} exists: choose another folder or pass --overwrite")
    require_device(device)
    if threads:
        torch.set_num_threads(threads)
    settings = [
        Setting(batch_size, *_sides(text), dtype, compiled, training, device)
        for text, batch_size in itertools.product(size, batch)
    ]
    found = measure(models, settings, parse_options(options), seconds, protocol)
    rows = [
        asdict(row) | {"protocol": protocol} for row in track(found, len(settings) * len(models), "timing")
    ]
    kind = [dtype, "compiled" if compiled else "eager", "training step" if training else "inference", device]
    if as_json:
        show_json(rows)
    else:
        _show(rows, ", ".join(kind), protocol)
    if out is not None:
        _write(rows, out)


def _show(rows: Sequence[Mapping[str, Any]], title: str, protocol: str) -> None:
    show_table(
        (
            "model",
            "batch",
            "size",
            "median ms" if protocol == "turns" else "mean ms",
            "quartiles",
            "images/s",
            "GFLOP/s",
            "of peak",
            "extra MiB",
            "×",
        ),
        [
            (
                row["model"],
                str(row["batch_size"]),
                f"{row['height']}x{row['width']}",
                f"{row['median_ms']:.1f}",
                f"{row['low_ms']:.1f}-{row['high_ms']:.1f}" if protocol == "turns" else "",
                f"{row['images_per_s']:.1f}",
                f"{row['gflops_per_s']:.0f}",
                f"{row['peak_share']:.0%}",
                f"{row['peak_extra_bytes'] / 2**20:.0f}",
                f"{row['speed_ratio']:.2f}",
            )
            for row in rows
        ],
        title=title,
    )


def _sides(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise ValueError(f"size {text!r}: give a side such as 224, or HEIGHTxWIDTH such as 800x1344")
    return int(sides[0]), int(sides[-1])


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    from crossformerpp.analysis.pictures import bars
    from crossformerpp.data.writing import replacing_folder

    labels = [f"{row['model']}\n{row['batch_size']} × {row['height']}x{row['width']}" for row in rows]
    with replacing_folder(out) as draft:
        with (draft / "bench.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        bars(labels, [row["images_per_s"] for row in rows], "images/s", draft / "bench.png")
