"""Draw predictions onto an image, at the image's own resolution, with Pillow alone."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from crossformerpp.analysis.fonts import Font, font_for

BAR, TEXT, BACKGROUND, TRACK, WRONG = "#2a7fb8", "#1a1a1a", "white", "#e6e6e6", "#c0392b"
LEAST_WIDTH = 320  # small images are enlarged to this, so that the text beneath can be read


def label_image(image: Image.Image, top: Sequence[tuple[str, float]]) -> Image.Image:
    """The image with a bar for each (name, probability) beneath it.

    Args:
        image: RGB, any size; enlarged in whole steps if narrower than 320 pixels.
        top: Best first.
    """
    factor = -(-LEAST_WIDTH // image.width)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    line = max(20, image.width // 24)
    font = font_for((name for name, _ in top), int(line * 0.62))
    margin = line // 2
    panel = Image.new("RGB", (image.width, image.height + line * len(top) + 2 * margin), BACKGROUND)
    panel.paste(image, (0, 0))
    draw = ImageDraw.Draw(panel)
    left, right = int(image.width * 0.45), image.width - margin - int(line * 2.4)
    for number, (name, share) in enumerate(top):
        y = image.height + margin + number * line
        middle = y + line / 2
        draw.text((margin, middle), _fit(name, font, left - 2 * margin), TEXT, font, anchor="lm")
        draw.rectangle((left, y + line // 5, right, y + line - line // 5), TRACK)
        draw.rectangle((left, y + line // 5, left + (right - left) * share, y + line - line // 5), BAR)
        draw.text((image.width - margin, middle), f"{share:.1%}", TEXT, font, anchor="rm")
    return panel


def image_grid(
    images: Sequence[Image.Image],
    titles: Sequence[str],
    truths: Sequence[str | None],
    columns: int = 8,
    side: int = 150,
) -> Image.Image:
    """Thumbnails of images with their predictions above them; mistakes in red, with the true class.

    Args:
        truths: None where the prediction is right, otherwise the true class.
        side: Pixels of a tile's side; an image keeps its shape inside.
    """
    font = font_for([*titles, *(truth for truth in truths if truth is not None)], 13)
    line, gap = 17, 8
    width, height = side + gap, side + 2 * line + gap
    rows = max(1, -(-len(images) // columns))
    grid = Image.new("RGB", (columns * width + gap, rows * height + gap), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for number, (image, title, truth) in enumerate(zip(images, titles, truths, strict=True)):
        x, y = gap + number % columns * width, gap + number // columns * height
        color = TEXT if truth is None else WRONG
        draw.text((x, y), _fit(title, font, side), color, font)
        if truth is not None:
            draw.text((x, y + line), _fit(f"truth: {truth}", font, side), color, font)
        small = ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC)
        grid.paste(small, (x + (side - small.width) // 2, y + 2 * line))
    return grid


def _fit(text: str, font: Font, width: float) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
