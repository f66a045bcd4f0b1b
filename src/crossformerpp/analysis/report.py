"""One HTML page that tells a run: pictures included, no script, no network access, light and dark."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

MAX_MATRIX_CLASSES = 20  # a wider confusion matrix does not fit a page
_THUMBNAIL, _PICTURE = 160, 640  # pixels of an image's longer side
_COLORED = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
_INK = {"light": "#1d2733", "dark": "#e4eaf0"}  # as in report.html


def _is_figure(text: str) -> bool:
    return text.rstrip(" %ms").replace(",", "").replace(".", "", 1).isdigit()


@dataclass(frozen=True)
class Shown:
    """An image with its predictions.

    Attributes:
        truth: The true class where the prediction is wrong, otherwise None.
        top: The most likely classes, best first, with their probabilities.
        said: The prediction, where it is not the first of `top`.
    """

    image: Image.Image
    name: str
    truth: str | None
    top: list[tuple[str, float]]
    said: str = ""


@dataclass(frozen=True)
class Pair:
    """An image twice: with its truth and with its prediction drawn into it."""

    name: str
    truth: Image.Image
    prediction: Image.Image


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; columns of figures are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def is_figure(self, column: int) -> bool:
        return any(map(_is_figure, (row[column] for row in self.rows)))


@dataclass(frozen=True)
class DrawnFigure:
    """A diagram under a title; it is drawn twice, in light and in dark colours."""

    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Report:
    """The contents of the page.

    Attributes:
        headline: (figure, what it is) of the tiles on top.
        mistakes: Some of the wrong predictions, `right` of the right ones.
        confusion: (K, K) counts by true and predicted class.
        pairs: Truth beside prediction.
        next_steps: (what for, command).
        about: (what, how it was) of the run's beginning.
        recipe: The YAML page.
    """

    title: str
    subtitle: str
    headline: list[tuple[str, str]]
    figures: list[DrawnFigure]
    class_names: list[str]
    classes: Table
    model: Table
    speed: Table
    machine: str
    next_steps: list[tuple[str, str]]
    about: list[tuple[str, str]]
    recipe: str
    # of classifiers
    num_mistakes: int = 0
    num_samples: int = 0
    mistakes: list[Shown] = field(default_factory=list)
    right: list[Shown] = field(default_factory=list)
    confusion: np.ndarray | None = None
    # of detectors and segmenters
    pairs: list[Pair] = field(default_factory=list)


def to_html(report: Report) -> str:
    """The page, a single self-contained file."""
    return render("report.html", report=report, matrix=_matrix(report))


def render(name: str, **values: Any) -> str:
    """A template of this folder, filled in; what is no markup is escaped."""
    folder = files("crossformerpp.analysis")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "image_uri": image_uri,
        "picture_uri": picture_uri,
        "in_both_colours": in_both_colours,
    }
    return environment.get_template(name).render(**values)


def _matrix(report: Report) -> list[list[dict[str, Any]]]:
    """Cells of the confusion matrix: count, and the share of the row in percent; none if there are too many."""
    if report.confusion is None or len(report.class_names) > MAX_MATRIX_CLASSES:
        return []
    shares = report.confusion / np.maximum(report.confusion.sum(axis=1, keepdims=True), 1)
    return [
        [{"count": int(count), "percent": 100 * share} for count, share in zip(*rows, strict=True)]
        for rows in zip(report.confusion, shares, strict=True)
    ]


def picture_uri(image: Image.Image) -> str:
    """A version of an annotated image in which its names can be read, as a data URI."""
    return image_uri(image, _PICTURE)


def image_uri(image: Image.Image, side: int = _THUMBNAIL) -> str:
    """A small version of an image as a data URI."""
    small = image.copy()
    small.thumbnail((side, side))  # keeps the short side at least one pixel
    kind = "png" if max(small.size) <= 64 else "jpeg"
    content = BytesIO()
    small.save(content, kind)
    return _uri(f"image/{kind}", content.getvalue())


def in_both_colours(figure: DrawnFigure) -> Markup:
    """The figure in light and in dark colours; the browser shows the matching one."""
    light, dark = (_uri("image/svg+xml", _svg(figure.draw, ink)) for ink in (_INK["light"], _INK["dark"]))
    return Markup(
        '<picture><source srcset="{}" media="(prefers-color-scheme: dark)"><img src="{}" alt="{}"></picture>'
    ).format(dark, light, figure.title)


def _svg(draw: Callable[[], Figure], ink: str) -> bytes:
    settings: dict[Any, Any] = dict.fromkeys(_COLORED, ink)
    with matplotlib.rc_context({**settings, "svg.hashsalt": "report"}):  # the same names of parts every time
        content = BytesIO()
        draw().savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
