"""Pooled features of images from a run of any task, or from any timm model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.hub import is_on_hub
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.pyramid import backbone_key
from crossformerpp.tasks.saved import open_saved

_SIDE = 224  # pixels, where a recipe does not say


class Features:
    """Images -> (N, D), what the network's head sees of each, squeezed to a square.

    Attributes:
        about: What the features are of, in words.
    """

    def __init__(
        self, model: nn.Module, side: int, mean: Sequence[float], std: Sequence[float], about: str
    ) -> None:
        self.model = model.eval()
        self.side = side
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.about = about

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        size = (self.side, self.side)
        pixels = [pil_to_tensor(image.resize(size, Image.Resampling.BICUBIC)) for image in images]
        x = (torch.stack(pixels).float() / 255 - self.mean) / self.std
        return self.model(x).float().numpy()


def open_features(name: str, pretrained: bool = False) -> Features:
    """Features of a run, a checkpoint or a shared folder, or else of a timm model.

    Args:
        pretrained: Take timm's weights of a timm model, which may be downloaded; else they are random, the same at
            every call.

    Raises:
        ValueError: It is neither, or its weights cannot be read.
    """
    if Path(name).exists() or is_on_hub(Path(name)):
        return _of_run(Path(name))
    torch.manual_seed(0)
    try:
        section = ModelSection(name=name, options={"pretrained": True} if pretrained else {})
        model: Any = create_model(section, num_classes=0)
    except ValueError as error:
        raise ValueError(f"--model {name}: no run, and {error}") from None
    except Exception as error:  # the hub's client raises whatever the network does
        if not pretrained:
            raise
        raise ValueError(
            f"--model {name}: its weights cannot be downloaded ({error}); leave out --pretrained, or name a run"
        ) from None
    config = timm.data.resolve_model_data_config(model)
    weights = "timm's weights" if pretrained else "random weights"
    return Features(model, config["input_size"][1], config["mean"], config["std"], f"{name}, {weights}")


def _of_run(path: Path) -> Features:
    saved = open_saved(path)
    model = create_model(saved.recipe.model.model_copy(update={"compile": False}), num_classes=0)
    own = model.state_dict()
    is_part = any(key.startswith("backbone.") for key in saved.weights)
    weights = {
        backbone_key(key): value
        for key, value in saved.weights.items()
        if key.startswith("backbone.") or not is_part
    }
    # detectors and segmenters have no final norm
    kept = {key: value for key, value in weights.items() if key in own}
    load_weights(model, kept, saved.path, may_differ=("norm.", "fc_norm.", "head."))
    data: Any = saved.recipe.data  # type: ignore[attr-defined]
    if not data.pixels.is_photograph:
        raise ValueError(
            f"--model {path}: a run on images of {data.channels} channel(s), not on RGB photographs"
        )
    side = getattr(data, "size", _SIDE)
    return Features(model, side, data.mean, data.std, f"{path}, step {saved.step}")
