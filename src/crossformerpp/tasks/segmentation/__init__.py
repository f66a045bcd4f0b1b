"""Semantic segmentation as a `tasks.Task`. Only `module` needs the trainer."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crossformerpp.analysis.predictions import Predictor
from crossformerpp.data import ade20k
from crossformerpp.data.crops import CropView, TrainCrops, WholeImages
from crossformerpp.data.drawn_masks import open_drawn
from crossformerpp.data.mask_files import Color, default_colors, read_palette
from crossformerpp.data.objects import find_objects
from crossformerpp.data.palettes import are_colors, colors_of, find_palette
from crossformerpp.data.scenes import default_folder, write_digit_scenes
from crossformerpp.data.segmentation import (
    MaskedImages,
    has_masks,
    is_ade20k,
    open_ade20k,
    open_folder,
    warn_of_values,
)
from crossformerpp.data.split import Split, Which
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.segmentation import SegmentationData, SegmentationRecipe
from crossformerpp.tasks.loading import start
from crossformerpp.tasks.saved import SavedRun
from crossformerpp.tasks.segmentation.model import Segmenter

if TYPE_CHECKING:
    from crossformerpp.tasks.module import TaskModule


class Segmentation:
    """A class per pixel."""

    def split(self, recipe: BaseRecipe, which: Which, class_names: list[str] | None = None) -> Split:
        assert isinstance(recipe, SegmentationRecipe)
        source = open_masks(recipe, which, class_names)
        names, is_drawn = source.names, source.is_drawn
        if which != "train":
            return Split(
                WholeImages(source),
                source.class_names,
                collate=list,
                names=names,
                is_drawn=is_drawn,
                found=source.found,
            )
        warn_of_values(source)
        data, augment = recipe.data, recipe.augment
        view = CropView(
            size=augment.crop,
            short_side=augment.short_side,
            scale=augment.scale,
            max_class_share=augment.max_class_share,
            flip=augment.flip,
            photometric=augment.photometric,
            mean=data.mean,
            std=data.std,
        )
        return Split(
            TrainCrops(source, view), source.class_names, names=names, is_drawn=is_drawn, found=source.found
        )

    def module(self, recipe: BaseRecipe, class_names: list[str]) -> "TaskModule":
        from crossformerpp.tasks.segmentation.module import SegmentationModule

        assert isinstance(recipe, SegmentationRecipe)
        model = Segmenter(recipe.model, recipe.head, class_colors(recipe.data, class_names))
        started_from = start(recipe.model, model.start_from)
        module = SegmentationModule(model, recipe, class_names)
        module.started_from = started_from
        return module

    def predictor(self, saved: SavedRun, **options: Any) -> Predictor[Any]:
        from crossformerpp.tasks.segmentation.predictor import SegmentationPredictor

        return SegmentationPredictor(saved, **options)


def open_masks(recipe: SegmentationRecipe, which: Which, class_names: list[str] | None) -> MaskedImages:
    """The masked images of one split.

    Raises:
        ValueError: The recipe wants a folder and names none, the folder cannot be used, or its classes are
            not those of the model.
    """
    data, root = recipe.data, recipe.data.root
    if data.source == "digit_scenes":
        scenes = data.scenes
        size = (scenes.train, scenes.val, scenes.size, scenes.seed, scenes.digits, scenes.side)
        root = write_digit_scenes(default_folder(*size), *size)
    if root is None:
        raise ValueError("this recipe trains on a folder of images and masks: pass --data FOLDER")
    wanted = None if data.format == "auto" or data.format == "masks" else data.format
    is_auto = data.format == "auto" and root.exists() and not has_masks(root)
    if wanted is not None or (is_auto and find_objects(root) is not None):
        fraction, seed = data.val_fraction, recipe.trainer.seed
        drawn = open_drawn(root, which, wanted=wanted, val_fraction=fraction, seed=seed, trained=class_names)
        return replace(drawn, pixels=data.pixels)
    if data.source == "ade20k" or (class_names == ade20k.NAMES and is_ade20k(root)):
        return open_ade20k(root, which)
    source = open_folder(
        root,
        which,
        class_names=data.class_names,
        palette=data.palette,
        ignore_value=data.ignore_label,
        values=data.mask_values,
        val_fraction=data.val_fraction,
        seed=recipe.trainer.seed,
        trained=class_names,
        pixels=data.pixels,
    )
    return source if data.source == "folder" else replace(source, found="")


def class_colors(data: SegmentationData, class_names: list[str]) -> list[Color]:
    """The colours that pictures show the classes in."""
    if data.source == "ade20k":
        return ade20k.COLORS
    # where a trained model is only used, its palette file may be gone; the weights know the colours
    if data.palette is not None and data.palette.is_file():
        return read_palette(data.palette).colors
    if data.source == "folder" and data.root is not None:
        table = find_palette(data.root, class_names)
        if table is not None and table.names == class_names:
            return table.colors
    if are_colors(class_names):
        return colors_of(class_names)
    return default_colors(len(class_names))
