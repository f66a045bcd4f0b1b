"""What merging across the borders of tiles is worth: AP of a detector with ours and with plainer rules.

    python -m benchmarks.tile_merging RUN [--tiles 640] [--overlap 0.2]

The same detections of the same tiles are put together in four ways: as they are, by non-maximum suppression (IoU 0.5,
within a class), by suppression where a box lies in another by half (intersection over the smaller area, as other
toolkits do), and by `analysis.tiled.merge_tiles`.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from crossformerpp.analysis.tiled import Found, merge_tiles
from crossformerpp.data.detection import EvalImages, open_image, truth
from crossformerpp.data.tiles import Tile
from crossformerpp.predict import load_predictor
from crossformerpp.tasks import find_task
from crossformerpp.tasks.detection.evaluation import average_precision
from crossformerpp.tasks.saved import open_saved


def shifted(found: Sequence[Found], tiles: Sequence[Tile]) -> Found:
    """All boxes in the image's pixels, best first."""
    things = []
    for part, tile in zip(found, tiles, strict=True):
        for thing in part:
            x, y, width, height = thing["bbox"]
            things.append(thing | {"bbox": [x + tile.left, y + tile.top, width, height]})
    return sorted(things, key=lambda thing: -thing["score"])


def suppressed(things: Found, over_smaller: bool) -> Found:
    """Greedy suppression within each class at 0.5."""
    kept: Found = []
    corners: list[tuple[int, float, float, float, float]] = []
    for thing in things:
        x, y, width, height = thing["bbox"]
        for label, left, top, right, bottom in corners:
            if label != thing["label"]:
                continue
            shared = max(0.0, min(right, x + width) - max(left, x)) * max(
                0.0, min(bottom, y + height) - max(top, y)
            )
            one, other = width * height, (right - left) * (bottom - top)
            if shared >= 0.5 * (min(one, other) if over_smaller else one + other - shared):
                break
        else:
            kept.append(thing)
            corners.append((thing["label"], x, y, x + width, y + height))
    return kept


RULES: dict[str, Callable[[Sequence[Found], Sequence[Tile], int, int], Found]] = {
    "as they are": lambda found, tiles, width, height: shifted(found, tiles),
    "suppression by IoU": lambda found, tiles, width, height: suppressed(shifted(found, tiles), False),
    "suppression by share": lambda found, tiles, width, height: suppressed(shifted(found, tiles), True),
    "merge_tiles": merge_tiles,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--overlap", type=float)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    saved = open_saved(asked.run)
    split = find_task("detection").split(saved.recipe, "val", saved.class_names)
    predictor: Any = load_predictor(
        asked.run, "cpu", min_score=saved.recipe.detector.min_score, tiles=asked.tiles, overlap=asked.overlap
    )
    assert isinstance(split.dataset, EvalImages)
    seen = []
    for entry in split.dataset.coco.images:
        size, tiles, pieces = predictor.prepare(open_image(entry))
        found = [one.found for one in predictor.inner.predict(pieces)]
        seen.append((truth(entry, False), found, tiles, size))
    print(f"{'rule':24}{'box AP':>8}{'AP50':>8}{'boxes':>8}")
    for name, rule in RULES.items():
        records = [{"truth": true, "found": rule(found, tiles, *size)} for true, found, tiles, size in seen]
        summary = average_precision(records, saved.class_names, "box").summary
        count = sum(len(record["found"]) for record in records)
        print(f"{name:24}{summary['AP']:8.3f}{summary['AP50']:8.3f}{count:8}")


if __name__ == "__main__":
    main()
