"""The results of evaluating a multi-label classifier: metrics, tables of labels and predictions, pictures."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from crossformerpp.analysis.annotate import image_grid
from crossformerpp.analysis.thresholds import choose_thresholds, decide_crossed
from crossformerpp.data.classification import LabelledImages, TransformedImages
from crossformerpp.data.names import path_inside, safe_name
from crossformerpp.data.split import Split
from crossformerpp.tasks.classification.evaluation import shown_places

SEPARATOR = ";"  # of the labels in a cell


@dataclass(frozen=True)
class LabelSetEvaluation:
    """Predictions for M samples of K classes, on the CPU.

    Attributes:
        numbers: (M,) position of each sample in its split.
        targets: (M, K) of bool, which classes each sample has.
        probabilities: (M, K).
        num_unreadable: Samples left out.
        thresholds: (K,) from which on a probability means the label; None: they are chosen on these samples, and each
            half of them is judged by those of the other half.
    """

    numbers: Tensor
    targets: Tensor
    probabilities: Tensor
    class_names: list[str]
    num_unreadable: int = 0
    thresholds: np.ndarray | None = None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """mAP (mean average precision over classes) and mAP_micro (of all pairs of image and class), F1, precision and
        recall, means over classes and micro, exact_match (images with the right set of labels), binary cross-entropy,
        samples, and unreadable ones if there are any. Classes that no sample has count in no mean over classes.

        Raises:
            ValueError: There is no sample, or no label.
        """
        if not len(self.targets):
            raise ValueError("nothing to evaluate: none of the images can be read")
        if not self.met.any():
            raise ValueError("nothing to evaluate: none of the images has a label")
        size, found, truth = len(self.class_names), self.decisions, self.targets.int()
        metrics = {
            "mAP": self._mean(self.average_precision),
            "mAP_micro": float(
                multilabel_average_precision(self.probabilities, truth, size, average="micro")
            ),
            "f1": self._mean(self.f1),
            "f1_micro": float(multilabel_f1_score(found, truth, size, average="micro")),
            "precision": self._mean(self.precision),
            "recall": self._mean(self.recall),
            "exact_match": float(multilabel_exact_match(found, truth, size)),
            "loss": float(F.binary_cross_entropy(self.probabilities, self.targets.float())),
            "labels_per_image": float(self.targets.sum() / len(self.targets)),
            "samples": len(self.targets),
        }
        if self.num_unreadable:
            metrics["unreadable"] = self.num_unreadable
        return metrics

    @property
    def num_images(self) -> int:
        return len(self.targets)

    @cached_property
    def met(self) -> Tensor:
        """(K,) whether any sample has the class."""
        return self.targets.any(dim=0)

    @cached_property
    def average_precision(self) -> Tensor:
        """(K,) NaN of classes that no sample has."""
        return _average_precision(self.probabilities, self.targets)

    @cached_property
    def chosen_thresholds(self) -> np.ndarray:
        """(K,) those given, or the best ones for all of these samples."""
        if self.thresholds is not None:
            return self.thresholds
        return choose_thresholds(self.probabilities.numpy(), self.targets.numpy())

    @cached_property
    def decisions(self) -> Tensor:
        """(M, K) of int, 1 for each label that is said."""
        if self.thresholds is not None:
            return (self.probabilities >= torch.from_numpy(self.thresholds)).int()
        return torch.from_numpy(decide_crossed(self.probabilities.numpy(), self.targets.numpy())).int()

    @cached_property
    def right(self) -> Tensor:
        """(M,) whether exactly the true labels are said."""
        return (self.decisions == self.targets).all(dim=1)

    @cached_property
    def f1(self) -> Tensor:
        """(K,)"""
        return multilabel_f1_score(
            self.decisions, self.targets.int(), len(self.class_names), average="none", zero_division=0
        )

    @cached_property
    def precision(self) -> Tensor:
        """(K,)"""
        return multilabel_precision(
            self.decisions, self.targets.int(), len(self.class_names), average="none", zero_division=0
        )

    @cached_property
    def recall(self) -> Tensor:
        """(K,)"""
        return multilabel_recall(
            self.decisions, self.targets.int(), len(self.class_names), average="none", zero_division=0
        )

    def score(self, images: Sequence[int] | np.ndarray) -> float:
        """mAP over some of the images."""
        chosen = torch.as_tensor(images)
        return float(_average_precision(self.probabilities[chosen], self.targets[chosen]).nanmean())

    def _mean(self, values: Tensor) -> float:
        return float(values[self.met].double().mean())

    def write(self, folder: Path, split: Split) -> list[Path]:
        """predictions.png (the mistakes first), predictions.csv, classes.csv; samples/ of built-in data."""
        assert isinstance(split.dataset, TransformedImages)
        source = split.dataset.source
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["sample", "labels", "predicted", "probabilities", "correct"])
            for place, number in enumerate(self.numbers.tolist()):
                said = self._said(place)
                shares = SEPARATOR.join(f"{self.probabilities[place, label]:.4f}" for label in said)
                truth = self._named(self.targets[place].nonzero().flatten().tolist())
                right = int(self.right[place])
                table.writerow([source.names[number], truth, self._named(said), shares, right])
        self._write_classes(folder / "classes.csv")
        self._picture(source).save(folder / "predictions.png")
        _write_samples(source, folder / "samples")
        return [folder / name for name in ("predictions.png", "predictions.csv", "classes.csv")]

    def _said(self, place: int) -> list[int]:
        """The labels of a sample, most likely first."""
        found = self.decisions[place].nonzero().flatten()
        return found[self.probabilities[place, found].argsort(descending=True)].tolist()

    def _named(self, labels: Sequence[int]) -> str:
        return SEPARATOR.join(self.class_names[label] for label in labels)

    def _write_classes(self, path: Path) -> None:
        """Samples, average precision, threshold, precision, recall and F1 of each class."""
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(
                ["class", "samples", "average_precision", "threshold", "precision", "recall", "f1"]
            )
            counts = self.targets.sum(dim=0).tolist()
            for label, name in enumerate(self.class_names):
                figures = (
                    self.average_precision,
                    self.chosen_thresholds,
                    self.precision,
                    self.recall,
                    self.f1,
                )
                shares = [f"{float(values[label]):.4f}" for values in figures]
                if not counts[label]:  # the threshold alone says something
                    shares = ["", shares[1], "", "", ""]
                table.writerow([name, counts[label], *shares])

    def _picture(self, source: LabelledImages) -> Image.Image:
        least = (self.probabilities - 0.5).abs().min(dim=1).values  # of the least certain class
        shown = shown_places(self.right, least)
        return image_grid(
            [source.open(int(self.numbers[place])) for place in shown],
            [self._named(sorted(self._said(place))) or "none" for place in shown],
            [
                None
                if self.right[place]
                else self._named(self.targets[place].nonzero().flatten().tolist()) or "none"
                for place in shown
            ],
        )


def _average_precision(probabilities: Tensor, targets: Tensor) -> Tensor:
    """(K,) of (M, K) each; NaN of classes that no sample has."""
    with warnings.catch_warnings(action="ignore"):  # of classes that no sample has
        found = multilabel_average_precision(probabilities, targets.int(), targets.shape[1], average="none")
    return found.masked_fill(~targets.any(dim=0), torch.nan)


def _write_samples(source: LabelledImages, folder: Path) -> None:
    """Of images in memory, as built-in data are, the first one of each number of labels as a file, for `predict`."""
    assert source.label_sets is not None
    sizes = [len(own) for own in source.label_sets]
    for size in sorted(set(sizes)):
        number = sizes.index(size)
        if isinstance(source.images[number], Image.Image):
            folder.mkdir(exist_ok=True)
            name = "_".join(source.class_names[label] for label in source.label_sets[number]) or "none"
            source.open(number).save(path_inside(folder, f"{safe_name(name)}.png"))
