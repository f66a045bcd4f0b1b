"""The product against the literal implementation of the paper, in turn in one process: `make benchmark`.

Prints the ratio of median times (above 1: the product is faster) and of peak extra memory (below 1: it needs less).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.literal import LiteralCrossFormer
from crossformerpp import VARIANTS
from crossformerpp.analysis.throughput import peak_extra_memory, time_in_turn

SMALL = {"group_sizes": (7, 7, 7, 7), "intervals": (8, 4, 2, 1)}
WIDE = {"group_sizes": (14, 14, 7, 7), "intervals": (16, 8, 2, 1)}
REGIONAL, SPANNING = {"lda": "regional"}, {"lda": "spanning"}
#        model, batch, height, width, overrides, training, training
CASES: list[tuple[str, int, int, int, dict[str, Any], bool]] = [
    ("crossformerpp_small", 16, 224, 224, {}, False),
    ("crossformerpp_small", 1, 224, 224, {}, False),
    ("crossformerpp_small", 8, 224, 224, {}, True),
    ("crossformer_small", 1, 1024, 1024, {**WIDE, **REGIONAL}, False),
    ("crossformer_small", 1, 800, 1344, {**WIDE, **REGIONAL}, False),
    ("crossformer_small", 1, 512, 512, {**WIDE, **REGIONAL}, False),
    ("crossformer_small", 1, 800, 1344, {**SMALL, **SPANNING}, False),
    ("crossformer_small", 1, 800, 1344, {**WIDE, **SPANNING}, False),
    ("crossformer_small", 1, 800, 1344, {**SMALL, **SPANNING}, True),
    ("crossformer_small", 1, 800, 1344, {**WIDE, **SPANNING}, True),
]


def measure(
    name: str, batch: int, height: int, width: int, overrides: dict[str, Any], training: bool, seconds: float
) -> dict[str, Any]:
    """One row: medians in seconds, ratios, peak extra memory in bytes, largest difference of outputs."""
    torch.manual_seed(0)
    product = timm.create_model(name, **overrides)
    literal = LiteralCrossFormer(**{**VARIANTS[name], **overrides})
    literal.load_state_dict(product.state_dict())
    x = torch.randn(batch, 3, height, width)
    models: dict[str, torch.nn.Module] = {"product": product, "literal": literal}
    with torch.inference_mode():
        difference = (product.eval()(x) - literal.eval()(x)).abs().max().item()
    if training:
        calls = {key: _train_step(model.train(), x) for key, model in models.items()}
    else:
        calls = {key: _inference(model, x) for key, model in models.items()}
    timings = time_in_turn(calls, seconds)
    memory = {key: peak_extra_memory(call) for key, call in calls.items()}
    return {
        "model": name,
        "mode": "train step" if training else "inference",
        "batch": batch,
        "size": f"{height}x{width}",
        "groups": f"{overrides['group_sizes'][0]}, {overrides['lda']}" if overrides else "as released",
        "product_s": timings["product"].median,
        "literal_s": timings["literal"].median,
        "speed_ratio": timings["literal"].median / timings["product"].median,
        "product_bytes": memory["product"],
        "literal_bytes": memory["literal"],
        "memory_ratio": memory["product"] / memory["literal"],
        "max_difference": difference,
        "runs": timings["product"].runs,
    }


def _inference(model: torch.nn.Module, x: torch.Tensor) -> Any:
    @torch.inference_mode()
    def call() -> None:
        model(x)

    return call


def _train_step(model: torch.nn.Module, x: torch.Tensor) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    target = torch.randint(1000, (len(x),))

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long to time each row")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [
        measure(*case, seconds=options.seconds)
        for case in track(CASES, "measuring", console=Console(stderr=True), transient=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"product vs literal, float32, {torch.get_num_threads()} CPU threads")
    for column in (
        "model",
        "mode",
        "batch",
        "size",
        "groups",
        "product ms",
        "literal ms",
        "speed ×",
        "peak memory",
    ):
        table.add_column(column, justify="left" if column in ("model", "mode", "groups") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            row["mode"],
            str(row["batch"]),
            row["size"],
            row["groups"],
            f"{row['product_s'] * 1e3:.0f}",
            f"{row['literal_s'] * 1e3:.0f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['product_bytes'] / 2**20:.0f} / {row['literal_bytes'] / 2**20:.0f} MiB = {row['memory_ratio']:.2f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
