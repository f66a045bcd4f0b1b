"""Predictions for one image: rows of a table, plain data, pictures. Needs only NumPy and Pillow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, overload

import numpy as np
from PIL import Image

from crossformerpp.analysis.annotate import label_image
from crossformerpp.analysis.conformal import Promise
from crossformerpp.analysis.objects import draw_objects, drawn_objects
from crossformerpp.analysis.overlay import add_legend, blend
from crossformerpp.data.mask_files import Color, index_picture
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat, Pixels


class Prediction(Protocol):
    """The result for one image."""

    def rows(self) -> list[tuple[str, ...]]:
        """Rows of the printed table, under the predictor's `columns`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for --json and the JSON files: one list of entries, `top`, `labels`, `objects` or `classes`, and
        more."""

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        """File name suffix → picture; "" is the annotated image, "_mask" could be an index mask."""


P = TypeVar("P", bound=Prediction)
OneImage = Image.Image | Pixels | np.ndarray  # the latter two of other images than RGB photographs


class Predictor(ABC, Generic[P]):
    """From images of any size (RGB photographs, unless `pixels` says otherwise) to predictions, in two steps.

    `prepare` needs no network, so that other processes can run it; `predict` runs the network.

    Attributes:
        columns: Of the printed table.
        batch_size: Images that the network sees at once unless told otherwise.
        pixels: How images are read: as RGB photographs, or their values as `data.pixels.Pixels`.
        prepare: What the network needs of an image; can be pickled, and so can its result.
        suffixes: Of the names of an image's pictures, "" for the annotated image.
        source, options: The file that it was loaded from, and how; a prediction that goes on wants them equal.
        workers: What prepares images beside the network: processes, or threads where there is no PyTorch to share
            memory with them.
    """

    columns: Sequence[str]
    batch_size: int = 1
    pixels: PixelFormat = PHOTOGRAPHS
    prepare: Callable[[Any], Any]
    suffixes: Sequence[str] = ("",)
    source: Path | None = None
    options: Mapping[str, Any] = MappingProxyType({})
    workers: Literal["processes", "threads"] = "processes"

    @abstractmethod
    def predict(self, prepared: Sequence[Any]) -> list[P]:
        """The predictions for prepared images, in their order.

        Raises:
            ValueError: One of them cannot be predicted.
        """

    @overload
    def __call__(self, images: OneImage) -> P: ...
    @overload
    def __call__(self, images: Sequence[OneImage]) -> list[P]: ...
    def __call__(self, images: OneImage | Sequence[OneImage]) -> P | list[P]:
        """A prediction for an image, or a list of them for several, which are looked at in batches.

        In a batch an image gets the same answer as alone, but for rounding (1e-6 of probabilities in float32).

        Raises:
            ValueError: One of them cannot be predicted.
        """
        if isinstance(images, Image.Image | Pixels | np.ndarray):
            return self.predict([self.prepare(images)])[0]
        found: list[P] = []
        for start in range(0, len(images), self.batch_size):
            found += self.predict([self.prepare(image) for image in images[start : start + self.batch_size]])
        return found


def set_column(coverage: float) -> str:
    """Name of the table's column that says which classes are in the promised set."""
    return f"in the {coverage:.3g} set"


@dataclass(frozen=True)
class ClassPrediction:
    """The most likely classes, best first, with their probabilities; after a calibration also the set of classes that
    holds the true one with a promised probability (`analysis.conformal`)."""

    columns: ClassVar[Sequence[str]] = ("class", "probability")

    top: list[tuple[str, float]]
    answer: list[str] | None = None  # the set that holds the truth with probability `coverage`
    coverage: float | None = None

    @classmethod
    def of(
        cls, probabilities: np.ndarray, class_names: Sequence[str], top_k: int, promise: Promise | None
    ) -> "ClassPrediction":
        """The one place where a classifier's probabilities (K,) become a result.

        Raises:
            ValueError: They are no numbers.
        """
        if not np.isfinite(probabilities).all():
            raise ValueError("the network's output is not a number (NaN)")
        order = np.argsort(-probabilities, kind="stable")
        top = [(class_names[label], float(probabilities[label])) for label in order[:top_k]]
        if promise is None:
            return cls(top)
        kept = promise.answer(probabilities)
        return cls(top, [class_names[label] for label in order if kept[label]], promise.coverage)

    @classmethod
    def columns_with(cls, promise: Promise | None) -> Sequence[str]:
        """Of the table, where there is a promise."""
        return cls.columns if promise is None else (*cls.columns, set_column(promise.coverage))

    def rows(self) -> list[tuple[str, ...]]:
        if self.answer is None:
            return [(name, f"{share:.1%}") for name, share in self.top]
        size = len(self.answer)  # the most likely classes, so they are the first of `top`
        rows: list[tuple[str, ...]] = [
            (name, f"{share:.1%}", "yes" if n < size else "") for n, (name, share) in enumerate(self.top)
        ]
        if not size:
            return [("none of these", "", "yes"), *rows]
        return rows if size <= len(rows) else [*rows, (f"and {size - len(rows)} more", "", "yes")]

    def to_json(self) -> dict[str, Any]:
        """`top`: class and probability; after a calibration also whether the class is in the `answer`, which is the
        whole set, and the answer's `coverage`."""
        top: list[dict[str, Any]] = [{"class": name, "probability": share} for name, share in self.top]
        if self.answer is None:
            return {"top": top}
        marked = [entry | {"answer": number < len(self.answer)} for number, entry in enumerate(top)]
        return {"top": marked, "answer": self.answer, "coverage": self.coverage}

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        return {"": label_image(image, self.top)}


