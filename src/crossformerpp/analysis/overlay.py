"""Draw a label mask over its image, with a legend, with Pillow alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from crossformerpp.analysis.fonts import font_for

LEAST_WIDTH = 320  # smaller images are enlarged in whole steps, so that the legend can be read
MAX_ENTRIES = 30  # of a legend
HEADING = 18  # pixels of a heading's line
_OPACITY = 0.55
_TEXT, _EDGE = "#1a1a1a", "#808080"
Color = tuple[int, int, int]


def blend(image: Image.Image, labels: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """The image with each pixel tinted in the colour of its class.

    Args:
        image: RGB, H × W.
        labels: H × W; negative ones stay untinted.
        colors: By label.
    """
    table = np.asarray(colors, np.uint8)
    tint = Image.fromarray(table[labels.clip(min=0)])
    opacity = Image.fromarray(np.where(labels < 0, 0, round(255 * _OPACITY)).astype(np.uint8))
    return Image.composite(tint, image, opacity)


def add_legend(image: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """The image with names and their colours beneath it; all that fit in six lines of columns or so.

    Args:
        entries: The most important first; beyond 30 the rest is only counted.
    """
    factor = -(-LEAST_WIDTH // image.width)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    line = max(18, image.width // 40)
    font = font_for((name for name, _ in entries), int(line * 0.7))
    texts = [name for name, _ in entries[:MAX_ENTRIES]]
    if len(entries) > MAX_ENTRIES:
        texts.append(f"and {len(entries) - MAX_ENTRIES} more")
    column = int(max((font.getlength(text) for text in texts), default=0)) + 2 * line
    per_row = max(1, image.width // column)
    rows = -(-len(texts) // per_row)
    panel = Image.new("RGB", (image.width, image.height + rows * line + (line if rows else 0)), "white")
    panel.paste(image, (0, 0))
    draw = ImageDraw.Draw(panel)
    for number, text in enumerate(texts):
        row, place = divmod(number, per_row)
        x, y = line // 2 + place * column, image.height + line // 2 + row * line
        if number < min(len(entries), MAX_ENTRIES):
            box = (x, y + line // 6, x + line * 2 // 3, y + line * 5 // 6)
            draw.rectangle(box, fill=entries[number][1], outline=_EDGE)
        draw.text((x + line, y + line // 2), text, _TEXT, font, anchor="lm")
    return panel


def add_heading(image: Image.Image, text: str) -> Image.Image:
    """The image with a small line of text above it."""
    panel = Image.new("RGB", (image.width, image.height + HEADING), "white")
    panel.paste(image, (0, HEADING))
    font = font_for([text], 13)
    ImageDraw.Draw(panel).text((2, HEADING // 2), text, _TEXT, font, anchor="lm")
    return panel


def side_by_side(pictures: Sequence[Image.Image], headings: Sequence[str], height: int = 256) -> Image.Image:
    """Pictures in a row, each scaled to `height` pixels and with a heading."""
    scaled = [
        add_heading(picture.resize((max(1, round(picture.width * height / picture.height)), height)), text)
        for picture, text in zip(pictures, headings, strict=True)
    ]
    size = (sum(p.width for p in scaled) + 4 * (len(scaled) - 1), height + HEADING)
    row = Image.new("RGB", size, "white")
    x = 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + 4
    return row


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one above the other."""
    column = Image.new("RGB", (max(p.width for p in pictures), sum(p.height + 4 for p in pictures)), "white")
    y = 0
    for picture in pictures:
        column.paste(picture, (0, y))
        y += picture.height + 4
    return column
