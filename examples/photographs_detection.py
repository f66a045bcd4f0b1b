"""Coins in scikit-image's photograph of 24 of them, found by a RetinaNet from scratch: a minute on one CPU core."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import filters, morphology
from skimage.data import coins

from crossformerpp.cli import main as crossformer
from crossformerpp.data.scenes import run_lengths

MIDDLE = 150  # row of pixels between the two upper rows of coins, for training, and the two lower ones
SETTINGS = (
    "model.options={embed_dim: 16, depths: [1, 1, 2, 1], num_heads: [1, 2, 4, 8]}",
    "model.options.group_sizes=[8, 8, 8, 4]",
    "model.options.intervals=[4, 2, 1, 1]",
    "detector={name: retinanet, pyramid_channels: 32, group_norm: true, anchor_sizes: [16, 32, 64, 128, 256]}",
    "data.short_side=[128]",
    "data.long_side=192",
    "data.color_jitter=0.2",
    "optim.lr=2e-3",
    "optim.lr_batch_size=null",
    "schedule={name: cosine, warmup_steps: 30, min_lr: 1e-5}",
    "trainer={steps: 200, batch_size: 4, eval_batch_size: 1, eval_every: 200, result: last, workers: 0, threads: 1}",
)


def coins_of(photograph: np.ndarray) -> np.ndarray:
    """H × W: the number of the coin at each pixel, 0 for none, by a threshold over the uneven light; no network."""
    height = photograph - filters.gaussian(photograph.astype(float), 40)
    mask = morphology.closing(height > filters.threshold_otsu(height), morphology.disk(3))
    mask = morphology.opening(ndimage.binary_fill_holes(mask), morphology.disk(4))
    return ndimage.label(morphology.remove_small_objects(mask, max_size=500))[0]


def write_coins(root: Path, train: int = 200, seed: int = 0) -> Path:
    """COCO's format: windows of the upper half at random for training, the lower half in three for validation."""
    photograph, generator = coins(), np.random.default_rng(seed)
    numbers = coins_of(photograph)
    windows: dict[str, list[tuple[int, int, int]]] = {"train": [], "val": []}  # left, top, side
    for _ in range(train):
        side = int(generator.integers(90, MIDDLE + 1))
        left, top = (int(generator.integers(space - side + 1)) for space in (photograph.shape[1], MIDDLE))
        windows["train"].append((left, top, side))
    windows["val"] = [(left, MIDDLE, 128) for left in (0, 128, 256)]
    for split, own in windows.items():
        page = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "coin"}]}
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        for number, (left, top, side) in enumerate(own):
            bottom = top + side if split == "train" else len(photograph)
            part = np.s_[top:bottom, left : left + side]
            Image.fromarray(photograph[part]).save(root / "images" / split / f"{number}.png")
            height, width = photograph[part].shape
            page["images"].append(
                {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
            )
            for coin in np.unique(numbers[part])[1:]:
                visible = numbers[part] == coin
                if 2 * visible.sum() < (numbers == coin).sum():
                    continue  # more than half of it is outside
                rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
                x, y = int(columns[0]), int(rows[0])
                box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
                about = {"id": len(page["annotations"]), "image_id": number, "category_id": 1, "iscrowd": 0}
                mask = {"bbox": box, "area": int(visible.sum()), "segmentation": run_lengths(visible)}
                page["annotations"].append(about | mask)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(page))
    return root


def main(folder: str = "runs/coins") -> float:
    root = Path(folder)
    data = write_coins(root / "data")
    run("data", "check", data)
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    run("train", "objects", "--data", data, "--out", root / "run", "--overwrite", *settings)
    run("predict", root / "run", data / "images" / "val", "--out", root / "predictions", "--overwrite")
    found = json.loads((root / "run" / "metrics.json").read_text())["box_AP"]
    print(f"AP {found:.3f} of the coins of the lower half")
    return found


def run(*arguments: object) -> None:
    """A command of `crossformer`, in this process."""
    try:
        crossformer([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:2])
