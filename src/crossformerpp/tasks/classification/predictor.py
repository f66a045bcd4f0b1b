"""From one image to its most likely classes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo

from crossformerpp.analysis.predictions import ClassPrediction
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.classification.promise import read_promise
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun


class ClassificationPredictor:
    """A trained classifier, ready for images."""

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
        self.transform = eval_transform(saved.recipe.data)
        self.promise = read_promise(saved)
        self.columns: Sequence[str] = ClassPrediction.columns_with(self.promise)

    def __call__(self, image: Image.Image) -> ClassPrediction:
        return ClassPrediction.of(self.probabilities(image), self.class_names, self.top_k, self.promise)

    @torch.inference_mode()
    def probabilities(self, image: Image.Image) -> np.ndarray:
        """(K,)."""
        scores = self.model(self.transform(image).unsqueeze(0).to(self.device))[0].float().softmax(dim=0)
        if not scores.isfinite().all():
            raise ValueError("the network's output is not a number (NaN)")
        return scores.cpu().numpy()


def readable(class_names: list[str]) -> list[str]:
    """ImageNet's numbers of noun synsets (n01440764) in words; other names as they are."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return class_names
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [info.label_name_to_description(n, detailed=False) if n in known else n for n in class_names]
