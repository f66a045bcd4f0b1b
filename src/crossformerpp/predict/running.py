"""Predict many images: load, prepare, run the network, draw, write, all at the same time."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossformerpp.analysis.predictions import Prediction, Predictor
from crossformerpp.data.names import printable
from crossformerpp.predict.inputs import Images
from crossformerpp.predict.loading import Loaded, Loader, load_all
from crossformerpp.predict.pictures import Pictures
from crossformerpp.predict.processes import Processes
from crossformerpp.predict.results import Results

_DRAWN_AHEAD = 3  # batches that may wait for their pictures


@dataclass(frozen=True)
class Predicted:
    """One image's result: a prediction and its pictures, or the reason why there is none."""

    image: str
    prediction: Prediction | None = None
    pictures: tuple[Path, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        if self.prediction is None:
            return {"image": self.image, "error": self.error}
        pictures = [str(path) for path in self.pictures]
        return {"image": self.image, **self.prediction.to_json(), "pictures": pictures}


class PredictionRun:
    """A prediction of many images, to be used in a `with` block; iterate over it for the results as they come.

    Args:
        out: Where pictures and results go (see `predict.results`); None: nowhere.
        overwrite: Replace results that are there.
        resume: Go on where a killed run stopped; the results that are there are not repeated.
        pictures: Whether to draw.
        batch_size: Images that the network sees at once; default: what suits the predictor.
        workers: Processes (threads, of exported models) that read and prepare images; 0: this one does.

    Attributes:
        total, done: How many images this process has to do, and has done.
        is_first: Whether this process reports: all but one of several do not.

    Raises:
        ValueError: The folder holds something else, belongs to other settings, or is in use.
    """

    def __init__(
        self,
        predictor: Predictor[Any],
        images: Images | Sequence[Path],
        out: Path | None = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        pictures: bool = True,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> None:
        self.predictor = predictor
        self.images = images if isinstance(images, Images) else Images.of_files(images)
        self.batch_size = batch_size or predictor.batch_size
        self.workers = workers
        self.results: Results | None = None
        self.pictures: Pictures | None = None
        self._closing = ExitStack()
        self.total, self.done, self.is_first = len(self.images), 0, True
        if out is None:
            return
        if pictures and (place := self.images.first_in(out)) is not None:
            raise ValueError(
                f"{out}: holds images to predict, such as {place}, which pictures could replace; choose another --out"
            )
        settings = {**_settings(predictor), "--pictures": pictures}
        processes = Processes.started()
        results = Results(out, self.images, predictor.columns, settings, self.batch_size, processes)
        self.results = self._closing.enter_context(results)
        with ExitStack() as on_error:
            on_error.push(self._closing)
            results.begin(overwrite, resume)
            on_error.pop_all()
        self.total, self.done, self.is_first = results.num_own(), results.done, processes.rank == 0
        if pictures:
            self.pictures = Pictures(out, self.images, predictor.suffixes)
            self._closing.callback(self.pictures.close)

    def __enter__(self) -> PredictionRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def __iter__(self) -> Iterator[Predicted]:
        """
        Raises:
            ValueError: A tar file is gone, or a worker process was killed; what was done before is written.
            OSError: The disk is full; as above.
        """
        keep = self.pictures is not None
        loader = Loader(self.images, self.predictor.prepare, keep, self.predictor.pixels)
        device = getattr(self.predictor, "device", None)
        is_gpu = device is not None and device.type == "cuda"
        waiting: deque[list[_Pending]] = deque()
        lost = None
        for loaded in load_all(loader, self._left(), self.workers, self.predictor.workers, is_gpu):
            waiting.append(self._predicted(loaded))
            while waiting and (len(waiting) > _DRAWN_AHEAD or all(one.is_drawn for one in waiting[0])):
                yield from self._written(waiting.popleft())
            lost = loaded.lost
            if lost is not None:
                break
        for batch in waiting:
            yield from self._written(batch)
        if lost is not None:
            raise ValueError(f"{lost}; the results so far are kept, --resume goes on")
        if self.results is not None:
            self.results.finish()

    def _left(self) -> Iterator[range]:
        if self.results is not None:
            return self.results.left()
        starts = range(0, self.total, self.batch_size)
        return (range(start, min(start + self.batch_size, self.total)) for start in starts)

    def _predicted(self, loaded: Loaded) -> list[_Pending]:
        """The results of a batch, whose pictures are being drawn, in the images' order."""
        found = self._answers(loaded)
        pending = {number: _Pending(number, error=error) for number, error in loaded.errors.items()}
        for position, (number, answer) in enumerate(zip(loaded.numbers, found, strict=True)):
            if isinstance(answer, str):
                pending[number] = _Pending(number, error=answer)
                continue
            drawn = None
            if self.pictures is not None:
                drawn = self.pictures.draw(number, loaded.image(position), answer)
            pending[number] = _Pending(number, answer, drawn)
        return [pending[number] for number in sorted(pending)]

    def _answers(self, loaded: Loaded) -> list[Prediction | str]:
        """A prediction for each image, or why there is none. One image's error is none of the others'."""
        try:
            return list(self.predictor.predict(loaded.prepared)) if loaded.numbers else []
        except ValueError as error:
            if len(loaded.numbers) == 1:
                return [f"{printable(self.images.names[loaded.numbers[0]])}: {error}"]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise ValueError(
                f"out of memory with {len(loaded.numbers)} image(s) at once; pass a smaller --batch-size, or --tiles "
                "for large images of detectors and segmenters"
            ) from error
        answers: list[Prediction | str] = []
        for number, prepared in zip(loaded.numbers, loaded.prepared, strict=True):
            answers += self._answers(Loaded([number], [prepared], [], {}))
        return answers

    def _written(self, batch: list[_Pending]) -> list[Predicted]:
        """The results of a batch, when its pictures are drawn and its lines written."""
        found = [
            Predicted(
                self.images.names[one.number],
                one.prediction,
                () if one.drawn is None else one.drawn.result(),
                one.error,
            )
            for one in batch
        ]
        if self.results is not None:
            self.results.add([one.to_json() for one in found])
        self.done += len(found)
        return found


@dataclass(frozen=True)
class _Pending:
    """A result whose pictures may not be written yet."""

    number: int
    prediction: Prediction | None = None
    drawn: Future[tuple[Path, ...]] | None = None
    error: str | None = None

    @property
    def is_drawn(self) -> bool:
        return self.drawn is None or self.drawn.done()


def _is_out_of_memory(error: RuntimeError) -> bool:
    if "torch" not in sys.modules:  # an exported model is at work
        return False
    from crossformerpp.tasks.memory import is_out_of_memory

    return is_out_of_memory(error)


def predict(
    predictor: Predictor[Any], images: Images | Sequence[Path], out: Path | None = None, **options: Any
) -> Iterator[Predicted]:
    """The results of a `PredictionRun`, which takes the same arguments, in the images' order as they come.

    An image that cannot be read becomes a result with an `error`.

    Raises:
        ValueError: As `PredictionRun`.
    """
    with PredictionRun(predictor, images, out, **options) as run:
        yield from run


def _settings(predictor: Predictor[Any]) -> dict[str, Any]:
    """What results depend on: the model file's content, how it was opened, and thresholds that lie beside it."""
    found: dict[str, Any] = dict(predictor.options)
    for name in ("thresholds", "promise", "threshold"):
        if (value := getattr(predictor, name, None)) is not None:
            found[name] = str(value)
    if predictor.source is not None:
        with predictor.source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = {"checkpoint": f"{predictor.source.name} ({digest[:16]})", **found}
    return found
