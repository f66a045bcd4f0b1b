"""Speed and memory of segmentation, a line of JSON per figure.

    python -m benchmarks.segmentation_speed backbone       # beside the literal implementation, at 512 and 1024
    python -m benchmarks.segmentation_speed models         # images per second of whole models, in turn
    python -m benchmarks.segmentation_speed photograph     # all memory of a process that segments 4000×3000

`backbone` is crossformer_small with the wide groups of Table V. `models` is that table's FPS column, measured here:
Semantic FPN with 150 classes and random weights on CrossFormer++-S, CrossFormer-S and, for comparison, timm's
Swin-T. `photograph` looks through sliding windows of 512 pixels, 340 from one to the next, with 150 classes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.literal_vs_product import SPANNING, WIDE, measure
from crossformerpp.analysis.throughput import peak_extra_memory, time_in_turn
from crossformerpp.data import ade20k
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.recipes.segmentation import HeadSection, InferenceSection
from crossformerpp.tasks.segmentation.inference import Look
from crossformerpp.tasks.segmentation.model import Segmenter

Decoder = Literal["semantic_fpn", "upernet"]
BACKBONES = {
    "CrossFormer++-S": ModelSection(name="crossformerpp_small"),
    "CrossFormer-S": ModelSection(name="crossformer_small"),
    "CrossFormer-S, wide groups": ModelSection(name="crossformer_small", options={**WIDE, **SPANNING}),
    "Swin-T (timm)": ModelSection(name="swin_tiny_patch4_window7_224", options={"strict_img_size": False}),
}


def build(backbone: ModelSection, decoder: Decoder) -> Segmenter:
    """A segmenter of ADE20K's classes with random weights."""
    torch.manual_seed(0)
    return Segmenter(backbone, HeadSection(name=decoder), ade20k.COLORS).eval()


def compare_backbones(sizes: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    """The backbone and its literal implementation, one image."""
    for size in sizes:
        yield measure(
            "crossformer_small", 1, size, size, {**WIDE, **SPANNING}, training=False, seconds=seconds
        )


def compare_models(sizes: list[int], seconds: float, decoder: Decoder) -> Iterator[dict[str, Any]]:
    """Whole models, one image, from the normalised image to logits of stride 4."""
    models = {title: build(backbone, decoder) for title, backbone in BACKBONES.items()}
    for size in sizes:
        image = torch.randn(1, 3, size, size)
        calls: dict[str, Callable[[], Any]] = {
            title: partial(model, image) for title, model in models.items()
        }
        for title, timing in time_in_turn(calls, seconds, min_runs=3, warmup=1).items():
            yield {
                "model": title,
                "decoder": decoder,
                "size": size,
                "images_per_second": 1 / timing.median,
                "seconds": [timing.low, timing.median, timing.high],
                "runs": timing.runs,
                "peak_extra_bytes": peak_extra_memory(calls[title]),
            }


def measure_photograph(decoder: Decoder, width: int = 4000, height: int = 3000) -> dict[str, Any]:
    """Seconds for one image, and what the process held at most since it began."""
    model = build(BACKBONES["CrossFormer++-S"], decoder)
    section = InferenceSection(mode="slide", short_side=None)
    look = Look(model, len(ade20k.COLORS), section, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    begin = time.perf_counter()
    labels = look.labels(image)
    assert labels.shape == (height, width)
    return {
        "decoder": decoder,
        "size": f"{width}x{height}",
        "windows": look.num_windows(height, width),
        "seconds": time.perf_counter() - begin,
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


@torch.no_grad()  # not inference mode: of weights made in it nothing is kept
def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["backbone", "models", "photograph"])
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to time each size")
    parser.add_argument("--decoder", choices=["semantic_fpn", "upernet"], default="semantic_fpn")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.part == "backbone":
        results = compare_backbones(options.size, options.seconds)
    elif options.part == "models":
        results = compare_models(options.size, options.seconds, options.decoder)
    else:
        results = iter([measure_photograph(options.decoder)])
    for result in results:
        print(json.dumps(result | {"threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
