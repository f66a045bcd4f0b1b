"""From images to their objects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossformerpp.analysis.predictions import ObjectPrediction, Predictor
from crossformerpp.data.pixel_tensors import ReadTensor
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.tasks.detection.evaluation import describe
from crossformerpp.tasks.detection.model import build_detector
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun


class DetectionPredictor(Predictor[ObjectPrediction]):
    """A trained detector, ready for images of any size. `prepare` gives 3 × H × W bytes, or C × H × W floats of no
    photographs."""

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
        self.pixels = recipe.data.pixels
        self.prepare = ReadTensor(self.pixels)

    @torch.inference_mode()
    def predict(self, prepared: Sequence[Tensor]) -> list[ObjectPrediction]:
        """Images of the same size go through the network together: padding to another's size would change it."""
        found: dict[int, ObjectPrediction] = {}
        for size in {tuple(image.shape[1:]) for image in prepared}:
            numbers = [number for number, image in enumerate(prepared) if tuple(image.shape[1:]) == size]
            outputs = self.model([prepared[number].to(self.device, non_blocking=True) for number in numbers])
            for number, output in zip(numbers, outputs, strict=True):
                things = describe(output, size[0], size[1], self.rules)
                found[number] = ObjectPrediction(things, self.class_names)
        return [found[number] for number in range(len(prepared))]
