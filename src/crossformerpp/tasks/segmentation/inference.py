"""Class probabilities of every pixel of an image of any size, in bounded memory.

The network sees an image in one or more views: scaled, and perhaps mirrored. A view is cut into windows, or is
one window itself. The network sees the windows row by row, where they overlap its logits are averaged, and
what is finished is enlarged to the image's own resolution, turned to probabilities, averaged over the views,
handed out as a band of pixel rows, and forgotten. So the logits of 150 classes for twelve million pixels
(7 GB) never exist together, and windows' memory does not grow with the image's height.

Legend: K classes; H W the image; a cell is a pixel of the logits, 4 × 4 pixels of a view.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor, nn

from crossformerpp.data.images import scaled_size
from crossformerpp.recipes.segmentation import InferenceSection
from crossformerpp.tasks.resizing import resize_bytes

CELL = 4  # stride of the logits
_LEAST_SIDE = 32  # pixels, of what a backbone takes
_BAND_ELEMENTS = 1 << 24  # of the K × rows × W probabilities that are handed out at a time: 64 MB


@dataclass(frozen=True)
class Look:
    """How a network sees images: a recipe's `inference` section and its normalisation.

    Attributes:
        network: Normalised images (1, C, h, w) -> logits (1, K, h/4, w/4), for h and w multiples of 4.
    """

    network: nn.Module
    num_classes: int
    section: InferenceSection
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def bands(
        self, image: Tensor, advance: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Tensor]]:
        """Bands of an image from top to bottom: (first row, probabilities K × rows × W).

        Args:
            image: 3 × H × W bytes, or C × H × W floats from 0 to 1, where the network is.
            advance: Called after each window.

        Raises:
            ValueError: The network's output is NaN.
        """
        height, width = image.shape[-2:]
        views = [
            _View(self, image, scale, mirrored, advance)
            for scale in self.section.scales
            for mirrored in ([False, True] if self.section.flip else [False])
        ]
        rows = max(1, _BAND_ELEMENTS // (self.num_classes * width))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            band = _mean([view.probabilities(top, bottom, height, width) for view in views])
            if not band[0].isfinite().all():  # softmax makes all classes NaN, or none
                raise ValueError("the network's output is not a number (NaN)")
            yield top, band

    def labels(self, image: Tensor) -> Tensor:
        """The most likely class of each pixel, H × W of int16."""
        return torch.cat([band.argmax(dim=0).to(torch.int16) for _, band in self.bands(image)])

    def num_windows(self, height: int, width: int) -> int:
        """How often the network is called for an image."""
        count = 0
        for scale in self.section.scales:
            cells = [_num_cells(length) for length in self._size_seen(height, width, scale)]
            tops, lefts = (self._starts(number) for number in cells)
            count += len(tops) * len(lefts) * (2 if self.section.flip else 1)
        return count

    def _size_seen(self, height: int, width: int, scale: float) -> list[int]:
        """Height and width to which an image is resized."""
        multiple = self.section.multiple_of
        size = scaled_size((height, width), self.section.short_side, scale)
        return [-(-length // multiple) * multiple for length in size]

    def _starts(self, num_cells: int) -> list[int]:
        """First cells of the windows along a side; the last window ends where the side does."""
        if self.section.mode == "whole":
            return [0]
        last = max(0, num_cells - self.section.window // CELL)
        return [*range(0, last, self.section.stride // CELL), last]

    def _window(self, num_cells: int) -> int:
        return num_cells if self.section.mode == "whole" else min(num_cells, self.section.window // CELL)


class _View:
    """One view's logits, computed on demand, from top to bottom."""

    def __init__(
        self, look: Look, image: Tensor, scale: float, mirrored: bool, advance: Callable[[], None]
    ) -> None:
        self.look, self.mirrored, self.advance = look, mirrored, advance
        self.size = look._size_seen(image.shape[-2], image.shape[-1], scale)
        self.height, self.width = (_num_cells(length) for length in self.size)  # in cells
        self.in_two_steps = look.section.rules == "mmsegmentation"
        self.white = 1.0 if image.is_floating_point() else 255.0
        steps = [self.size]
        if self.in_two_steps:  # the image keeps its shape, then it is stretched to the multiples
            steps.insert(0, scaled_size(image.shape[-2:], look.section.short_side, scale))
        for size in steps:
            if self.in_two_steps:
                image = resize_bytes(image, size)
            elif size != list(image.shape[-2:]):  # unrounded, so that every device and file sees the same
                image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
        image = _pad(image, self.height * CELL, self.width * CELL)
        self.image = image.flip(-1) if mirrored else image
        self.tops, self.lefts = look._starts(self.height), look._starts(self.width)
        self.side = look._window(self.height), look._window(self.width)
        self.next = 0  # row of windows
        self.first = 0  # row of cells with which `sums` begins
        self.sums = self.counts = torch.empty(0)  # over the windows, per cell

    def probabilities(self, top: int, bottom: int, height: int, width: int) -> Tensor:
        """K × rows × W for the rows `top` to `bottom` of the image of `height` × `width`."""
        # centres of the image's pixels, in pixels of the view
        y = self._centres(range(top, bottom), self.size[0] / height)
        x = self._centres(range(width), self.size[1] / width)
        if self.in_two_steps:
            y, x = y.clamp(0, self.size[0] - 1), x.clamp(0, self.size[1] - 1)
        if self.mirrored:
            x = self.width * CELL - 1 - x
        if not self.in_two_steps:
            y, x = ((at + 0.5) / CELL - 0.5 for at in (y, x))
            return self._logits_at(y, x).softmax(dim=0)
        rows, columns = range(int(y[0]), min(int(y[-1]) + 2, self.size[0])), range(self.width * CELL)
        seen = self._logits_at(self._centres(rows, 1 / CELL), self._centres(columns, 1 / CELL))
        return _interpolate(_interpolate(seen, x, dim=2), y - rows.start, dim=1).softmax(dim=0)

    def _centres(self, pixels: range, scale: float) -> Tensor:
        """Centres of pixels on a grid whose own are 1 / `scale` times as large and have the first centre at 0."""
        at = torch.arange(pixels.start, pixels.stop, device=self.image.device)
        return (at + 0.5) * scale - 0.5

    def _logits_at(self, y: Tensor, x: Tensor) -> Tensor:
        """Logits at rows `y` and columns `x` of cells, K × rows × columns."""
        y, x = y.clamp(0, self.height - 1), x.clamp(0, self.width - 1)
        start, stop = int(y[0]), min(int(y[-1]) + 2, self.height)
        logits = _interpolate(self._rows(start, stop), x, dim=2)
        return _interpolate(logits, y - start, dim=1)

    def _rows(self, start: int, stop: int) -> Tensor:
        """Mean logits of rows of cells, K × rows × width; rows before `start` are not requested again."""
        while self._finished() < stop:
            self._compute_windows(start)
        part = slice(start - self.first, stop - self.first)
        return self.sums[:, part] / self.counts[part]

    def _finished(self) -> int:
        """Rows of cells that no window to come will change."""
        return self.tops[self.next] if self.next < len(self.tops) else self.height

    def _compute_windows(self, start: int) -> None:
        """Add the next row of windows; forget the rows before `start`."""
        top = self.tops[self.next]
        for left in self.lefts:
            logits = self._logits(top, left)
            if left == self.lefts[0]:
                self._make_room(logits, min(start, top), top)
            columns = slice(left, left + self.side[1])
            rows = slice(top - self.first, top - self.first + self.side[0])
            self.sums[:, rows, columns] += logits
            self.counts[rows, columns] += 1
            self.advance()
        self.next += 1

    def _make_room(self, like: Tensor, first: int, top: int) -> None:
        """Let `sums` begin at row `first` and reach to the end of the windows at `top`."""
        rows = top + self.side[0] - first
        sums = like.new_zeros(like.shape[0], rows, self.width)
        counts = like.new_zeros(rows, self.width)
        kept = self.sums.shape[1] - (first - self.first) if self.next else 0
        if kept > 0:
            sums[:, :kept], counts[:kept] = self.sums[:, -kept:], self.counts[-kept:]
        self.sums, self.counts, self.first = sums, counts, first

    def _logits(self, top: int, left: int) -> Tensor:
        """Of the window whose first cell is (top, left), K × rows × columns."""
        rows, columns = (
            slice(first * CELL, (first + side) * CELL)
            for first, side in zip((top, left), self.side, strict=True)
        )
        pixels = self.image[:, rows, columns].float() / self.white
        pixels = TF.normalize(pixels, list(self.look.mean), list(self.look.std))
        return self.look.network(pixels[None])[0].float()


def _num_cells(length: int) -> int:
    return max(-(-length // CELL), _LEAST_SIDE // CELL)


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column until the image has `height` × `width` pixels."""
    for dim, length in ((1, height), (2, width)):
        if image.shape[dim] < length:
            at = torch.arange(length, device=image.device).clamp(max=image.shape[dim] - 1)
            image = image.index_select(dim, at)
    return image


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)


def _interpolate(values: Tensor, at: Tensor, dim: int) -> Tensor:
    """Linear interpolation along a dimension at fractional positions within 0 … size − 1."""
    low = at.floor().long()
    high = (low + 1).clamp(max=values.shape[dim] - 1)
    shape = [1] * values.dim()
    shape[dim] = -1
    weight = (at - low).view(shape)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), weight)
