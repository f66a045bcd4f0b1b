"""From one image to its objects."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from crossformerpp.analysis.predictions import ObjectPrediction
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.tasks.detection.evaluation import describe
from crossformerpp.tasks.detection.model import build_detector
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun


class DetectionPredictor:
    """A trained detector, ready for images of any size."""

    columns: Sequence[str] = ObjectPrediction.columns

    def __init__(
        self, saved: SavedRun, min_score: float = 0.5, device: str | torch.device = "cpu", **_: Any
    ) -> None:
        """
        Args:
            min_score: Objects with lower scores are left out.

        Raises:
            ValueError: The weights do not fit the recipe.
        """
        assert isinstance(saved.recipe, DetectionRecipe)
        recipe = saved.recipe
        self.class_names = saved.class_names
        self.device = torch.device(device)
        section = recipe.detector.model_copy(update={"min_score": min_score})
        model = build_detector(recipe.model, section, recipe.data, len(saved.class_names))
        load_weights(model, saved.weights, saved.path)
        self.rules = section.rules
        self.model = model.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> ObjectPrediction:
        (found,) = self.model([pil_to_tensor(image).to(self.device)])
        return ObjectPrediction(describe(found, image.height, image.width, self.rules), self.class_names)
