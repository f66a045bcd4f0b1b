"""Time and memory of callables, measured so that they can be compared on a noisy machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

Protocol = Literal["turns", "paper"]  # see `time_calls`


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, first and third quartile, over `runs` calls.

    Of calls that were timed as one, all three are their mean.
    """

    median: float
    low: float
    high: float
    runs: int


def require_device(text: str) -> None:
    """
    Raises:
        ValueError: PyTorch has no such device here.
    """
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].strip()
        raise ValueError(
            f"--device {text}: PyTorch cannot use it here ({reason}); cpu always works"
        ) from None


def time_calls(
    calls: Mapping[str, Callable[[], Any]], protocol: Protocol, seconds: float = 10.0, device: str = "cpu"
) -> dict[str, Timing]:
    """Time callables by a protocol: "turns" is `time_in_turn`, "paper" is `time_back_to_back` of each."""
    if protocol == "turns":
        return time_in_turn(calls, seconds, device=device)
    return {name: time_back_to_back(call, device=device) for name, call in calls.items()}


def time_back_to_back(
    call: Callable[[], Any], warmup: int = 50, runs: int = 30, device: str = "cpu"
) -> Timing:
    """Time a callable as the paper's throughput was measured: warm up, wait once, run, wait once.

    On a GPU the host runs ahead, so that the time of launching kernels hides behind that of running them. A slow spell
    of the machine hits one callable alone.
    """
    for _ in range(warmup):
        call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(runs):
        call()
    _wait(device)
    mean = (time.perf_counter() - start) / runs
    return Timing(mean, mean, mean, runs)


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float = 10.0,
    min_runs: int = 5,
    max_runs: int = 200,
    warmup: int = 2,
    device: str = "cpu",
    prepare: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Time callables one after the other, round after round, so that a slow spell of the machine hits all of them.

    Args:
        seconds: Rounds start for about this long in all, but at least `min_runs` and at most `max_runs` are made.
        device: On "cuda" every call is waited for.
        prepare: What is called before a callable, by its name, and not timed.
    """
    prepare = prepare or {}
    for name, call in calls.items():
        prepare.get(name, _nothing)()
        for _ in range(warmup):
            call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    begin, runs = time.perf_counter(), 0
    while runs < min_runs or (runs < max_runs and time.perf_counter() - begin < seconds):
        for name, call in calls.items():
            prepare.get(name, _nothing)()
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            spent[name].append(time.perf_counter() - start)
        runs += 1
    return {name: _summary(times) for name, times in spent.items()}


def _nothing() -> None:
    pass


def peak_extra_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """The most bytes that the allocator held during one call, beyond those it held before."""
    if device.startswith("cuda"):
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler complains that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def matmul_peak(
    dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 2048
) -> dict[str, float]:
    """FLOP/s of a large square matrix product here, by library: "matmul" is PyTorch's own; on CPUs "oneDNN" too."""
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    calls: dict[str, Callable[[], Any]] = {"matmul": lambda: a @ b}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        calls["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    with torch.inference_mode():
        timings = time_in_turn(calls, seconds=4.0, device=device)
    return {name: 2 * size**3 / timing.median for name, timing in timings.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _summary(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Timing(median, low, high, len(times))
