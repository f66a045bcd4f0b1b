"""What each part contributes, on 5,000 real MNIST digits: every row trained from several seeds on one CPU core.

    python -m benchmarks.ablation --out runs/ablation

Rows that are in OUT/ablation.csv are not run again, so that it may be stopped at any time. All rows are one recipe
(`mnist`, shortened) and differ in the options shown; see docs/analysis.md for what this scale can show.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from crossformerpp import engine
from crossformerpp.analysis.amplitude import BlockAmplitude, block_amplitudes
from crossformerpp.data.classification import open_mnist
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.network import open_network

# Half as many pixels again as the recipe has, so that maps of 12, 6 and 3 tokens a side can be cut into groups at all.
BASE: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [2, 2, 9, 2],
    "num_heads": [1, 2, 4, 8],
    "kernel_sizes": [[4, 8, 16], [2, 4], [2, 4], [2, 4]],
    "group_sizes": [2, 2, 3, 2],
    "intervals": [6, 3, 1, 1],
    "cooling": 3,
}
SETTINGS = {
    "data.size": 48,
    "data.eval_resize": 48,
    "augment.auto_augment": None,
    "ema": None,
    "optim.lr": 2e-3,
    "schedule.warmup_epochs": 1,
    "trainer.epochs": 4,
    "trainer.eval_every": 4,
    "trainer.batch_size": 64,
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "crossformerpp": ("CrossFormer++: CEL, LSDA, PGS, ACL", {}),
    "no-cel": ("one kernel in place of CEL", {"kernel_sizes": [[4], [2], [2], [2]]}),
    "swin": ("Swin's attention in place of LSDA", {"attention": "swin"}),
    "g2": ("G = 2 everywhere in place of PGS", {"group_sizes": [2, 2, 2, 2], "intervals": [6, 3, 2, 1]}),
    "global": ("whole maps in place of PGS", {"group_sizes": [12, 6, 3, 2]}),
    "no-acl": ("no ACL", {"cooling": 0}),
    "gated": ("gated cooling in place of ACL", {"cooling_kind": "gated"}),
    "limit": ("limiter in place of ACL", {"cooling_kind": "limit"}),
}
COLUMNS = ("row", "seed", "top1", "loss", "maximum", "mean", "minutes")


def run(row: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one row from one seed; its line of the table."""
    options = yaml.safe_dump({**BASE, **ROWS[row][1]}, default_flow_style=True, width=10_000).strip()
    settings = SETTINGS | {"trainer.seed": seed, "model.options": options}
    texts = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
    started = time.perf_counter()
    metrics = engine.train(load_recipe("mnist", texts), folder, overwrite=True)
    minutes = (time.perf_counter() - started) / 60
    amplitude = deep_amplitude(folder)
    return {
        "row": row,
        "seed": seed,
        "top1": metrics["top1"],
        "loss": metrics["loss"],
        "maximum": amplitude.maximum,
        "mean": amplitude.mean,
        "minutes": minutes,
    }


def deep_amplitude(folder: Path, images: int = 256) -> BlockAmplitude:
    """Of a trained model on test digits, at the end of the third stage: the only one deep enough for cooling layers."""
    network, digits = open_network(str(folder)), open_mnist("val", SETTINGS["data.size"])
    batch = torch.stack([network.transform(digits.open(number)) for number in range(images)])
    return [block for block in block_amplitudes(network.model, [batch]) if block.stage == 3][-1]


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table: mean ± standard deviation over seeds."""
    text = "| model | seeds | top-1, % | test loss | maximal amplitude at the end of stage 3 | mean |\n"
    text += "|---|---|---|---|---|---|\n"
    for row, (title, _) in ROWS.items():
        own = [line for line in lines if line["row"] == row]
        if not own:
            text += f"| {title} | 0 | not run | | | |\n"
            continue
        cells = [_spread([100 * float(line["top1"]) for line in own], ".2f")]
        cells += [_spread([float(line["loss"]) for line in own], ".3f")]
        cells += [_spread([float(line[key]) for line in own], ".2f") for key in COLUMNS[4:6]]
        text += f"| {title} | {len(own)} | {' | '.join(cells)} |\n"
    return text


def _spread(values: list[float], form: str) -> str:
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "ablation.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    for seed in range(arguments.seeds):
        for row in ROWS:
            if any(line["row"] == row and int(line["seed"]) == seed for line in _read(table)):
                continue
            line = run(row, seed, arguments.out / f"{row}-{seed}")
            with table.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(line)
    (arguments.out / "ablation.md").write_text(markdown(_read(table)))
    print(markdown(_read(table)))


def _read(table: Path) -> list[dict[str, Any]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
