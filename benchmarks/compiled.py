"""Compiled models beside eager ones and the paper taken literally, all in turn in one process.

    python -m benchmarks.compiled --batch 16
    python -m benchmarks.compiled --batch 1

CrossFormer++-S and, for its share of the work done, timm's Swin-T, at 224×224 in inference on a CPU. Bfloat16 means
weights and images in bfloat16. Compiling takes some minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import timm
import torch

import crossformerpp  # noqa: F401 (registers the models)
from benchmarks.literal import LiteralCrossFormer
from crossformerpp import VARIANTS
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.throughput import matmul_peak, time_in_turn

OURS, PEER = "crossformerpp_small", "swin_tiny_patch4_window7_224"


def calls(batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by title; compiled models are compiled here."""
    x = torch.randn(batch, 3, 224, 224)
    half = x.bfloat16()
    ours, peer = timm.create_model(OURS).eval(), timm.create_model(PEER).eval()
    low = timm.create_model(OURS).eval().bfloat16()
    models: dict[str, tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = {
        "literal": (LiteralCrossFormer(**VARIANTS[OURS]).eval(), x),
        "eager": (ours, x),
        "compiled": (torch.compile(ours), x),
        "eager, bfloat16": (low, half),
        "compiled, bfloat16": (torch.compile(low), half),
        "Swin-T": (peer, x),
        "Swin-T, compiled": (torch.compile(peer), x),
    }

    def call(model: Callable[[torch.Tensor], Any], image: torch.Tensor) -> Callable[[], Any]:
        @torch.inference_mode()
        def run() -> None:
            model(image)

        return run

    return {title: call(*of) for title, of in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long to time")
    options = parser.parse_args()
    macs = {name: count_complexity(timm.create_model(name), (3, 224, 224)).macs for name in (OURS, PEER)}
    timings = time_in_turn(calls(options.batch), options.seconds)
    peaks = {"": max(matmul_peak().values()), "bfloat16": max(matmul_peak(torch.bfloat16).values())}
    for title, timing in timings.items():
        work = 2 * macs[PEER if "Swin" in title else OURS] * options.batch / timing.median
        row = {
            "what": title,
            "batch": options.batch,
            "ms": round(timing.median * 1e3, 1),
            "of literal's speed": round(timings["literal"].median / timing.median, 2),
            "GFLOP/s": round(work / 1e9),
            "of the matmul peak": round(work / peaks["bfloat16" if "bfloat16" in title else ""], 2),
            "runs": timing.runs,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
