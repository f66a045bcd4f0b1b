"""Images read and prepared beside the network, by worker processes or threads, in order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat
from crossformerpp.predict.inputs import Images, SourceLostError

_AHEAD = 2  # batches that each worker may be ahead


@dataclass(frozen=True)
class Loaded:
    """A batch as a worker hands it over.

    Attributes:
        numbers: Of the images that could be read.
        prepared: What the network needs of each.
        pixels: H × W × 3 bytes of each, if asked for.
        errors: Why another image could not be read, by its number.
        lost: Why nothing more can be read.
    """

    numbers: list[int]
    prepared: Sequence[Any]
    pixels: list[Any]
    errors: dict[int, str]
    lost: str | None = None

    def image(self, position: int) -> Image.Image:
        """The image itself, for its picture."""
        return Image.fromarray(np.asarray(self.pixels[position]))


@dataclass(frozen=True)
class Loader:
    """Loads batches of images.

    Attributes:
        keep: Whether the images are needed beside what the network sees.
        pixels: How they are read.
    """

    images: Images
    prepare: Callable[[Any], Any]
    keep: bool
    pixels: PixelFormat = PHOTOGRAPHS

    def load(self, batch: range) -> Loaded:
        """One batch, here and now."""
        numbers: list[int] = []
        prepared: list[Any] = []
        pixels: list[Any] = []
        errors: dict[int, str] = {}
        for number in batch:
            try:
                image = self.images.open(number, self.pixels)
            except SourceLostError as error:
                return Loaded(numbers, prepared, pixels, errors, str(error))
            except ValueError as error:
                errors[number] = str(error)
                continue
            numbers.append(number)
            prepared.append(self.prepare(image))
            if self.keep:
                pixels.append(np.array(image if isinstance(image, Image.Image) else image.preview()))
        return Loaded(numbers, prepared, pixels, errors)


def load_all(
    loader: Loader, batches: Iterator[range], workers: int, kind: str, pin_memory: bool = False
) -> Iterator[Loaded]:
    """All batches, in order.

    Args:
        workers: How many load beside this process; 0: it loads them itself.
        kind: "processes" or "threads".

    Raises:
        ValueError: A worker process was killed.
    """
    if workers == 0:
        return map(loader.load, batches)
    if kind == "threads":
        return _by_threads(loader, batches, workers)
    from crossformerpp.predict.worker_processes import load_by_processes

    return load_by_processes(loader, batches, workers, _AHEAD, pin_memory)


def _by_threads(loader: Loader, batches: Iterator[range], workers: int) -> Iterator[Loaded]:
    with ThreadPoolExecutor(workers, "load") as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for batch in islice(batches, workers * _AHEAD):
                waiting.append(pool.submit(loader.load, batch))
            while waiting:
                loaded = waiting.popleft().result()
                for batch in islice(batches, 1):
                    waiting.append(pool.submit(loader.load, batch))
                yield loaded
        finally:
            for future in waiting:
                with suppress(Exception):
                    future.cancel()
