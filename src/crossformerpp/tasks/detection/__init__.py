"""Object detection and instance segmentation as a `tasks.Task`. Only `module` needs the trainer."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossformerpp.analysis.predictions import Predictor
from crossformerpp.data.coco import CocoSet, Half, find_split, open_coco
from crossformerpp.data.detection import EvalImages, TrainImages, aspect_groups, collate, train_transform
from crossformerpp.data.names import printable
from crossformerpp.data.objects import open_objects
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
        coco = _for_training(coco, data)
        transform = train_transform(data.short_side, data.long_side, data.flip, data.color_jitter)
        groups = aspect_groups(coco.images)
        dataset = TrainImages(coco, transform, with_masks)
        described["names"] = _names(coco)
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

        return DetectionPredictor(saved, **options)


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
        sizes = data.scenes.train, data.scenes.val, data.scenes.size, data.scenes.seed
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


def _for_training(coco: CocoSet, data: DetectionData) -> CocoSet:
    """Without images so thin that nothing is left of them when their long side fits, and without empty ones if asked.

    An image with nothing but a crowd is empty too.
    """
    kept = [i for i in coco.images if min(i.width, i.height) * data.long_side >= max(i.width, i.height)]
    if not data.empty_images:
        kept = [image for image in kept if any(not it.is_crowd for it in image.objects)]
    return replace(coco, images=kept)
