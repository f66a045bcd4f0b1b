"""A slice of `python -m benchmarks.bad_days`: kills at some moments, a full disk, a read-only one."""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from benchmarks import bad_days


def in_a_fresh_process(function: Callable[[Path], Counter[str]], room: Path) -> Counter[str]:
    """It forks, which PyTorch's autograd does not survive where it has worked before, as in other tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, room).result()


@pytest.mark.slow
def test_nothing_is_lost_or_half_there_after_a_kill(tmp_path: Path) -> None:
    outcomes = in_a_fresh_process(partial(bad_days.kill, moments=2, seed=1), tmp_path)
    assert sum(outcomes.values()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("function", [partial(bad_days.disk, free=(300,)), bad_days.readonly])
def test_a_full_or_read_only_disk_is_said_in_one_line(
    tmp_path: Path, function: Callable[[Path], Counter[str]]
) -> None:
    try:
        outcomes = in_a_fresh_process(function, tmp_path)
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert sum(outcomes.values()) >= 7