@dataclass(frozen=True)
class LabelPrediction:
    """The labels whose probability reaches their threshold, most likely first: (name, probability, threshold)."""

    columns: ClassVar[Sequence[str]] = ("class", "probability", "threshold")

    found: list[tuple[str, float, float]]

    @classmethod
    def of(
        cls, probabilities: np.ndarray, class_names: Sequence[str], thresholds: np.ndarray
    ) -> "LabelPrediction":
        """The one place where a multi-label classifier's probabilities (K,) become a result.

        Raises:
            ValueError: They are no numbers.
        """
        if not np.isfinite(probabilities).all():
            raise ValueError("the network's output is not a number (NaN)")
        order = np.argsort(-probabilities, kind="stable")
        return cls(
            [
                (class_names[label], float(probabilities[label]), float(thresholds[label]))
                for label in order
                if probabilities[label] >= thresholds[label]
            ]
        )

    def rows(self) -> list[tuple[str, ...]]:
        return [(name, f"{share:.1%}", f"{least:.1%}") for name, share, least in self.found] or [
            ("none", "", "")
        ]

    def to_json(self) -> dict[str, Any]:
        """`labels`: class, probability and the class's threshold."""
        return {
            "labels": [
                {"class": name, "probability": share, "threshold": least} for name, share, least in self.found
            ]
        }

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        return {"": label_image(image, [(name, share) for name, share, _ in self.found])}


@dataclass(frozen=True)
class ObjectPrediction:
    """The objects of one image, best first, each with its `label`, `bbox` [x, y, width, height] and `score`."""

    columns: ClassVar[Sequence[str]] = ("class", "score", "x", "y", "width", "height")

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


@dataclass(frozen=True)
class MaskPrediction:
    """The segmentation of an image of H × W pixels.

    Attributes:
        labels: H × W of int16.
        confidence: (K,) mean probability of each class where it was found, 0 where it was not.
        probabilities: Class name → H × W of 16 bits, 65535 = 1; of the requested classes.
    """

    columns: ClassVar[Sequence[str]] = ("class", "share", "probability")

    labels: np.ndarray
    confidence: np.ndarray
    probabilities: dict[str, np.ndarray]
    class_names: list[str]
    colors: list[Color]

    def found(self) -> list[tuple[int, float]]:
        """(label, share of the image) of the classes that were found, the largest first."""
        shares = np.bincount(self.labels.ravel(), minlength=len(self.class_names)) / self.labels.size
        order = np.argsort(-shares, kind="stable")
        return [(int(label), float(shares[label])) for label in order if shares[label] > 0]

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (self.class_names[label], f"{share:.1%}", f"{self.confidence[label]:.1%}")
            for label, share in self.found()
        ]

    def to_json(self) -> dict[str, Any]:
        classes = [
            {
                "class": self.class_names[label],
                "label": label,
                "share": share,
                "probability": float(self.confidence[label]),
            }
            for label, share in self.found()
        ]
        height, width = self.labels.shape
        return {"width": width, "height": height, "classes": classes}

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        """The overlay with a legend, the index mask, and 16-bit grey probabilities of the requested classes."""
        entries = [(f"{self.class_names[n]}: {share:.1%}", self.colors[n]) for n, share in self.found()]
        pictures = {
            "": add_legend(blend(image, self.labels, self.colors), entries),
            "_mask": index_picture(self.labels, self.colors),
        }
        for name, values in self.probabilities.items():
            pictures[f"_probability_{name}"] = Image.fromarray(values)
        return pictures
