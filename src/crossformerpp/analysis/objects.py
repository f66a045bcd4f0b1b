"""Draw boxes, masks, names and scores onto an image, at the image's own resolution, with Pillow alone."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from crossformerpp.analysis.fonts import Font, font_for
from crossformerpp.analysis.overlay import HEADING, add_heading
from crossformerpp.data.masks import Rle, decode

_GOLDEN = 0.618034  # hues of successive labels are this far apart, so neighbours differ clearly
_TINT = 0.45  # how much of a mask's colour covers the image
LEAST_SIDE = 320  # smaller images are enlarged to this, so that names can be read


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw.

    Attributes:
        box: (left, top, right, bottom) in pixels.
        name: Of its class.
        label: Number of its class, which chooses the colour.
        score: None: it is true.
        mask: Run lengths of its H × W mask; None: no mask.
    """

    box: tuple[float, float, float, float]
    name: str
    label: int
    score: float | None
    mask: Rle | None = None


def label_color(label: int) -> tuple[int, int, int]:
    """A strong colour (red, green, blue) for a class."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.85, 0.95 if label % 2 else 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_objects(image: Image.Image, objects: Sequence[DrawnObject]) -> Image.Image:
    """The image with masks as tints, boxes, and a name and score at each box; later objects lie on top.

    Args:
        image: RGB, any size; enlarged in whole steps if its longer side is below 320 pixels.
    """
    factor = max(1, -(-LEAST_SIDE // max(image.size)))
    canvas = np.array(image)
    for thing in objects:
        if thing.mask is not None:
            inside = decode(thing.mask).astype(bool)  # one at a time: all masks of a panorama would not fit
            tint = _TINT * np.array(label_color(thing.label))
            canvas[inside] = (canvas[inside] * (1 - _TINT) + tint).astype(np.uint8)
    picture = Image.fromarray(canvas)
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    line = max(1, round(min(picture.size) / 300))
    font = font_for((thing.name for thing in objects), min(60, max(11, min(picture.size) // 40)))
    draw = ImageDraw.Draw(picture)
    for thing in objects:
        left, top, right, bottom = (value * factor for value in thing.box)
        draw.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), None, label_color(thing.label), line
        )
    for thing in objects:  # after all boxes, so that no line crosses a name
        _write_name(draw, picture.size, thing, factor, font)
    return picture


def drawn_objects(
    found: Sequence[dict[str, Any]], class_names: Sequence[str], least: float = 0.5
) -> list[DrawnObject]:
    """The detections of an image to draw: those with a score of at least `least`, lowest first.

    True objects, which have no score, are all drawn.
    """
    return [
        DrawnObject(
            (x, y, x + width, y + height),
            class_names[thing["label"]],
            thing["label"],
            thing.get("score"),
            thing.get("segmentation"),
        )
        for thing in reversed(found)
        for x, y, width, height in (thing["bbox"],)
        if thing.get("score", 1.0) >= least
    ]


def contact_sheet(
    pictures: Sequence[Image.Image], headings: Sequence[str], columns: int = 4, side: int = 360
) -> Image.Image:
    """The pictures side by side, each with a heading and both shrunk to at most `side` pixels."""
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for number, (picture, heading) in enumerate(zip(pictures, headings, strict=True)):
        small = picture.copy()
        small.thumbnail((side - 4, side - 4 - HEADING))
        sheet.paste(
            add_heading(small, heading), ((number % columns) * side + 2, (number // columns) * side + 2)
        )
    return sheet


def _write_name(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    thing: DrawnObject,
    factor: int,
    font: Font,
) -> None:
    """Name and score, if it has one, on a plate above the box, or inside it where there is no room."""
    text = thing.name if thing.score is None else f"{thing.name}: {thing.score:.0%}"
    color = label_color(thing.label)
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(0.0, thing.box[0] * factor), max(0.0, size[0] - width))
    y = thing.box[1] * factor - height
    if y < 0:
        y = min(max(0.0, thing.box[1] * factor), max(0.0, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), color)
    is_light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140
    draw.text((x + 3 - left, y + 2 - top), text, "black" if is_light else "white", font)
