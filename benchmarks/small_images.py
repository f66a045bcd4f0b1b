"""What makes a CrossFormer++ collapse on photographs of 32×32 pixels, and what does not.

    python -m benchmarks.small_images --out runs/small_images

The data are grey patches of 32×32 pixels of the photographs in scikit-image's and scikit-learn's wheels; the class is
the photograph that a patch comes from. Photographs are cut into blocks of 96×96 pixels, every third of which is for
validation, so that no pixel is in both splits.

Every arm changes some settings of the recipe `small_images`, shortened. An arm is reported as collapsed where the
network of the last epoch gives at least 95 % of the validation patches one class, or where training ends with a loss
that is no number. Arms that are in OUT/small_images.csv are not run again. Results: docs/photographs.md.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from crossformerpp import engine
from crossformerpp.recipes.load import load_recipe

SIDE, BLOCK, STEP = 32, 96, 16  # pixels of a patch and of a block; between patches of a block
TRAIN, VAL = 160, 60  # patches of a photograph
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "retina", "rocket", "stereo_motorcycle", "china.jpg", "flower.jpg"),
)
COLLAPSED = 0.95  # share of the patches that are given one class

_SHORT = {
    "trainer.epochs": 12,
    "trainer.eval_every": 12,
    "trainer.result": "last",
    "trainer.workers": 0,
    "trainer.threads": 1,
    "trainer.batch_size": 64,
    "trainer.accelerator": "cpu",
    "schedule.warmup_epochs": 2,
    "model.options.depths": [2, 2, 4, 2],
    "model.options.embed_dim": 32,
}
_PAPER = {  # the stem, groups and intervals of CrossFormer++
    "model.options.strides": [4, 2, 2, 2],
    "model.options.kernel_sizes": [[4, 8, 16, 32], [2, 4], [2, 4], [2, 4]],
    "model.options.group_sizes": [4, 4, 14, 7],
    "model.options.intervals": [4, 2, 1, 1],
}
_HIGH = {"optim.lr": 1e-2}  # ten times the recipe's
_SUDDEN = {"schedule.warmup_epochs": 0}
_DEEP = {"model.options.depths": [2, 2, 18, 2]}  # as the paper's
ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "recipe, no warm-up": _SUDDEN,
    "recipe, rate × 10": _HIGH,
    "recipe, rate × 10, no warm-up": _HIGH | _SUDDEN,
    "paper's stem and groups": _PAPER,
    "paper's stem and groups, rate × 10": _PAPER | _HIGH,
    "paper's stem and groups, rate × 10, no warm-up": _PAPER | _HIGH | _SUDDEN,
    "paper's stem, groups and depths, rate × 10": _PAPER | _HIGH | _DEEP,
    "paper's stem, groups and depths, rate × 10, no warm-up": _PAPER | _HIGH | _DEEP | _SUDDEN,
}
COLUMNS = ("arm", "seed", "top1", "train_loss", "largest_share", "cpu_seconds")


def write_patches(folder: Path, train: int = TRAIN, seed: int = 0) -> Path:
    """`folder/{train,val}/PHOTOGRAPH/*.png`; a folder that exists is kept.

    Args:
        train: Patches of a photograph for training.
    """
    if folder.exists():
        return folder
    generator = np.random.default_rng(seed)
    for name in PHOTOGRAPHS:
        patches = _patches(_open(name))
        for split, number in (("train", train), ("val", VAL)):
            own = patches[split]
            place = folder / split / name.removesuffix(".jpg")
            place.mkdir(parents=True)
            chosen = generator.choice(len(own), min(number, len(own)), replace=False)
            for count, index in enumerate(sorted(chosen.tolist())):
                own[index].save(place / f"{count:04d}.png")
    return folder


def _open(name: str) -> Image.Image:
    opened = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return Image.fromarray(opened[0] if isinstance(opened, tuple) else opened).convert("L")


def _patches(image: Image.Image) -> dict[str, list[Image.Image]]:
    found: dict[str, list[Image.Image]] = {"train": [], "val": []}
    for row in range(image.height // BLOCK):
        for column in range(image.width // BLOCK):
            split = "val" if (row + column) % 3 == 2 else "train"
            for top in range(row * BLOCK, (row + 1) * BLOCK - SIDE + 1, STEP):
                for left in range(column * BLOCK, (column + 1) * BLOCK - SIDE + 1, STEP):
                    found[split].append(image.crop((left, top, left + SIDE, top + SIDE)))
    return found


def run(arm: str, seed: int, folder: Path, out: Path) -> dict[str, Any]:
    """Train an arm; its row of the table."""
    settings = _SHORT | ARMS[arm] | {"data.root": str(folder), "trainer.seed": seed}
    place = out / f"{list(ARMS).index(arm)}-{seed}"
    started = time.process_time()
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    try:
        metrics = engine.train(load_recipe("small_images", _texts(settings)), place, overwrite=True)
    except ValueError as error:  # a loss that is no number
        print(f"{arm}: {error}")
        return row | {"top1": "nan", "train_loss": "nan", "largest_share": 1.0}
    with (place / "predictions.csv").open(newline="") as file:
        predicted = Counter(line["predicted"] for line in csv.DictReader(file))
    with (place / "metrics.csv").open(newline="") as file:
        losses = [float(line["train_loss"]) for line in csv.DictReader(file) if line.get("train_loss")]
    return row | {
        "top1": metrics["top1"],
        "train_loss": mean(losses[-5:]),
        "largest_share": max(predicted.values()) / sum(predicted.values()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per arm: accuracy of every seed, the mean last loss, and how many seeds collapsed."""
    text = "| settings | top-1 of each seed, % | last training loss | collapsed |\n|---|---|---|---|\n"
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            text += f"| {arm} | not run | | |\n"
            continue
        scores = ", ".join(f"{100 * float(row['top1']):.1f}" for row in own)
        loss = mean(float(row["train_loss"]) for row in own)
        collapsed = sum(float(row["largest_share"]) >= COLLAPSED for row in own)
        text += f"| {arm} | {scores} | {loss:.2f} | {collapsed} of {len(own)} |\n"
    return text


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
    parser.add_argument("--out", type=Path, default=Path("runs/small_images"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--patches", type=int, default=TRAIN, help="of a photograph, for training")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    arguments = parser.parse_args()
    folder = write_patches(arguments.out / "patches", arguments.patches)
    table = arguments.out / "small_images.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            if (arm, str(seed)) in {(row["arm"], row["seed"]) for row in _read(table)}:
                continue
            row = run(arm, seed, folder, arguments.out)
            with table.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
    print(markdown(_read(table)))


if __name__ == "__main__":
    main()
