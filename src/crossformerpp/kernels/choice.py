"""Which of several kernels with one result is the fastest on the machine at hand: measured once per class of shapes.

Choices are kept in memory and in a file, so that later runs on the machine compute exactly what earlier ones did. Where
the file cannot be written, choices are the fixed ones. The environment variable CROSSFORMERPP_KERNELS decides:
"measured" is the default; "fixed" takes the same kernels on every machine; "default" what PyTorch takes by itself.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

MODES = ("measured", "fixed", "default")
MAX_ROWS = 4096  # of what is timed; the class of all larger shapes
_MARGIN = 1.1  # the default is left only for what is faster by more than noise
_ROUNDS, _SECONDS = 5, 0.02  # for which candidates are timed: both at least

Shapes = tuple[object, ...]
Candidates = Callable[[], Mapping[str, Callable[[], Any]]]

_lock = threading.RLock()  # a candidate may be made of others that are chosen
_known: dict[tuple[int, Shapes], str] = {}  # (threads, class) -> choice


@cache
def mode() -> str:
    """What CROSSFORMERPP_KERNELS says.

    Raises:
        ValueError: It says something else.
    """
    value = os.environ.get("CROSSFORMERPP_KERNELS") or "measured"
    if value not in MODES:
        raise ValueError(f"CROSSFORMERPP_KERNELS={value!r}: choose {', '.join(MODES)}")
    return value


def choose(shapes: Shapes, fixed: str, candidates: Candidates) -> str:
    """The name of the candidate to take for a class of shapes.

    Args:
        shapes: What the choice depends on: operation, sizes, layout, precision.
        fixed: The candidate that is taken without measuring.
        candidates: Gives calls on samples of the class, by name; "default", PyTorch's own, among them.
    """
    if mode() != "measured":
        return fixed if mode() == "fixed" else "default"
    key = torch.get_num_threads(), shapes
    if key not in _known:
        with _lock:
            if key not in _known:
                _known[key] = _look_up(key, fixed, candidates)
    return _known[key]


@cache
def rows_class(rows: int) -> int:
    """Numbers of rows that share a choice: powers of two, up to `MAX_ROWS`."""
    return min(MAX_ROWS, 1 << max(rows - 1, 0).bit_length())


def forget_choices() -> None:
    """Drop what is in memory; the file stays."""
    _known.clear()
    mode.cache_clear()


def choices_file() -> Path:
    """Where choices are kept, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossformerpp" / "kernels.json"


def _look_up(key: tuple[int, Shapes], fixed: str, candidates: Candidates) -> str:
    machine, name = f"{_machine()}, {key[0]} threads", " ".join(map(str, key[1]))
    calls = candidates()
    kept = _read().get(machine, {})
    if kept.get(name) in calls:
        return str(kept[name])
    choice = _fastest(calls)
    try:
        return _keep(machine, name, choice, set(calls))
    except OSError:
        return fixed


def _fastest(calls: Mapping[str, Callable[[], Any]]) -> str:
    """The quickest by the best of some rounds in turn; the default where others gain next to nothing."""
    best = dict.fromkeys(calls, float("inf"))
    rounds, begin = 0, time.perf_counter()
    while rounds <= _ROUNDS or time.perf_counter() - begin < _SECONDS:
        rounds += 1  # the first warms up, and counts only if nothing is quicker
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    quickest = min(best, key=best.__getitem__)
    return quickest if best[quickest] * _MARGIN < best["default"] else "default"


@cache
def _machine() -> str:
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return f"{processor} ({torch.backends.cpu.get_cpu_capability()}), PyTorch {torch.__version__}"


def _read() -> dict[str, dict[str, str]]:
    try:
        found = json.loads(choices_file().read_text())
    except (OSError, ValueError):  # none yet, or damaged: measured again
        return {}
    is_sound = isinstance(found, dict) and all(isinstance(value, dict) for value in found.values())
    return found if is_sound else {}


def _keep(machine: str, name: str, choice: str, known: set[str]) -> str:
    """Add a choice to the file, or take the one that another process has added meanwhile."""
    file = choices_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    found = _read()
    choices = found.setdefault(machine, {})
    choice = choices[name] = choices[name] if choices.get(name) in known else choice
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".kernels-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(found, stream, indent=1, sort_keys=True)
        os.replace(temporary, file)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return choice
