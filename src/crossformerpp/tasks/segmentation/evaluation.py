"""Exact segmentation metrics: one confusion matrix over all pixels of all images, on all processes.

Legend: K classes; row = true class, column = predicted class. Pixels without a class count nowhere.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from crossformerpp.analysis.overlay import add_legend, blend, side_by_side, stack
from crossformerpp.analysis.pictures import confusion_matrix
from crossformerpp.data.mask_files import IGNORED, Color
from crossformerpp.data.split import Split


class PixelCounts(Metric):
    """The confusion matrix, how many images it has, and how many of them have no labelled pixel.

    Attributes:
        per_image: The confusion of each image of this process, sparse, in the order that they came.
    """

    full_state_update = False
    confusion: Tensor
    images: Tensor
    unlabelled: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.per_image: list[Tensor] = []
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), "sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("unlabelled", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add one image: H × W labels, predicted and true."""
        self.images += 1
        known = labels != IGNORED
        if not known.any():
            self.unlabelled += 1
        own = multiclass_confusion_matrix(
            predicted[known].long(), labels[known].long(), self.num_classes, validate_args=False
        )
        self.confusion += own
        self.per_image.append(own.cpu().to_sparse())

    def reset(self) -> None:
        super().reset()
        self.per_image = []

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Confusion (K, K), images, unlabelled images: of all processes."""
        return self.confusion, self.images, self.unlabelled


@dataclass(frozen=True)
class Example:
    """An image that was evaluated, to be shown: 3 × H × W bytes, true and predicted labels H × W."""

    number: int
    image: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    def picture(self, colors: Sequence[Color]) -> Image.Image:
        """The image, the truth and the prediction, side by side."""
        image = Image.fromarray(self.image.transpose(1, 2, 0))
        tinted = [blend(image, labels, colors) for labels in (self.labels, self.predicted)]
        return side_by_side([image, *tinted], ("image", "truth", "prediction"))


@dataclass(frozen=True)
class SegmentationEvaluation:
    """Pixel counts of an evaluation, on the CPU."""

    confusion: Tensor
    num_images: int
    num_unlabelled: int
    class_names: list[str]
    colors: list[Color]
    examples: list[Example] = field(default_factory=list)
    per_image: list[Tensor] = field(default_factory=list)

    @cached_property
    def iou(self) -> Tensor:
        """(K,) intersection over union; NaN for a class that is neither present nor predicted."""
        return _iou(self.confusion)

    def score(self, images: Sequence[int] | np.ndarray) -> float:
        """The mean IoU."""
        total = torch.zeros_like(self.confusion)
        for number in images:
            total += self.per_image[number]
        return float(_iou(total).nanmean())

    @cached_property
    def accuracy(self) -> Tensor:
        """(K,) share of a class's pixels that were found; NaN for an absent class."""
        return self.confusion.diag().double() / self.confusion.sum(1)

    @property
    def metrics(self) -> dict[str, float]:
        """miou and mean_accuracy over the classes that have one, pixel_accuracy, images."""
        right = float(self.confusion.diag().sum())
        metrics = {
            "miou": float(self.iou.nanmean()),
            "mean_accuracy": float(self.accuracy.nanmean()),
            "pixel_accuracy": right / max(1, int(self.confusion.sum())),
            "images": self.num_images,
        }
        if self.num_unlabelled:
            metrics["images_without_labels"] = self.num_unlabelled
        return metrics

    def write(self, folder: Path, split: Split) -> list[Path]:
        """per_class.csv, confusion.csv (pixels), confusion.png; overlays.png (image, truth, prediction)."""
        files = [folder / name for name in ("per_class.csv", "confusion.csv", "confusion.png")]
        pixels = self.confusion.sum(1).tolist()
        rows = zip(self.class_names, self.iou.tolist(), self.accuracy.tolist(), pixels, strict=True)
        with files[0].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["class", "iou", "accuracy", "pixels"])
            table.writerows([name, f"{iou:.4f}", f"{found:.4f}", count] for name, iou, found, count in rows)
        with files[1].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["true \\ predicted", *self.class_names])
            table.writerows(
                [name, *row] for name, row in zip(self.class_names, self.confusion.tolist(), strict=True)
            )
        confusion_matrix(self.confusion.numpy(), self.class_names, files[2])
        for name, picture in self.pictures().items():
            picture.save(folder / f"{name}.png")
            files.append(folder / f"{name}.png")
        return files

    def pictures(self) -> dict[str, Image.Image]:
        """Name → picture, for the logs: "overlays", if there are examples."""
        if not self.examples:
            return {}
        shown = stack([example.picture(self.colors) for example in self.examples])
        drawn = [labels for e in self.examples for labels in (e.labels, e.predicted)]
        present = np.unique(np.concatenate([np.unique(labels) for labels in drawn]))
        entries = [(self.class_names[label], self.colors[label]) for label in present[present >= 0]]
        return {"overlays": add_legend(shown, entries)}


def _iou(confusion: Tensor) -> Tensor:
    right = confusion.diag().double()
    return right / (confusion.sum(0) + confusion.sum(1) - right)
