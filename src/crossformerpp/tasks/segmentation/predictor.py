"""From images of any size to a class per pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from crossformerpp.analysis.predictions import MaskPrediction, Predictor
from crossformerpp.data.mask_files import Color
from crossformerpp.data.pixel_tensors import ReadTensor
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun
from crossformerpp.tasks.segmentation import class_colors
from crossformerpp.tasks.segmentation.inference import Look
from crossformerpp.tasks.segmentation.model import Segmenter

_MANY_WINDOWS = 8  # from which a bar shows how far it is
_MAX_PROBABILITY_BYTES = 1 << 30


class SegmentationPredictor(Predictor[MaskPrediction]):
    """A trained segmenter, ready for images. `prepare` gives 3 × H × W bytes, or C × H × W floats of no
    photographs.

    Images are looked at one by one, each in its own views and windows.
    """

    columns: Sequence[str] = MaskPrediction.columns

    def __init__(
        self, saved: SavedRun, device: str | torch.device = "cpu", show_progress: bool = False, **_: Any
    ) -> None:
        """
        Args:
            show_progress: Let a bar on stderr count the windows of a large image, if somebody looks at it.

        Raises:
            ValueError: The weights do not fit their recipe, or the recipe asks for the probabilities of an
                unknown class.
        """
        recipe = saved.recipe
        assert isinstance(recipe, SegmentationRecipe)
        self.class_names = saved.class_names
        self.show_progress = show_progress
        model = Segmenter(recipe.model, recipe.head, class_colors(recipe.data, saved.class_names))
        load_weights(model, saved.weights, saved.path)
        self.colors: list[Color] = [(r, g, b) for r, g, b in model.colors.tolist()]
        self.device = torch.device(device)
        data = recipe.data
        self.model = model = model.eval().to(self.device)
        self.look = Look(model, len(saved.class_names), recipe.inference, data.mean, data.std)
        self.pixels = data.pixels
        self.prepare = ReadTensor(self.pixels)
        self.wanted = _labels(recipe.inference.probabilities, saved.class_names)
        named = [saved.class_names[label] for label in self.wanted]
        self.suffixes = ("", "_mask", *(f"_probability_{name}" for name in named))

    def predict(self, prepared: Sequence[Tensor]) -> list[MaskPrediction]:
        return [self._predict_one(pixels) for pixels in prepared]

    @torch.inference_mode()
    def _predict_one(self, pixels: Tensor) -> MaskPrediction:
        height, width = pixels.shape[1:]
        if 2 * len(self.wanted) * height * width > _MAX_PROBABILITY_BYTES:
            raise ValueError(
                f"the probabilities of {len(self.wanted)} classes for {width}x{height} pixels take more than "
                "a gigabyte; name fewer with --set inference.probabilities=[…]"
            )
        labels = np.empty((height, width), np.int16)
        kept = np.empty((len(self.wanted), height, width), np.uint16)
        sums = torch.zeros(len(self.class_names), dtype=torch.float64)
        windows = self.look.num_windows(height, width)
        console = Console(stderr=True)
        is_shown = self.show_progress and windows >= _MANY_WINDOWS and console.is_terminal
        with Progress(console=console, transient=True, disable=not is_shown) as bar:
            task = bar.add_task("windows", total=windows)
            for top, band in self.look.bands(pixels.to(self.device), lambda: bar.advance(task)):
                rows = slice(top, top + band.shape[1])
                highest, classes = (x.cpu() for x in band.max(dim=0))
                labels[rows] = classes.numpy()
                sums.index_add_(0, classes.flatten(), highest.flatten().double())
                kept[:, rows] = (band[self.wanted] * 65535).round().cpu().numpy().astype(np.uint16)
        counts = np.bincount(labels.ravel(), minlength=len(self.class_names))
        return MaskPrediction(
            labels,
            sums.numpy() / counts.clip(min=1),
            {self.class_names[label]: values for label, values in zip(self.wanted, kept, strict=True)},
            self.class_names,
            self.colors,
        )


def _labels(names: list[str], class_names: list[str]) -> list[int]:
    if names == ["all"]:
        return list(range(len(class_names)))
    strange = [name for name in names if name not in class_names]
    if strange:
        raise ValueError(
            f"inference.probabilities: no class {', '.join(strange)}; there are {', '.join(class_names)}"
        )
    return [class_names.index(name) for name in names]
