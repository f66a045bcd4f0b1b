"""One network for any budget: an elastic network beside networks that were trained for one budget alone.

    python -m benchmarks.elastic --out runs/elastic

Every arm is the same small CrossFormer++, trained from the same seed with the same steps, and judged with the groups of
three budgets. `small`, `medium` and `large` were trained with the groups of that budget alone; judged with those of
another budget they are today's networks whose groups are changed after training. The others are elastic. Each step of
`sandwich` and `distilled` trains three settings, so that they take about three times the compute; `random` trains one.

Arms that are in OUT/elastic.csv are not run again, so that it may be stopped at any time. Results: docs/budget.md.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import timm
import torch
import yaml

from crossformerpp import engine
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.recipes.load import load_recipe

NETWORK: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [2, 2, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "kernel_sizes": [[4, 8, 16], [2, 4], [2, 4], [2, 4]],
    "intervals": "adaptive",
    "drop_path_rate": 0.0,
}
CLASSIFIED = {
    "data.size": 64,
    "data.eval_resize": 64,
    "augment.auto_augment": None,
    "ema": None,
    "optim.lr": 2e-3,
    "schedule.warmup_epochs": 1,
    "trainer.batch_size": 32,
}


class Study(NamedTuple):
    """Data, and the groups of each budget. With adaptive intervals LDA reaches over the map whatever G is."""

    recipe: str
    metric: str
    side: int
    budgets: dict[str, list[int]]
    ranges: list[list[int]]
    settings: dict[str, Any]
    seeds: int


STUDIES = {
    "digits": Study(
        "digits",
        "top1",
        64,
        {"small": [2, 2, 2, 1], "medium": [4, 4, 4, 2], "large": [16, 8, 4, 2]},
        [[2, 4, 8, 16], [2, 4, 8], [2, 4], [1, 2]],
        CLASSIFIED | {"trainer.epochs": 6, "trainer.eval_every": 6},
        seeds=3,
    ),
    "mnist": Study(
        "mnist",
        "top1",
        64,
        {"small": [2, 2, 2, 1], "medium": [4, 4, 4, 2], "large": [16, 8, 4, 2]},
        [[2, 4, 8, 16], [2, 4, 8], [2, 4], [1, 2]],
        CLASSIFIED | {"trainer.epochs": 2, "trainer.eval_every": 2},
        seeds=2,
    ),
    "digit_scenes": Study(
        "digit_scenes/semantic_fpn",
        "miou",
        128,
        {"small": [2, 2, 2, 1], "medium": [4, 4, 4, 4], "large": [32, 16, 8, 4]},
        [[2, 4, 8, 16, 32], [2, 4, 8, 16], [2, 4, 8], [1, 2, 4]],
        {"data.scenes.train": 400, "trainer.steps": 1500, "trainer.eval_every": 1500, "trainer.workers": 0}
        | {"schedule.warmup_steps": 100, "optim.lr": 2e-3},
        seeds=2,
    ),
}
ELASTIC: dict[str, dict[str, Any]] = {
    "sandwich": {},
    "distilled": {"distill": 1.0},
    "random": {"draw": ["random"]},
}
COLUMNS = ("data", "seed", "arm", "budget", "score", "gmacs", "train_seconds")


def arms(data: str) -> list[str]:
    """What is trained on a data set; distillation is for classifiers."""
    return [*STUDIES[data].budgets, *(arm for arm in ELASTIC if arm != "distilled" or data != "digit_scenes")]


def run(data: str, arm: str, seed: int, out: Path) -> list[dict[str, Any]]:
    """Train an arm and judge it with the groups of every budget; a row for each.

    On digit_scenes it starts from the same seed's digits network of the budget "medium", as the recipe advises.
    """
    study = STUDIES[data]
    own = study.budgets.get(arm, study.budgets["large"])
    settings: dict[str, Any] = study.settings | {"trainer.seed": seed, "trainer.threads": 1}
    settings["model.options"] = NETWORK | {"group_sizes": own}
    if arm in ELASTIC:
        settings["model.elastic"] = {"group_sizes": study.ranges, **ELASTIC[arm]}
    if data == "digit_scenes":
        settings["model.checkpoint"] = str(out / f"digits-medium-{seed}")
    folder = out / f"{data}-{arm}-{seed}"
    started = time.process_time()
    engine.train(load_recipe(study.recipe, _texts(settings)), folder, overwrite=True)
    seconds = time.process_time() - started
    rows = []
    for budget, groups in study.budgets.items():
        metrics = engine.evaluate(folder, overrides=_texts({"model.options.group_sizes": groups}))
        row = {"data": data, "seed": seed, "arm": arm, "budget": budget, "score": metrics[study.metric]}
        rows.append(row | {"gmacs": gmacs(study, groups), "train_seconds": round(seconds, 1)})
    return rows


def gmacs(study: Study, groups: list[int]) -> float:
    """Of the backbone for an image as the network sees it."""
    with torch.device("meta"):
        model = timm.create_model("crossformerpp_small", num_classes=10, **NETWORK, group_sizes=groups)
    return count_complexity(model, (3, study.side, study.side)).macs / 1e9


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table per data set: per cent, mean ± standard deviation over seeds, of each arm with each budget's groups."""
    text = ""
    for data, study in STUDIES.items():
        costs = {budget: f"{1e3 * gmacs(study, groups):.1f}M" for budget, groups in study.budgets.items()}
        text += f"\n| {data}, {study.metric} in % | seeds | CPU seconds | "
        text += " | ".join(f"{budget}, {cost}" for budget, cost in costs.items())
        text += f" |\n|---|---|---|{'---|' * len(costs)}\n"
        for arm in arms(data):
            own = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
            if not own:
                text += f"| {arm} | 0 | not run |{' |' * len(costs)}\n"
                continue
            seconds = mean(float(row["train_seconds"]) for row in own)
            cells = [_spread([100 * float(row["score"]) for row in own if row["budget"] == b]) for b in costs]
            text += f"| {arm} | {len({row['seed'] for row in own})} | {seconds:.0f} | {' | '.join(cells)} |\n"
    return text.lstrip()


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _texts(settings: dict[str, Any]) -> list[str]:
    def flow(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()

    return [f"{key}={flow(value)}" for key, value in settings.items()]


def _read(table: Path) -> list[dict[str, Any]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/elastic"))
    parser.add_argument("--seeds", type=int, help="default: 3 of digits, 2 of the others")
    parser.add_argument("--data", nargs="*", choices=STUDIES, default=list(STUDIES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "elastic.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    for seed in range(arguments.seeds or max(study.seeds for study in STUDIES.values())):
        for data in arguments.data:
            if seed >= (arguments.seeds or STUDIES[data].seeds):
                continue
            for arm in arms(data):
                if (data, arm, str(seed)) in {(r["data"], r["arm"], r["seed"]) for r in _read(table)}:
                    continue
                rows = run(data, arm, seed, arguments.out)
                with table.open("a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerows(rows)
    (arguments.out / "elastic.md").write_text(markdown(_read(table)))
    print(markdown(_read(table)))


if __name__ == "__main__":
    main()
