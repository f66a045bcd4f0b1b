"""How the answers of an exported file are scored against the truth, and compared with its checkpoint's, by task."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from crossformerpp.analysis.predictions import MaskPrediction, ObjectPrediction
from crossformerpp.data.classification import TransformedImages
from crossformerpp.data.crops import WholeImages
from crossformerpp.data.detection import EvalImages, open_image, truth
from crossformerpp.data.pixels import as_picture
from crossformerpp.data.split import Split
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.detection.evaluation import DetectionEvaluation, Kind
from crossformerpp.tasks.plug import Evaluation
from crossformerpp.tasks.segmentation.evaluation import Example, PixelCounts, SegmentationEvaluation

NUM_EXAMPLES = 8  # images that a segmenter's evaluation shows
_SAME_BOX = 0.9  # IoU from which two boxes are taken for one


class Judge(Protocol):
    """Collects one model's answers on a split.

    Attributes:
        monitor: The metric that a loss of quality is measured by.
        agrees_in: What `compare`'s second figure is the share of.
    """

    monitor: str
    agrees_in: str

    def samples(self) -> Iterator[tuple[int, Any, Any]]:
        """Number, image and truth of each sample that can be read."""

    def add(self, number: int, image: Any, known: Any, predictor: Any) -> Any:
        """Let a model answer, note the answer, and give it back."""

    def compare(self, ours: Any, theirs: Any) -> tuple[float, float]:
        """Of two models' answers to one image: how far they are apart, and the share that agrees."""

    def evaluation(self) -> Evaluation:
        """What the answers are worth."""


class ClassJudge:
    """Drift: the largest difference of a probability."""

    monitor, agrees_in = "top1", "most likely classes"

    def __init__(self, split: Split, recipe: BaseRecipe) -> None:
        assert isinstance(split.dataset, TransformedImages)
        self.source, self.damage = split.dataset.source, split.dataset.damage
        self.class_names = split.class_names
        self.numbers: list[int] = []
        self.probabilities: list[np.ndarray] = []

    def samples(self) -> Iterator[tuple[int, Any, Any]]:
        for number in range(len(self.source)):
            try:
                image = self.source.load(number)
            except ValueError as error:
                self.damage.note(number, error)
            else:
                yield number, image, self.source.target(number)

    def add(self, number: int, image: Any, known: Any, predictor: Any) -> np.ndarray:
        self.numbers.append(number)
        self.probabilities.append(predictor.probabilities([predictor.prepare(image)])[0])
        return self.probabilities[-1]

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        return float(np.abs(ours - theirs).max()), float(ours.argmax() == theirs.argmax())

    def evaluation(self) -> Evaluation:
        numbers = torch.tensor(self.numbers, dtype=torch.int64)
        shape = (-1, len(self.class_names))
        return ClassificationEvaluation(
            numbers,
            torch.tensor(self.source.labels, dtype=torch.int64)[numbers],
            torch.from_numpy(np.array(self.probabilities, np.float32).reshape(shape)),
            self.class_names,
            len(self.source.labels) - len(numbers),
            self.source.real_labels,
        )


class LabelSetJudge(ClassJudge):
    """Drift: the largest difference of a probability. Agreement: of all labels, said or not."""

    monitor, agrees_in = "mAP", "labels, said or not"
    thresholds: np.ndarray

    def add(self, number: int, image: Any, known: Any, predictor: Any) -> np.ndarray:
        self.thresholds = predictor.thresholds
        return super().add(number, image, known, predictor)

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        said = [answer >= self.thresholds for answer in (ours, theirs)]
        return float(np.abs(ours - theirs).max()), float((said[0] == said[1]).mean())

    def evaluation(self) -> LabelSetEvaluation:
        numbers = torch.tensor(self.numbers, dtype=torch.int64)
        targets = torch.zeros(len(numbers), len(self.class_names), dtype=torch.bool)
        assert self.source.label_sets is not None
        for place, number in enumerate(self.numbers):
            targets[place, self.source.label_sets[number]] = True
        probabilities = torch.from_numpy(np.array(self.probabilities, np.float32).reshape(targets.shape))
        return LabelSetEvaluation(
            numbers, targets, probabilities, self.class_names, len(self.source) - len(numbers)
        )


