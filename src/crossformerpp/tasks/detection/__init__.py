"""Object detection and instance segmentation as a `tasks.Task`. Only `module` needs the trainer."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from crossformerpp.analysis.predictions import Predictor
from crossformerpp.analysis.tiled import TiledPredictor
from crossformerpp.data.coco import CocoSet, Half, find_split, open_coco
from crossformerpp.data.detection import (
    EvalImages,
    TrainImages,
    TrainTile,
    aspect_groups,
    collate,
    cut_tiles,
    jitter_transform,
    train_transform,
    whole_tiles,
)
from crossformerpp.data.mixing import MixedImages
from crossformerpp.data.names import printable
from crossformerpp.data.objects import open_objects
from crossformerpp.data.problems import Problems
from crossformerpp.data.scenes import default_folder, write_digit_scenes
from crossformerpp.data.split import Split, Which
from crossformerpp.recipes.detection import DetectionData, DetectionRecipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.loading import start
from crossformerpp.tasks.saved import SavedRun

if TYPE_CHECKING:
    from crossformerpp.tasks.module import TaskModule


class Detection:
    """Boxes, classes and masks of the objects in an image."""

    def split(self, recipe: BaseRecipe, which: Which, class_names: list[str] | None = None) -> Split:
        assert isinstance(recipe, DetectionRecipe)
        with_masks = recipe.detector.name == "mask_rcnn"
        data = recipe.data
        coco, found = _open(recipe, which, class_names, with_masks)
        coco = replace(coco, pixels=data.pixels)
        described: dict[str, Any] = {"names": _names(coco), "is_drawn": coco.is_drawn, "found": found}
        if which != "train":
            return Split(EvalImages(coco, with_masks), coco.class_names, collate, **described)
        tiles = _for_training(coco, data)
        dataset: Dataset = TrainImages(tiles, _transform(data), with_masks, data.pixels)
        if data.copy_paste or data.mosaic:
            dataset = MixedImages(dataset, data.copy_paste, data.mosaic, data.min_visible)
        groups = aspect_groups(tiles) if data.jitter is None else None
        described |= {
            "names": [_name(part) for part in tiles],
            "counts": _counts(tiles, data.tiles is not None),
        }
        return Split(dataset, coco.class_names, collate, groups, **described)

    def module(self, recipe: BaseRecipe, class_names: list[str]) -> "TaskModule":
        from crossformerpp.tasks.detection.model import build_detector, start_from
        from crossformerpp.tasks.detection.module import DetectionModule

        assert isinstance(recipe, DetectionRecipe)
        model = build_detector(recipe.model, recipe.detector, recipe.data, len(class_names))
        started_from = start(recipe.model, lambda path: start_from(model, path))
        module = DetectionModule(model, recipe, class_names)
        module.started_from = started_from
        return module

    def predictor(self, saved: SavedRun, **options: Any) -> Predictor[Any]:
        from crossformerpp.tasks.detection.predictor import DetectionPredictor

        predictor = DetectionPredictor(saved, **options)
        assert isinstance(saved.recipe, DetectionRecipe)
        tiles = saved.recipe.data.tiles
        return predictor if tiles is None else TiledPredictor(predictor, tiles)


def _open(
    recipe: DetectionRecipe, which: Which, class_names: list[str] | None, with_masks: bool
) -> tuple[CocoSet, str]:
    """The annotated images of a split, and what their folder was taken for.

    Raises:
        ValueError: The recipe names no data, or they are not where it says they are.
    """
    data = recipe.data
    half: Half = "train" if which == "train" else "val"
    options: dict[str, Any] = {"class_names": class_names, "with_masks": with_masks}
    if data.source == "digit_scenes":
        scenes = data.scenes
        sizes = scenes.train, scenes.val, scenes.size, scenes.seed, scenes.digits, scenes.side
        return open_coco(*find_split(write_digit_scenes(default_folder(*sizes), *sizes), half), **options), ""
    annotations, images = (
        (data.train_annotations, data.train_images)
        if half == "train"
        else (data.val_annotations, data.val_images)
    )
    if annotations is not None and images is not None:
        root = data.root or Path()
        return open_coco(root / annotations, root / images, **options), f"COCO detection set, {annotations}"
    if data.root is None:
        raise ValueError("this recipe trains on a folder of annotated images: pass --data FOLDER")
    found, coco = open_objects(
        data.root,
        half,
        wanted=None if data.format == "auto" else data.format,
        val_fraction=data.val_fraction,
        seed=recipe.trainer.seed,
        is_whole=which == "test",
        **options,
    )
    return coco, str(found)


def _names(coco: CocoSet) -> list[str]:
    return [printable(image.path.name) for image in coco.images]


def _for_training(coco: CocoSet, data: DetectionData) -> list[TrainTile]:
    """The images or their tiles, without those so thin that nothing is left of them when their long side fits, and
    without empty ones if asked; a warning counts and names what is left out.

    An image with nothing but a crowd is empty too.
    """
    if data.tiles is None:
        parts = whole_tiles(coco.images)
    else:
        section = data.tiles
        parts = cut_tiles(coco.images, section.size, section.overlap, section.whole, data.min_visible)
    kept, left_out = [], Problems()
    long_side, setting = float(data.long_side), f"data.long_side={data.long_side}"
    if data.jitter is not None:
        long_side = data.jitter.size * data.jitter.scale[0]
        setting = f"data.jitter, which makes a long side {long_side:g}"
    for part in parts:
        if _is_thin(part, long_side):
            left_out.add(f"too thin for {setting}", _name(part))
        elif not part.objects and not data.empty_images:
            left_out.add("without objects (data.empty_images=false)", _name(part))
        else:
            kept.append(part)
    if left_out.found:
        warnings.warn(f"left out of training: {left_out}", stacklevel=2)
    return kept


def _counts(parts: Sequence[TrainTile], are_tiles: bool) -> dict[str, int]:
    counts = {"images": len({part.image.id for part in parts})}
    if are_tiles:
        counts["tiles"] = len(parts)
    counts["objects"] = sum(len(part.objects) for part in parts)
    counts["tiles without objects" if are_tiles else "without objects"] = sum(
        not part.objects for part in parts
    )
    if are_tiles:
        counts["objects of which a tile shows too little"] = sum(part.num_cut for part in parts)
    return counts


def _is_thin(part: TrainTile, long_side: float) -> bool:
    left, top, right, bottom = part.tile
    sides = right - left, bottom - top
    return min(sides) * long_side < max(sides)


def _transform(data: DetectionData) -> Callable[..., Any]:
    if data.jitter is None:
        return train_transform(data.short_side, data.long_side, data.flip, data.color_jitter)
    is_of_bytes = data.pixels.is_photograph
    fill = tuple(round(255 * mean) if is_of_bytes else mean for mean in data.mean)
    return jitter_transform(
        data.jitter.size,
        data.jitter.scale,
        data.min_visible,
        fill,
        data.flip,
        data.color_jitter,
    )


def _name(part: TrainTile) -> str:
    name, tile = printable(part.image.path.name), part.tile
    is_whole = tile == (0, 0, part.image.width, part.image.height)
    return name if is_whole else f"{name} {tile.left},{tile.top},{tile.right},{tile.bottom}"
