"""Faces and other pictures, from scratch: 200 of scikit-image's of 25×25 pixels, on one CPU core in half a minute."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import lfw_subset

from crossformerpp.cli import main as crossformer

SETTINGS = (
    "model.options.depths=[1, 1, 2, 1]",
    "schedule.warmup_epochs=2",
    "trainer.epochs=20",
    "trainer.eval_every=20",
    "trainer.batch_size=16",
    "trainer.result=last",  # the validation pictures do not choose the epoch that is reported on them
    "trainer.workers=0",
    "trainer.threads=1",
)


def write_faces(root: Path) -> Path:
    """root/{train,val}/{face,other}/*.png: of 100 faces and 100 others every fifth is for validation."""
    for number, pixels in enumerate(lfw_subset()):
        split, name = "val" if number % 5 == 4 else "train", "face" if number < 100 else "other"
        path = root / split / name / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
    return root


def main(folder: str = "runs/faces") -> float:
    root = Path(folder)
    data = write_faces(root / "data")
    run("data", "doctor", data, "--out", root / "doctor", "--overwrite")
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    run("train", "small_images", "--data", data, "--out", root / "run", "--overwrite", *settings)
    run("predict", root / "run", data / "val" / "face", "--out", root / "predictions", "--overwrite")
    accuracy = json.loads((root / "run" / "metrics.json").read_text())["top1"]
    print(f"{accuracy:.3f} of the 40 validation pictures")
    return accuracy


def run(*arguments: object) -> None:
    """A command of `crossformer`, in this process."""
    try:
        crossformer([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:2])
