"""From images to their most likely classes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms.v2.functional import pil_to_tensor

from crossformerpp.analysis.predictions import ClassPrediction, LabelPrediction, Predictor
from crossformerpp.data.pixel_tensors import PixelTensor
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification import eval_transform, pixel_view
from crossformerpp.tasks.classification.promise import read_promise
from crossformerpp.tasks.classification.thresholds import read_thresholds
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun


class ClassificationPredictor(Predictor[ClassPrediction]):
    """A trained classifier, ready for images. `prepare` gives 3 × size × size bytes, or floating point of
    other images than RGB photographs."""

    batch_size = 32

    def __init__(self, saved: SavedRun, top_k: int = 5, device: str | torch.device = "cpu", **_: Any) -> None:
        """
        Raises:
            ValueError: The checkpoint is not a classifier's, or its weights do not fit its recipe.
        """
        assert isinstance(saved.recipe, ClassificationRecipe)
        self.class_names = readable(saved.class_names)
        self.top_k = min(top_k, len(saved.class_names))
        self.device = torch.device(device)
        model = create_model(saved.recipe.model, num_classes=len(saved.class_names))
        load_weights(model, saved.weights, saved.path)
        self.model = model.eval().to(self.device)
        data = saved.recipe.data
        self.pixels = data.pixels
        if self.pixels.is_photograph:
            *view, _to_tensor, _normalize = eval_transform(data).transforms
            self.prepare = Compose(
                [*view, pil_to_tensor]
            )  # a quarter of the bytes that normalised images have
            self.white = 255.0
        else:
            self.prepare = PixelTensor(self.pixels, pixel_view(data))
            self.white = 1.0
        self.mean, self.std = (
            torch.as_tensor(values, device=self.device).view(-1, 1, 1) for values in (data.mean, data.std)
        )
        self.promise = read_promise(saved)
        self.columns: Sequence[str] = ClassPrediction.columns_with(self.promise)

    def predict(self, prepared: Sequence[Tensor]) -> list[ClassPrediction]:
        return [
            ClassPrediction.of(row, self.class_names, self.top_k, self.promise)
            for row in self.probabilities(prepared)
        ]

    @torch.inference_mode()
    def probabilities(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """(B, K)."""
        return self.logits(prepared).softmax(dim=1).cpu().numpy()

    def logits(self, prepared: Sequence[Tensor]) -> Tensor:
        """(B, K) of float32."""
        pixels = torch.stack(list(prepared)).to(self.device, non_blocking=True)
        images = (
            pixels.float().div_(self.white).sub_(self.mean).div_(self.std)
        )  # as `eval_transform`, to the bit
        return self.model(images).float()


class LabelSetPredictor(ClassificationPredictor):
    """A trained multi-label classifier, with the threshold of each class."""

    columns: Sequence[str] = LabelPrediction.columns

    def __init__(self, saved: SavedRun, **options: Any) -> None:
        super().__init__(saved, **options)
        self.columns = LabelPrediction.columns
        self.thresholds = read_thresholds(saved)

    def predict(self, prepared: Sequence[Tensor]) -> list[LabelPrediction]:  # type: ignore[override]
        return [
            LabelPrediction.of(row, self.class_names, self.thresholds) for row in self.probabilities(prepared)
        ]

    @torch.inference_mode()
    def probabilities(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """(B, K), each class for itself."""
        return self.logits(prepared).sigmoid().cpu().numpy()


def open_classifier(saved: SavedRun, **options: Any) -> Predictor[Any]:
    """The predictor of a run with one label per image, or with several.

    Raises:
        ValueError: The weights do not fit the recipe.
    """
    assert isinstance(saved.recipe, ClassificationRecipe)
    kind = LabelSetPredictor if saved.recipe.multi_label else ClassificationPredictor
    return kind(saved, **options)


def readable(class_names: list[str]) -> list[str]:
    """ImageNet's numbers of noun synsets (n01440764) in words; other names as they are."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return class_names
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [info.label_name_to_description(n, detailed=False) if n in known else n for n in class_names]
