"""Open the results of training: a run directory or a checkpoint. Nothing here imports the trainer."""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from timm.data import ImageNetInfo
from torch import Tensor

import crossformerpp
from crossformerpp import checkpoints
from crossformerpp.data.names import read_json
from crossformerpp.data.tensors import refuse_compressed, refuse_unsound
from crossformerpp.recipes.load import parse_page, parse_recipe, read_page
from crossformerpp.recipes.schema import BaseRecipe, ModelSection
from crossformerpp.tasks.hub import fetch, is_on_hub

KEY = "crossformerpp"  # under which a checkpoint describes itself
WEIGHTS, CONFIG = (
    "model.safetensors",
    "config.json",
)  # of a shared folder, whose config describes itself under
SHARED_KEY = KEY
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


@dataclass(frozen=True)
class SavedRun:
    """A trained model as it lies on disk.

    Attributes:
        path: The checkpoint file.
        recipe: The resolved recipe it was trained with, but for `model.options` that fetch weights.
        class_names: In the order of the model's outputs.
        step: Optimiser steps taken.
        weights: Of the network that evaluation used (the moving average, if there was one).
        data: What is noted of the data, by split: see `engine.changes.data_mark`. Empty where nothing is.
        is_at_point: Whether the recipe has the groups and image size of a point of the run's front, not its own.
    """

    path: Path
    recipe: BaseRecipe
    class_names: list[str]
    step: int
    weights: dict[str, Tensor]
    data: dict[str, Any] = field(default_factory=dict)
    is_at_point: bool = False


class _About(BaseModel):
    """What a checkpoint records about itself under `KEY`."""

    recipe: str
    class_names: list[str] = Field(min_length=1)
    step: int = Field(ge=0)
    data: dict[str, Any] = Field(default_factory=dict)


