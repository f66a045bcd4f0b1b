"""Whole detectors and their backbones on one 800 × 1333 image, in turn in one process.

    python -m benchmarks.detection_speed

The FPS column of the paper's Tables III and IV, measured here: images per second of RetinaNet and Mask R-CNN from
the image to boxes (and masks), with CrossFormer++-S, CrossFormer-S and, for comparison, timm's Swin-T. Weights are
random, so every detector is asked for its 100 best boxes whatever their scores; Mask R-CNN then predicts 100 masks.
Before that the backbone alone beside the literal implementation of the paper.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.literal_vs_product import SPANNING, WIDE, measure
from crossformerpp.analysis.throughput import peak_extra_memory, time_in_turn
from crossformerpp.recipes.detection import DetectionData, DetectorSection
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.detection.model import build_detector

BACKBONES: dict[str, ModelSection] = {
    "CrossFormer++-S": ModelSection(name="crossformerpp_small"),
    "CrossFormer-S": ModelSection(name="crossformer_small"),
    "CrossFormer-S, wide groups": ModelSection(
        name="crossformer_small",
        options={
            key: list(values) if isinstance(values, tuple) else values
            for key, values in {**WIDE, **SPANNING}.items()
        },
    ),
    "Swin-T (timm)": ModelSection(name="swin_tiny_patch4_window7_224", options={"strict_img_size": False}),
}
SIZE = (800, 1333)


def detectors(name: str, device: str) -> dict[str, Callable[[], Any]]:
    """A call per backbone that detects in one image."""
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8).to(device)
    calls = {}
    for title, backbone in BACKBONES.items():
        torch.manual_seed(0)
        section = DetectorSection(name=name, min_score=0.0)
        calls[title] = _call(build_detector(backbone, section, DetectionData(), 80).eval().to(device), image)
    return calls


def compare(name: str, seconds: float, device: str) -> list[dict[str, Any]]:
    """A row per backbone: seconds per image (median, quartiles) and peak extra memory in bytes."""
    calls = detectors(name, device)
    return [
        {
            "detector": name,
            "backbone": title,
            "seconds": timing.median,
            "quartiles": [timing.low, timing.high],
            "runs": timing.runs,
            "peak_extra_bytes": peak_extra_memory(calls[title], device),
        }
        for title, timing in time_in_turn(calls, seconds, device=device).items()
    ]


def _call(model: torch.nn.Module, image: torch.Tensor) -> Callable[[], Any]:
    @torch.inference_mode()
    def call() -> None:
        (found,) = model([image])
        assert len(found["boxes"]) == 100

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to time each table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    if options.device == "cpu":
        backbone = measure("crossformer_small", 1, 800, 1344, {**WIDE, **SPANNING}, False, options.seconds)
        rows.append({"detector": "backbone"} | backbone)
    for name in ("retinanet", "mask_rcnn"):
        rows += compare(name, options.seconds, options.device)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, f"one {SIZE[0]}x{SIZE[1]} image, {options.device}, {torch.get_num_threads()} CPU threads")


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the rows for people."""
    table = Table(title=title)
    for column in ("detector", "backbone", "images/s", "seconds (quartiles)", "runs", "peak memory"):
        table.add_column(column)
    for row in rows:
        if row["detector"] == "backbone":
            print(
                f"CrossFormer-S alone, wide groups, {row['size']}: {row['product_s']:.2f} s, literal "
                f"{row['literal_s']:.2f} s: {row['speed_ratio']:.2f} times as fast, in {row['memory_ratio']:.2f} of "
                "the memory"
            )
            continue
        low, high = row["quartiles"]
        table.add_row(
            row["detector"],
            row["backbone"],
            f"{1 / row['seconds']:.3f}",
            f"{row['seconds']:.2f} ({low:.2f} to {high:.2f})",
            str(row["runs"]),
            f"{row['peak_extra_bytes'] / 2**20:.0f} MiB",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