class ObjectJudge:
    """Drift: the largest difference of a score, or of a box's edge as a share of the image, among objects that both
    found: of one class, and with boxes that share nine tenths of their union."""

    monitor, agrees_in = "box_AP", "objects"

    def __init__(self, split: Split, recipe: BaseRecipe) -> None:
        assert isinstance(split.dataset, EvalImages)
        assert isinstance(recipe, DetectionRecipe)
        self.dataset = split.dataset
        self.class_names = split.class_names
        self.kinds: tuple[Kind, ...] = ("box", "mask") if split.dataset.with_masks else ("box",)
        self.records: list[dict[str, Any]] = []

    def samples(self) -> Iterator[tuple[int, Any, Any]]:
        for number, entry in enumerate(self.dataset.coco.images):
            yield number, open_image(entry, self.dataset.coco.pixels), truth(entry, self.dataset.with_masks)

    def add(self, number: int, image: Any, known: Any, predictor: Any) -> tuple[ObjectPrediction, int]:
        found: ObjectPrediction = predictor(image)
        self.records.append({"truth": known, "found": found.found})
        return found, max(image.size)

    def compare(
        self, ours: tuple[ObjectPrediction, int], theirs: tuple[ObjectPrediction, int]
    ) -> tuple[float, float]:
        left, drift, met = list(ours[0].found), 0.0, 0
        for thing in theirs[0].found:
            partners = [other for other in left if other["label"] == thing["label"]]
            best = max(partners, key=lambda other: _iou(other["bbox"], thing["bbox"]), default=None)
            if best is None or _iou(best["bbox"], thing["bbox"]) < _SAME_BOX:
                continue
            left = [other for other in left if other is not best]
            edges = np.abs(_corners(best["bbox"]) - _corners(thing["bbox"])).max() / ours[1]
            drift, met = max(drift, abs(best["score"] - thing["score"]), float(edges)), met + 1
        count = len(ours[0].found) + len(theirs[0].found)
        return drift, 2 * met / count if count else 1.0

    def evaluation(self) -> DetectionEvaluation:
        return DetectionEvaluation.of(self.records, self.class_names, self.kinds)


class PixelJudge:
    """Drift: the share of pixels that are given another class."""

    monitor, agrees_in = "miou", "pixels"

    def __init__(self, split: Split, recipe: BaseRecipe) -> None:
        assert isinstance(split.dataset, WholeImages)
        self.source = split.dataset.source
        self.class_names = split.class_names
        self.counts = PixelCounts(len(split.class_names))
        self.examples: list[Example] = []
        self.colors: list[Any] = []

    def samples(self) -> Iterator[tuple[int, Any, Any]]:
        for number in range(len(self.source)):
            image, labels = self.source.open(number)
            yield number, image, labels

    def add(self, number: int, image: Any, known: np.ndarray, predictor: Any) -> np.ndarray:
        found: MaskPrediction = predictor(image)
        self.counts.update(torch.from_numpy(found.labels), torch.from_numpy(known))
        self.colors = found.colors
        if number < NUM_EXAMPLES:
            pixels = np.asarray(as_picture(image)).transpose(2, 0, 1)
            self.examples.append(Example(number, pixels, known, found.labels))
        return found.labels

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        same = float((ours == theirs).mean())
        return 1 - same, same

    def evaluation(self) -> SegmentationEvaluation:
        confusion, images, unlabelled = self.counts.compute()
        return SegmentationEvaluation(
            confusion, int(images), int(unlabelled), self.class_names, self.colors, self.examples
        )


JUDGES: dict[str, type[ClassJudge | ObjectJudge | PixelJudge]] = {
    "classification": ClassJudge,
    "detection": ObjectJudge,
    "segmentation": PixelJudge,
}


def open_judge(split: Split, recipe: BaseRecipe) -> ClassJudge | ObjectJudge | PixelJudge:
    """The judge of a recipe's task."""
    if isinstance(recipe, ClassificationRecipe) and recipe.multi_label:
        return LabelSetJudge(split, recipe)
    return JUDGES[recipe.task](split, recipe)


def _corners(box: list[float]) -> np.ndarray:
    x, y, width, height = box
    return np.array([x, y, x + width, y + height])


def _iou(one: list[float], other: list[float]) -> float:
    a, b = _corners(one), _corners(other)
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0)
    shared = float(sides.prod())
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else float((a == b).all())
