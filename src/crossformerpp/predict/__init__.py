"""Predict images with a checkpoint or an exported file: from Python one by one or in lists, and at scale.

PyTorch is imported where a checkpoint needs it; exported ONNX files do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossformerpp.analysis.predictions import Predictor
from crossformerpp.analysis.tiled import TiledPredictor
from crossformerpp.predict.inputs import Images, open_images
from crossformerpp.predict.processes import Processes, local_rank
from crossformerpp.predict.results import FEW, read_records
from crossformerpp.predict.running import Predicted, PredictionRun, predict
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import apply_overrides, parse_page, parse_recipe
from crossformerpp.recipes.tiles import tile_overrides

__all__ = [
    "FEW",
    "Images",
    "Predicted",
    "PredictionRun",
    "Processes",
    "load_predictor",
    "open_images",
    "predict",
    "read_records",
]


def load_predictor(
    path: Path,
    device: str = "auto",
    overrides: Iterable[str] = (),
    *,
    budget: str | None = None,
    cascade: bool = False,
    tiles: int | None = None,
    overlap: float | None = None,
    **options: Any,
) -> Predictor[Any]:
    """A predictor for a run directory, a checkpoint, or an exported ONNX file.

    Called with an image it answers with a prediction, with a list of images with a list: see
    `analysis.predictions.Predictor`. A prediction's `to_json()` is plain data:

        classification  {"top": [{"class", "probability"}, …]}, best first
        multi_label     {"labels": [{"class", "probability", "threshold"}, …]}, those that reach their threshold
        detection       {"objects": [{"class", "bbox": [x, y, width, height], "score", "segmentation"}, …]}, best first
        segmentation    {"width", "height", "classes": [{"class", "label", "share", "probability"}, …]}

    Args:
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.
        overrides: `a.b=value` texts that change the run's recipe, e.g. how a segmenter looks at images.
        budget: What an image may cost, "30ms" or "2.1GMACs": the most accurate point of the run's front within it.
        cascade: Let a classifier decide image by image whether it needs the large setting of its cascade.
        tiles: Look at images in squares of so many pixels: a detector merges what it finds, a segmenter slides its
            window.
        overlap: Of neighbouring tiles, as a share of their side; default: a fifth.
        options: The task's own, e.g. `top_k`.

    Raises:
        ValueError: There is no such checkpoint, or it cannot be used.
    """
    if budget is not None and cascade:
        raise ValueError("--budget and --cascade: a cascade has its own two settings; pass one of them")
    if path.suffix == ".onnx" and (budget is not None or cascade):
        raise ValueError(f"{path}: the groups of an exported model are fixed; export the run with --budget")
    if path.suffix == ".onnx":
        from crossformerpp.runtime import open_predictor

        if overrides:
            raise ValueError(
                f"--set {' '.join(overrides)}: the settings of an exported model are fixed; export it again"
            )
        if device not in ("auto", "cpu"):
            raise ValueError(f"--device {device}: exported models run on the CPU; leave it out")
        exported = open_predictor(path, **options)
        settings = tile_overrides(exported.network.about["task"], tiles, overlap)
        return _marked(_with_tiles(exported, path, settings), path, settings, options)
    import torch

    from crossformerpp.analysis.throughput import require_device
    from crossformerpp.tasks import find_task
    from crossformerpp.tasks.points import open_at

    saved = open_at(path, budget)
    overrides = [*tile_overrides(saved.recipe.task, tiles, overlap), *overrides]
    values = saved.recipe.model_dump()
    apply_overrides(values, overrides)
    saved = replace(saved, recipe=parse_recipe(values, f"in {saved.path}"))
    if device == "auto":
        device = "cpu"
        if torch.cuda.is_available():  # of torchrun's processes each takes its own
            device = f"cuda:{local_rank() % torch.cuda.device_count()}"
    require_device(device)
    if cascade:
        from crossformerpp.tasks.classification.cascade import open_cascade

        predictor: Predictor[Any] = open_cascade(path, saved, device=device, **options)
    else:
        predictor = find_task(saved.recipe.task).predictor(saved, device=device, **options)
    dial = {"budget": budget} if budget is not None else {"cascade": True} if cascade else {}
    return _marked(predictor, saved.path, overrides, options | dial)


def _with_tiles(exported: Any, path: Path, settings: list[str]) -> Predictor[Any]:
    """An exported detector as its recipe, or `--tiles`, wants it to look at images."""
    about = exported.network.about
    if settings and about["task"] != "detection":
        raise ValueError(f"{path}: an exported segmenter looks at whole images; use its run with --tiles")
    if about["task"] != "detection" or about["recipe"] is None:
        return exported
    values = parse_page(about["recipe"], f"in {path}")
    apply_overrides(values, settings)
    recipe = parse_recipe(values, f"in {path}")
    assert isinstance(recipe, DetectionRecipe)
    return exported if recipe.data.tiles is None else TiledPredictor(exported, recipe.data.tiles)


def _marked(
    predictor: Predictor[Any], source: Path, overrides: Iterable[str], options: Mapping[str, Any]
) -> Predictor[Any]:
    """The predictor with a note of where it is from; options under the names that the command gives them."""
    asked = {
        f"--{name.replace('_', '-')}": value for name, value in options.items() if name != "show_progress"
    }
    predictor.source, predictor.options = source, {"--set": list(overrides), **asked}
    return predictor
