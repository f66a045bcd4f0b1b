"""The files of a prediction: written as results come, repaired and continued after a kill.

predict.json        the settings, with which --resume compares its own
predictions.jsonl   a line per image, in the input's order
predictions.csv     the same as a table: a row per class or object, one for an image without any
predictions.json    all of predictions.jsonl, where there are at most `FEW` images

The images are cut into batches, which go round the processes. Each process appends to one file, in order, so that its
number of whole lines says what is done; of several processes the first one merges these files at the end.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

from crossformerpp.analysis.predictions import set_column
from crossformerpp.data.lock import RunLock
from crossformerpp.data.names import printable, read_json
from crossformerpp.data.writing import refuse_taken, remove_unfinished, replacing, to_json, write_json
from crossformerpp.predict.inputs import Images
from crossformerpp.predict.processes import Processes

FEW = 1000  # images up to which predictions.json is written and the command prints a table
_PART = "predictions.{rank}-of-{world}.jsonl"


class Results:
    """The results of one process in a folder, to be used in a `with` block, which holds the folder.

    Args:
        columns: Of the table, beside the image and the error.
        settings: Plain data that must be equal for predictions to be continued, each under what to call it in errors.
        batch_size: Images that are predicted together and belong to one process.
    """

    def __init__(
        self,
        folder: Path,
        images: Images,
        columns: Sequence[str],
        settings: dict[str, Any],
        batch_size: int,
        processes: Processes,
    ) -> None:
        self.folder, self.images, self.columns = folder, images, columns
        self.batch_size, self.processes = batch_size, processes
        self.settings = {
            **settings,
            "columns": list(columns),
            "processes": processes.world,
            **({"--batch-size": batch_size} if processes.world > 1 else {}),
            "images": len(images),
            "names of the images": images.names.digest(),
        }
        self.about = folder / "predict.json"
        self.all = folder / "predictions.jsonl"
        self.table = folder / "predictions.csv"
        self.summary = folder / "predictions.json"
        rank, world = processes.rank, processes.world
        self.own = self.all if world == 1 else self._part(rank)
        self.done = 0
        self._files = ExitStack()
        self._lines: IO[bytes] | None = None
        self._rows: IO[bytes] | None = None

    def begin(self, overwrite: bool, resume: bool) -> Self:
        """Take the folder, alone or together, and find what is done.

        Raises:
            ValueError: It holds something else, somebody else works in it, or other settings began it.
        """
        refusal: Exception | None = None
        if self.processes.rank == 0:
            try:
                self._claim(overwrite, resume)
            except (ValueError, OSError) as error:
                refusal = error
        told = self.processes.tell(None if refusal is None else str(refusal))
        if told is not None:
            raise refusal or ValueError(told)
        if read_json(self.about).get("settings") != self.settings:
            raise ValueError(
                f"{self.folder}: process {self.processes.rank} has other images or settings than the first; all need "
                "the same command, and a folder that all can see"
            )
        if self._is_merged():
            self.done = self.num_own()
        else:
            self.done = repair(self.own, self._names())
            self._lines = self._files.enter_context(self.own.open("ab", buffering=0))
        if self.processes.world == 1:
            self._write_table(self.table, self.own)
            self._rows = self._files.enter_context(self.table.open("ab", buffering=0))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def left(self) -> Iterator[range]:
        """The batches that this process has not done, the first perhaps in part."""
        done = self.done
        for batch in self._batches(self.processes.rank):
            if done < len(batch):
                yield batch[done:]
            done = max(0, done - len(batch))

    def num_own(self) -> int:
        """How many images this process has to do, done ones included."""
        return sum(map(len, self._batches(self.processes.rank)))

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Append results, in the order of `left`.

        Raises:
            OSError: The disk is full; what was written before is whole.
        """
        assert self._lines is not None
        _append(self._lines, "".join(f"{_line(record)}\n" for record in records))
        if self._rows is not None:
            _append(self._rows, _rows(records, self.columns))

    def finish(self) -> None:
        """When all images are done: merge what several processes wrote, and write the summary of a few images."""
        if self._lines is not None:
            os.fsync(self._lines.fileno())
        self.processes.wait()
        if self.processes.rank == 0:
            if self.processes.world > 1:
                self._merge()
            if len(self.images) <= FEW:
                write_json(self.summary, list(read_records(self.all)))
        self.processes.wait()

    def _claim(self, overwrite: bool, resume: bool) -> None:
        if resume and not self.about.is_file():
            if self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder}: no predictions to resume, for it has no predict.json")
            resume = False  # not begun, or killed at once
        elif not resume:
            refuse_taken(self.folder, overwrite)
        self._files.enter_context(RunLock(self.folder, "predict"))
        if resume:
            self._compare()
            remove_unfinished(self.folder)
            return
        for path in (
            self.about,
            self.all,
            self.table,
            self.summary,
            *self.folder.glob(_PART.format(rank="*", world="*")),
        ):
            path.unlink(missing_ok=True)
        write_json(self.about, {"settings": self.settings})

    def _compare(self) -> None:
        content = read_json(self.about)
        before = content.get("settings") if isinstance(content, dict) else None
        if not isinstance(before, dict):
            raise ValueError(f"{self.about}: damaged; choose another --out, or pass --overwrite")
        for name in dict.fromkeys([*self.settings, *before]):
            was, now = before.get(name), self.settings.get(name)
            if was != now:
                what = f"{name} {_short(was)} began these predictions, now it is {_short(now)}"
                raise ValueError(f"{self.folder}: {what}; pass the same again, or choose another --out")

    def _batches(self, rank: int) -> Iterator[range]:
        step = self.batch_size * self.processes.world
        for start in range(rank * self.batch_size, len(self.images), step):
            yield range(start, min(start + self.batch_size, len(self.images)))

    def _names(self) -> Iterator[str]:
        return (self.images.names[n] for batch in self._batches(self.processes.rank) for n in batch)

    def _part(self, rank: int) -> Path:
        return self.folder / _PART.format(rank=rank + 1, world=self.processes.world)

    def _is_merged(self) -> bool:
        """Whether the merged file, which appears at once, is there: then all is done."""
        return self.processes.world > 1 and self.all.exists()

    def _merge(self) -> None:
        parts = [self._part(rank) for rank in range(self.processes.world)]
        if not self._is_merged():
            with ExitStack() as stack:
                sources = [stack.enter_context(part.open("rb")) for part in parts]
                merged = stack.enter_context(replacing(self.all))
                for start in range(0, len(self.images), self.batch_size):
                    source = sources[start // self.batch_size % len(sources)]
                    for _ in range(min(self.batch_size, len(self.images) - start)):
                        merged.write(source.readline())
        self._write_table(self.table, self.all)
        for part in parts:
            part.unlink(missing_ok=True)

    def _write_table(self, path: Path, source: Path) -> None:
        """The table of the lines there are."""
        with replacing(path) as file:
            header = io.StringIO()
            csv.writer(header, lineterminator="\n").writerow(["image", *self.columns, "error"])
            file.write(header.getvalue().encode())
            for record in read_records(source):
                file.write(_encoded(_rows([record], self.columns)))


def repair(path: Path, names: Iterator[str]) -> int:
    """Cut a file of results after its last whole line; the number of lines.

    Args:
        names: Of the images that the lines should be of.

    Raises:
        ValueError: A line is of another image.
    """
    if not path.exists():
        return 0
    count, whole = 0, 0
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line)
            if record is None:
                break
            if record.get("image") != next(names, None):
                raise ValueError(f"{path}: line {count + 1} is of another image; choose another --out")
            count, whole = count + 1, whole + len(line)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return count


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The results in a file of them."""
    if path.exists():
        with path.open("rb") as file:
            yield from map(json.loads, file)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A result; None of a line that is not whole."""
    if line.endswith(b"\n"):
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            return record if isinstance(record, dict) else None
    return None


def _line(record: dict[str, Any]) -> str:
    return to_json(record, indent=None)


def _rows(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows of the table: of each class or object, or one for an image that has none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for record in records:
        name = printable(record["image"])
        for entry in _entries(record):
            values = [entry.get(column, "") for column in columns]
            table.writerow([name, *values, record.get("error", "")])
    return text.getvalue()


def _entries(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a result says of each class or object, under the columns' names; one empty entry where that is nothing."""
    kinds = ("top", "labels", "objects", "classes")
    entries: list[dict[str, Any]] = next((record[kind] for kind in kinds if record.get(kind)), [{}])
    for entry in entries:
        found = dict(zip(("x", "y", "width", "height"), entry.get("bbox", ()), strict=False)) | entry
        if entry.get("answer"):  # of the promised set; class names may come twice
            found[set_column(record["coverage"])] = "yes"
        yield found


def _append(file: IO[bytes], text: str) -> None:
    """Write all of it, or leave the file as it was."""
    content = memoryview(_encoded(text))
    start = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
    except OSError as error:
        with suppress(OSError):
            file.truncate(start)
        raise OSError(error.errno, error.strerror, file.name) from None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
