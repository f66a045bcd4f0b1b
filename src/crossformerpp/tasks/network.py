"""A classifier to analyse: a trained one, or a fresh one by its timm name, with its image transform."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from crossformerpp.recipes.classification import ClassificationData, ClassificationRecipe
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun, open_saved


@dataclass(frozen=True)
class Network:
    """A classifier in evaluation mode.

    Attributes:
        name: What the user called it.
        size: Side of the square images it sees.
        transform: From an RGB image to (3, size, size).
        saved: The run it comes from; None for random weights.
    """

    name: str
    model: nn.Module
    size: int
    transform: Callable[[Image.Image], Tensor]
    saved: SavedRun | None


def open_network(name: str, options: Mapping[str, Any] | None = None, size: int | None = None) -> Network:
    """A run directory or a checkpoint, or else a timm name: then with random weights, the same at every call.

    Args:
        options: Overrides of the model's options, such as `group_sizes`.
        size: Side of the images; default: the run's, or 224.

    Raises:
        ValueError: It is neither, is no classifier, or cannot take the options.
    """
    if not Path(name).exists():
        data = ClassificationData(source="folder", size=size or 224)
        torch.manual_seed(0)
        model = create_model(ModelSection(name=name, options=dict(options or {})))
        return Network(name, model.eval(), data.size, eval_transform(data), None)
    saved = open_saved(Path(name))
    if not isinstance(saved.recipe, ClassificationRecipe):
        raise ValueError(f"{name}: a run of {saved.recipe.task}; only classifiers can be analysed")
    data = saved.recipe.data
    if not data.pixels.is_photograph:
        raise ValueError(
            f"{name}: a run on images of {data.channels} channel(s); only classifiers of RGB photographs can be "
            "analysed"
        )
    if size is not None:
        data = data.model_copy(update={"size": size, "eval_resize": size})
    section = saved.recipe.model
    section = section.model_copy(update={"options": section.options | dict(options or {})})
    model = create_model(section, num_classes=len(saved.class_names))
    load_weights(model, saved.weights, saved.path)
    return Network(name, model.eval(), data.size, eval_transform(data), saved)
