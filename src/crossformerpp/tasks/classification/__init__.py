"""Image classification as a `tasks.Task`. Only `module` needs the trainer."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import create_transform
from torchvision.transforms import Compose, Normalize

from crossformerpp.analysis.predictions import Predictor
from crossformerpp.data.balance import Labels, sample_weights
from crossformerpp.data.classification import (
    LabelledImages,
    TransformedImages,
    open_digit_labels,
    open_digits,
    open_mnist,
    typical_side,
)
from crossformerpp.data.devkit import read_real_labels
from crossformerpp.data.labelled import open_labelled
from crossformerpp.data.pixel_tensors import PixelTensor, pixel_train_transform
from crossformerpp.data.pixels import PixelView
from crossformerpp.data.split import Split, Which
from crossformerpp.recipes.classification import AugmentSection, ClassificationData, ClassificationRecipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.backbone import create_model, head_prefixes
from crossformerpp.tasks.loading import load_weights, start
from crossformerpp.tasks.saved import SavedRun, read_weights

if TYPE_CHECKING:
    from crossformerpp.tasks.module import TaskModule


class Classification:
    """One label per image, or with `multi_label` any number."""

    def split(self, recipe: BaseRecipe, which: Which, class_names: list[str] | None = None) -> Split:
        assert isinstance(recipe, ClassificationRecipe)
        source = open_images(recipe, which, class_names)
        if which == "train" and 0 < 2 * (side := typical_side(source)) < recipe.data.size:
            warnings.warn(
                f"the images are about {side} pixels wide or high and would be enlarged to {recipe.data.size}: "
                f"a recipe for small images, or --set data.size={max(32, side)}, may serve better",
                stacklevel=2,
            )
        if which != "train" and recipe.data.real_labels is not None:
            source = replace(source, real_labels=read_real_labels(recipe.data.real_labels, source.names))
        transform = train_transform(recipe) if which == "train" else eval_transform(recipe.data)
        dataset = TransformedImages(
            source,
            transform,
            replace_unreadable=which == "train",
            max_unreadable=recipe.data.max_unreadable,
        )
        labels: Labels = source.labels if source.label_sets is None else source.label_sets
        how, weights = recipe.data.sampling, None
        if which == "train" and how != "plain":
            weights = sample_weights(labels, len(source.class_names), how)
        return Split(
            dataset,
            source.class_names,
            names=source.names,
            labels=labels,
            weights=weights,
            is_drawn=source.is_drawn,
            found=source.found,
        )

    def module(self, recipe: BaseRecipe, class_names: list[str]) -> "TaskModule":
        from crossformerpp.tasks.classification.label_sets import LabelSetModule
        from crossformerpp.tasks.classification.module import ClassificationModule

        assert isinstance(recipe, ClassificationRecipe)
        model = create_model(recipe.model, num_classes=len(class_names))
        head = head_prefixes(model)
        started_from = start(
            recipe.model, lambda path: load_weights(model, read_weights(path), path, may_differ=head)
        )
        kind = LabelSetModule if recipe.multi_label else ClassificationModule
        module = kind(model, recipe, class_names)
        module.started_from = started_from
        return module

    def predictor(self, saved: SavedRun, **options: Any) -> Predictor[Any]:
        from crossformerpp.tasks.classification.predictor import open_classifier

        return open_classifier(saved, **options)


def open_images(recipe: ClassificationRecipe, which: Which, class_names: list[str] | None) -> LabelledImages:
    """The labelled images of one split.

    Raises:
        ValueError: The recipe wants a folder and names none, or the folder cannot be used.
    """
    data = recipe.data
    if data.source == "digits":
        return replace(open_digits(which, data.size), pixels=data.pixels)
    if data.source == "mnist":
        return replace(open_mnist(which, data.size), pixels=data.pixels)
    if data.source == "digit_labels":
        return replace(open_digit_labels(which, data.size), pixels=data.pixels)
    if data.root is None:
        raise ValueError("this recipe trains on a folder of images: pass --data FOLDER")
    return open_labelled(
        Path(data.root),
        which,
        wanted=None if data.format == "auto" else data.format,
        multi_label=recipe.multi_label,
        val_fraction=data.val_fraction,
        seed=recipe.trainer.seed,
        class_names=class_names,
        pixels=data.pixels,
    )


def train_transform(recipe: ClassificationRecipe) -> Compose:
    """timm's training augmentation: PIL image to a normalised 3 × size × size tensor. Other images are cropped and
    flipped by torchvision, and erased by timm.

    Raises:
        ValueError: timm does not know such an `augment.auto_augment`.
    """
    data, augment = recipe.data, recipe.augment
    if not data.pixels.is_photograph:
        return pixel_train_transform(
            data.pixels,
            data.size,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            flip=augment.flip,
            erasing=augment.random_erasing,
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
        )
    try:
        return _create_train_transform(data, augment)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"augment.auto_augment: {augment.auto_augment!r} ({error})") from None


def _create_train_transform(data: ClassificationData, augment: AugmentSection) -> Compose:
    return create_transform(
        data.size,
        is_training=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        hflip=augment.flip,
        color_jitter=augment.color_jitter or 0.0,
        auto_augment=augment.auto_augment,
        interpolation=data.interpolation,
        re_prob=augment.random_erasing,
        re_mode="pixel",
        mean=data.mean,
        std=data.std,
    )


def eval_transform(data: ClassificationData) -> Compose:
    """timm's evaluation view: shorter side to `eval_resize`, centre crop of `size`, normalised. Images that are no RGB
    photographs are seen alike, in floating point."""
    if not data.pixels.is_photograph:
        return Compose([PixelTensor(data.pixels, pixel_view(data)), Normalize(data.mean, data.std)])
    transform = create_transform(
        data.size, interpolation=data.interpolation, crop_pct=crop_share(data), mean=data.mean, std=data.std
    )
    assert data.eval_resize in (None, transform.transforms[0].size)
    return transform


def pixel_view(data: ClassificationData) -> PixelView:
    """What the network sees of images that are no RGB photographs."""
    short_side = data.eval_resize or math.floor(data.size / 0.875)
    return PixelView(short_side, (data.size, data.size), data.interpolation)


def crop_share(data: ClassificationData) -> float:
    """timm's `crop_pct`, from which it computes the shorter side as floor(size / crop_pct): exactly `eval_resize`."""
    if data.eval_resize is None:
        return 0.875
    share = data.size / data.eval_resize
    while math.floor(data.size / share) < data.eval_resize:
        share = math.nextafter(share, 0)
    return share
