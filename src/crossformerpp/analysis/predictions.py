"""Predictions for one image: rows of a table, plain data, pictures. Needs only NumPy and Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from crossformerpp.analysis.annotate import label_image
from crossformerpp.analysis.objects import draw_objects, drawn_objects
from crossformerpp.analysis.overlay import add_legend, blend
from crossformerpp.data.mask_files import Color, index_picture


@dataclass(frozen=True)
class ClassPrediction:
    """The most likely classes, best first, with their probabilities."""

    columns: ClassVar[Sequence[str]] = ("class", "probability")

    top: list[tuple[str, float]]

    def rows(self) -> list[tuple[str, ...]]:
        return [(name, f"{share:.1%}") for name, share in self.top]

    def to_json(self) -> dict[str, Any]:
        return {"top": [{"class": name, "probability": share} for name, share in self.top]}

    def pictures(self, image: Image.Image) -> dict[str, Image.Image]:
        return {"": label_image(image, self.top)}


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