def pack(
    recipe: str, class_names: list[str], step: int, data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a checkpoint records about itself: plain data only, so that it loads without executing anything."""
    return {
        "version": crossformerpp.__version__,
        "recipe": recipe,
        "class_names": class_names,
        "step": step,
        "data": data or {},
    }


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that a run directory, a shared folder, hf-hub:USER/NAME or a file path means.

    Raises:
        ValueError: There is none.
    """
    if is_on_hub(path):
        path = fetch(path)
    if path.is_file():
        return path
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if not path.is_dir():
        raise ValueError(f"{path}: no such run or checkpoint")
    result = "best"
    if (path / "recipe.yaml").is_file():
        section = read_page(path / "recipe.yaml").get("trainer")
        found = section.get("result") if isinstance(section, dict) else None
        result = found if found in ("best", "last") else "best"
    for name in (result, "last"):
        if (path / "checkpoints" / f"{name}.ckpt").is_file():
            return path / "checkpoints" / f"{name}.ckpt"
    raise ValueError(f"{path}: no checkpoints/{result}.ckpt in it; not a run of `crossformer train`?")


def read_training_state(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint file, read without executing any of it.

    Raises:
        ValueError: Unreadable, holds code, or is not a checkpoint of `crossformer train`.
    """
    try:
        refuse_compressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: refused, for it holds more than weights and plain data ({reason})"
        ) from None
    except MemoryError:
        raise ValueError(f"{path}: does not fit into memory; damaged?") from None
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or KEY not in state:
        raise ValueError(
            f"{path}: not a checkpoint of `crossformer train`; "
            "weights of the authors' release are read by `crossformer convert`"
        )
    return state


def open_saved(path: Path) -> SavedRun:
    """Open a run directory, a checkpoint of `crossformer train`, a file of `crossformer convert`, or what
    `crossformer share` wrote: a folder, or hf-hub:USER/NAME.

    Raises:
        ValueError: There is none, or it is not one.
    """
    file = find_checkpoint(path)
    if file.suffix == ".pt2":
        raise ValueError(
            f"{path}: an exported program, which `crossformer eval` takes; Python opens it by torch.export.load or "
            "torch._inductor.aoti_load_package"
        )
    if file.suffix == ".safetensors":
        is_shared = file.name == WEIGHTS and file.with_name(CONFIG).is_file()
        return _open_shared(file) if is_shared else _open_converted(file)
    state = read_training_state(file)
    about = _described(state[KEY], file)
    recipe = _recipe(about.recipe, file)
    prefix = "model." if recipe.ema is None else "ema.module."
    tensors = state.get("state_dict")
    if not isinstance(tensors, dict):
        raise ValueError(f"{file}: damaged, it has no weights")
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if str(k).startswith(prefix)}
    refuse_unsound(weights, file)
    return SavedRun(file, recipe, about.class_names, about.step, weights, about.data)


def with_own_weights(recipe: BaseRecipe) -> BaseRecipe:
    """The recipe of a model that is trained, without the options by which timm fetches weights for a new one."""
    options = {name: value for name, value in recipe.model.options.items() if name not in _FETCHING}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"options": options})})


def _recipe(text: str, file: Path) -> BaseRecipe:
    return with_own_weights(parse_recipe(parse_page(text, f"in {file}"), f"in {file}"))


def _described(page: Any, file: Path) -> _About:
    try:
        return _About.model_validate(page, strict=True)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:4])
        raise ValueError(f"{file}: damaged, its description of the run is invalid ({problems})") from None


def _open_shared(file: Path) -> SavedRun:
    config = file.with_name(CONFIG)
    page = read_json(config)
    if not isinstance(page, dict) or SHARED_KEY not in page:
        raise ValueError(
            f"{config}: not of `crossformer share`, or of an earlier version; timm may read the folder, as local-dir:…"
        )
    about = _described(page[SHARED_KEY], config)
    recipe = _recipe(about.recipe, config)
    weights = checkpoints.read_file(file)
    refuse_unsound(weights, file)
    return SavedRun(file, recipe, about.class_names, about.step, weights, about.data)


def _open_converted(file: Path) -> SavedRun:
    """A converted model as if it were a run. A classifier: at its paper's settings, classes named as ImageNet does."""
    weights, about = checkpoints.read_checkpoint(file), checkpoints.recorded(file)
    if "recipe" in about:  # a whole detector or segmenter
        recipe = _recipe(about["recipe"], file)
        try:
            class_names = [str(name) for name in json.loads(about["class_names"])]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{file}: damaged, its class names cannot be read; convert it again") from None
        return SavedRun(file, recipe, class_names, 0, checkpoints.read_file(file))
    name = about.get("model")
    if name is None or "head.fc.weight" not in weights:
        raise ValueError(f"{file}: not a classifier written by `crossformer convert`")
    lda = checkpoints.recorded_lda(file)
    num_classes = weights["head.fc.weight"].shape[0]
    class_names = [f"class {number}" for number in range(num_classes)]
    if num_classes == 1000:
        class_names = ImageNetInfo().label_names()
    values = {
        "task": "classification",
        "model": {"name": name, "options": {"lda": lda} if lda else {}},
        "data": {"source": "folder", "size": 224, "eval_resize": 256},
        "trainer": {"epochs": 1},
    }
    return SavedRun(file, parse_recipe(values, f"of {file}"), class_names, 0, weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights to start from: of a run or checkpoint of ours, a converted file, or a released one.

    Raises:
        ValueError: There is nothing readable.
    """
    if path.is_dir() or path.suffix == ".ckpt":
        return open_saved(path).weights
    if "recipe" in checkpoints.recorded(path):  # a whole detector or segmenter
        return open_saved(path).weights
    state = checkpoints.read_checkpoint(path)
    is_released = any(key.startswith("patch_embed.projs.") for key in state)
    return checkpoints.from_released(state) if is_released else state


def trained_section(path: Path) -> ModelSection | None:
    """The model section that a checkpoint's weights were trained with; None if the file does not record it."""
    recipe = trained_recipe(path)
    return None if recipe is None else recipe.model


def trained_recipe(path: Path) -> BaseRecipe | None:
    """The recipe that a checkpoint's weights were trained with; None if the file does not record it."""
    try:
        return open_saved(path).recipe
    except ValueError:  # a backbone alone, or a file of the authors
        return None
