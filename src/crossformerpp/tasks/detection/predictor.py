"""From one image to its objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from crossformerpp.analysis.objects import draw_objects
from crossformerpp.data.detection import to_tensor
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.tasks.detection.evaluation import describe, drawn_objects
from crossformerpp.tasks.detection.model import build_detector
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun


@dataclass(frozen=True)
class ObjectPrediction:
    """The objects of one image, best first, as `evaluation.describe` gives them."""

    found: list[dict[str, Any]]
    class_names: list[str]

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (self.class_names[thing["label"]], f"{thing['score']:.1%}", *(f"{v:.0f}" for v in thing["bbox"]))
            for thing in self.found
        ] or [("nothing found", *[""] * 5)]

    def to_json(self) -> dict[str, Any]:
        """`objects`: class, bbox [x, y, width, height], score and, of Mask R-CNN, segmentation (RLE)."""
        return {
            "objects": [
                {
                    "class": self.class_names[thing["label"]],
                    **{k: v for k, v in thing.items() if k != "label"},
                }
                for thing in self.found
            ]
        }

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        return {"": draw_objects(image, drawn_objects(self.found, self.class_names, least=0.0))}


class DetectionPredictor:
    """A trained detector, ready for images of any size."""

    columns: Sequence[str] = ("class", "score", "x", "y", "width", "height")

    def __init__(
        self, saved: SavedRun, min_score: float = 0.5, device: str | torch.device = "cpu", **_: Any
    ) -> None:
        """
        Args:
            min_score: Objects of lower scores are not told.

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
        self.model = model.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> ObjectPrediction:
        (found,) = self.model([to_tensor(image).to(self.device)])
        return ObjectPrediction(describe(found, image.height, image.width), self.class_names)
