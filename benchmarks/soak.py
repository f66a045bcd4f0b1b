"""Long runs: memory and open files stay as they are after a warm-up.

    python -m benchmarks.soak train [--epochs 2000]     the built-in digits, an evaluation after each short epoch
    python -m benchmarks.soak predict [--images 20000]  pictures and predictions.json of so many images

Memory (resident) and open files of this process are sampled while it works. The first tenth is the warm-up; after it
the median of each further tenth must stay within 5% of the second's, and the number of open files must not grow.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from crossformerpp import engine, predict
from crossformerpp.data import digits
from crossformerpp.recipes.load import load_recipe

MODEL = (
    "model.options={embed_dim: 16, depths: [1,1,1,1], num_heads: [1,1,2,2], group_sizes: [4,4,2,1]}",
    "trainer.workers=0",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "trainer.epochs=null",
    "schedule.warmup_epochs=0",
)
TOLERANCE = 0.05
PARTS = 10


@dataclass
class Samples:
    """Resident memory in MB and open files, in the order of time."""

    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def take(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.files.append(len(os.listdir("/proc/self/fd")))

    def parts(self) -> list[tuple[float, float]]:
        """Median memory, and least open files, of each tenth: at times one more is being written."""
        edges = np.linspace(0, len(self.memory), PARTS + 1).astype(int)
        return [
            (statistics.median(self.memory[a:b]), min(self.files[a:b])) for a, b in itertools.pairwise(edges)
        ]

    def problems(self) -> list[str]:
        """What is not flat after the first tenth."""
        _, (memory, files), *later = self.parts()
        found = []
        for number, (used, opened) in enumerate(later, 3):
            if abs(used / memory - 1) > TOLERANCE:
                found.append(f"tenth {number}: {used:.0f} MB, {memory:.0f} MB in the second")
            if opened > files:
                found.append(f"tenth {number}: {opened:.0f} open files, {files:.0f} in the second")
        return found


@contextmanager
def sampled(every: float) -> Iterator[Samples]:
    """Take samples in a thread while the block runs."""
    samples, ended = Samples(), threading.Event()

    def work() -> None:
        while not ended.wait(every):
            samples.take()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def soak_training(room: Path, epochs: int, every: float = 1.0) -> Samples:
    """Epochs of 16 digits, each with an evaluation on 32, a checkpoint and the learning curve."""
    settings = (*MODEL, f"trainer.steps={epochs}", "trainer.eval_every=1", "trainer.batch_size=16")
    with patch.object(digits, "NUM_TEST", 32), sampled(every) as samples:
        engine.train(load_recipe("digits", settings), room / "run")
    return samples


def soak_prediction(room: Path, images: int, every: float = 1.0) -> Samples:
    """Photographs of several sizes and kinds, 50 of them again and again, with a picture for each."""
    engine.train(load_recipe("digits", (*MODEL, "trainer.steps=2", "trainer.eval_every=2")), room / "run")
    generator = np.random.default_rng(0)
    (room / "in").mkdir()
    paths = []
    for number in range(50):
        height, width = generator.integers(20, 160, 2)
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        suffix = ("png", "jpg", "webp", "tif", "bmp")[number % 5]
        paths.append(room / "in" / f"{number}.{suffix}")
        Image.fromarray(pixels).save(paths[-1])
    predictor = predict.load_predictor(room / "run", "cpu")
    wanted = [paths[number % len(paths)] for number in range(images)]
    with sampled(every) as samples:
        for count, result in enumerate(predict.predict(predictor, wanted, room / "out"), 1):
            assert result.prediction is not None
            for picture in result.pictures:
                picture.unlink()  # so that the disk is not what is tried
            if count % 1000 == 0:
                print(
                    f"{count:,} images, {samples.memory[-1] if samples.memory else 0:.0f} MB", file=sys.stderr
                )
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        if arguments.what == "train":
            samples = soak_training(Path(folder), arguments.epochs)
        else:
            samples = soak_prediction(Path(folder), arguments.images)
    print("| tenth | memory, MB | open files |\n|---|---|---|")
    for number, (memory, files) in enumerate(samples.parts(), 1):
        print(f"| {number} | {memory:.0f} | {files:.0f} |")
    print(f"{len(samples.memory)} samples in {time.monotonic() - started:.0f} s")
    problems = samples.problems()
    print("\n".join(problems) or "flat")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
