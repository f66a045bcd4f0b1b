"""Images unlike photographs or unlike the rest: tiny, long, blank, dark, bright, of another kind."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossformerpp.data.doctor.findings import Finding
from crossformerpp.data.doctor.subjects import Sample

LEAST_SIDE = 32  # pixels; the network's smallest image
LONG = 4  # times the short side: beyond, images are shortened before the network sees them
BLANK, PLAIN = 2.0, 8.0  # standard deviation of the grey values, of 255
DARK, BRIGHT = 48, 208  # grey value that 99% of the pixels stay below, or above
RARE = 0.05  # share of the images that another kind of file may have and still be odd


@dataclass(frozen=True)
class Look:
    """What an image is like.

    Attributes:
        deviation: Standard deviation of its grey values, 0 … 127.5.
        low, high: Grey values below which 1% and 99% of the pixels are.
        kind: How the file stores it: format, mode, and whether it is animated.
    """

    width: int
    height: int
    deviation: float
    low: float
    high: float
    kind: str


def look_at(image: Image.Image, path: Path | None) -> Look:
    """Measure an opened image; a large one at a fraction of its size."""
    grey = image.convert("L")
    grey.thumbnail((512, 512), Image.Resampling.BOX)
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, (1, 99))
    kind = "" if path is None else _kind(path)
    return Look(*image.size, float(values.std()), float(low), float(high), kind)


def find_odd(samples: Sequence[Sample], looks: Sequence[Look | None]) -> Iterator[Finding]:
    """
    Args:
        looks: Of each sample; None for what cannot be read.
    """
    kinds = Counter(look.kind for look in looks if look is not None and look.kind)
    for number, (sample, look) in enumerate(zip(samples, looks, strict=True)):
        if look is None:
            continue
        details = list(_oddities(look))
        if look.kind and kinds[look.kind] <= RARE * kinds.total():
            usual = kinds.most_common(1)[0][0]
            details.append(f"another kind of file: {look.kind}, most are {usual}")
        for detail in details:
            yield Finding("odd image", sample.name, sample.split, detail=detail, samples=(number,))


def _oddities(look: Look) -> Iterator[str]:
    short, long = sorted((look.width, look.height))
    if short < LEAST_SIDE:
        yield f"tiny: {look.width}x{look.height} pixels"
    if long > LONG * short:
        yield f"one side is more than {LONG} times the other: {look.width}x{look.height} pixels"
    if look.deviation < BLANK:
        yield f"blank: grey values vary by {look.deviation:.1f} of 255"
        return
    if look.deviation < PLAIN:
        yield f"nearly uniform: grey values vary by {look.deviation:.1f} of 255"
    if look.high < DARK:
        yield f"dark: 99% of the pixels are below {look.high:.0f} of 255"
    if look.low > BRIGHT:
        yield f"bright: 99% of the pixels are above {look.low:.0f} of 255"


def _kind(path: Path) -> str:
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            transparent = " with transparency" if "transparency" in image.info else ""
            return f"{image.format} {image.mode}{transparent}" + (", animated" if frames > 1 else "")
    except Exception:  # was read a moment ago
        return ""
