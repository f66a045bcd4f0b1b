"""The results of evaluating a classifier: metrics, a table of all predictions, pictures."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from crossformerpp.analysis.annotate import image_grid
from crossformerpp.analysis.pictures import confusion_matrix
from crossformerpp.data.classification import LabelledImages, TransformedImages
from crossformerpp.data.names import path_inside, safe_name
from crossformerpp.data.split import Split

NUM_SHOWN = 40  # images in predictions.png


@dataclass(frozen=True)
class ClassificationEvaluation:
    """Predictions for M samples of K classes, on the CPU.

    Attributes:
        numbers: (M,) position of each sample in its split.
        labels: (M,) true class.
        probabilities: (M, K).
        num_unreadable: Samples left out.
        real_labels: All right answers by position in the split, to judge by these as well.
        promised: Metrics of conformal answers.
    """

    numbers: Tensor
    labels: Tensor
    probabilities: Tensor
    class_names: list[str]
    num_unreadable: int = 0
    real_labels: list[list[int]] | None = None
    promised: dict[str, float] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """top1, top5 (with more than five classes), mean accuracy over classes (balanced accuracy), mean F1 over
        classes, cross-entropy, expected calibration error (15 bins), samples, and unreadable ones if there are any.

        Raises:
            ValueError: There is no sample.
        """
        if not len(self.labels):
            raise ValueError("nothing to evaluate: none of the images can be read")
        counts = self.confusion.sum(dim=1)
        met = counts > 0  # a class without samples has no accuracy
        true = self.probabilities.gather(1, self.labels[:, None]).clamp_min(1e-12)
        metrics = {"top1": self._accuracy(1)}
        if len(self.class_names) > 5:
            metrics["top5"] = self._accuracy(5)
        metrics["mean_class_accuracy"] = float((self.confusion.diagonal()[met] / counts[met]).mean())
        metrics["mean_class_f1"] = float(self.f1.nanmean())
        metrics["loss"] = float(-true.log().mean())
        metrics["calibration_error"] = float(
            multiclass_calibration_error(self.probabilities, self.labels, len(self.class_names))
        )
        metrics["samples"] = len(self.labels)
        if self.real_labels is not None:
            metrics |= self._real_accuracy(self.real_labels)
        metrics |= self.promised
        if self.num_unreadable:
            metrics["unreadable"] = self.num_unreadable
        return metrics

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @cached_property
    def right(self) -> Tensor:
        """(M,) whether the most likely class is the true one."""
        return self.probabilities.argmax(dim=1) == self.labels

    def score(self, images: Sequence[int] | np.ndarray) -> float:
        """The share of right answers."""
        return float(self.right[torch.as_tensor(images)].double().mean())

    def _accuracy(self, top_k: int) -> float:
        return float(
            multiclass_accuracy(
                self.probabilities, self.labels, len(self.class_names), top_k=top_k, average="micro"
            )
        )

    def _real_accuracy(self, real_labels: list[list[int]]) -> dict[str, float]:
        """Share of the samples with real labels whose prediction is one of them."""
        guesses = self.probabilities.argmax(dim=1).tolist()
        answers = [real_labels[number] for number in self.numbers.tolist()]
        right = [guess in answer for guess, answer in zip(guesses, answers, strict=True) if answer]
        return {"real_top1": sum(right) / len(right) if right else float("nan"), "real_samples": len(right)}

    @cached_property
    def confusion(self) -> Tensor:
        """(K, K) counts; row = true class, column = predicted class."""
        return multiclass_confusion_matrix(self.probabilities, self.labels, len(self.class_names))

    @cached_property
    def f1(self) -> Tensor:
        """(K,) F1 of each class; NaN of classes that are neither true nor predicted of any sample."""
        return 2 * self.confusion.diagonal() / (self.confusion.sum(dim=0) + self.confusion.sum(dim=1))

    def write(self, folder: Path, split: Split) -> list[Path]:
        """confusion.png, predictions.png (the mistakes first), predictions.csv, classes.csv; samples/ of built-in
        data.
        """
        assert isinstance(split.dataset, TransformedImages)
        source = split.dataset.source
        confidence, predicted = self.probabilities.max(dim=1)
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["sample", "label", "predicted", "confidence", "correct"])
            rows = zip(
                self.numbers.tolist(),
                self.labels.tolist(),
                predicted.tolist(),
                confidence.tolist(),
                strict=True,
            )
            for number, label, guess, share in rows:
                names = self.class_names[label], self.class_names[guess]
                table.writerow([source.names[number], *names, f"{share:.4f}", int(label == guess)])

        self._write_classes(folder / "classes.csv")
        confusion_matrix(self.confusion.numpy(), self.class_names, folder / "confusion.png")
        shown = shown_places(self.right, confidence)
        picture = image_grid(
            [source.open(int(self.numbers[i])) for i in shown],
            [f"{self.class_names[int(predicted[i])]}: {confidence[i]:.0%}" for i in shown],
            [
                None if predicted[i] == self.labels[i] else self.class_names[int(self.labels[i])]
                for i in shown
            ],
        )
        picture.save(folder / "predictions.png")
        _write_samples(source, self.class_names, folder / "samples")
        names_written = ("confusion.png", "predictions.png", "predictions.csv", "classes.csv")
        return [folder / name for name in names_written]

    def _write_classes(self, path: Path) -> None:
        """Samples, accuracy (which is recall), the most frequent mistake, precision and F1 of each class."""
        predicted = self.confusion.sum(dim=0)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["class", "samples", "accuracy", "most_often_taken_for", "precision", "f1"])
            for label, row in enumerate(self.confusion):
                count, right = int(row.sum()), int(row[label])
                others = row.clone()
                others[label] = 0
                mistaken = self.class_names[int(others.argmax())] if others.any() else ""
                shares = [_share(right, whole) for whole in (count, int(predicted[label]))]
                f1 = "" if self.f1[label].isnan() else f"{self.f1[label]:.4f}"
                table.writerow([self.class_names[label], count, shares[0], mistaken, shares[1], f1])


def shown_places(right: Tensor, confidence: Tensor) -> list[int]:
    """Which of M samples predictions.png shows: mistakes, the most certain first, then right answers spread evenly over
    the split.

    Args:
        right: (M,) of bool.
        confidence: (M,)
    """
    missed = torch.nonzero(~right).flatten()
    wrong = missed[confidence[missed].argsort(descending=True)][: NUM_SHOWN // 2].tolist()
    others = torch.nonzero(right).flatten().tolist()
    room = NUM_SHOWN - len(wrong)
    return wrong + others[:: max(1, len(others) // room)][:room]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def _write_samples(source: LabelledImages, class_names: list[str], folder: Path) -> None:
    """Of images in memory, as built-in data are, one of each class as a file, for `predict` to try."""
    for label, name in enumerate(class_names):
        number = source.labels.index(label) if label in source.labels else None
        if number is not None and isinstance(source.images[number], Image.Image):
            folder.mkdir(exist_ok=True)
            source.open(number).save(path_inside(folder, f"{safe_name(name)}.png"))
