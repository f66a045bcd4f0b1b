"""A slice of `python -m benchmarks.bad_days`: kills at some moments, a full disk, a read-only one."""

from pathlib import Path

import pytest
from benchmarks import bad_days


@pytest.mark.slow
def test_nothing_is_lost_or_half_there_after_a_kill(tmp_path: Path) -> None:
    outcomes = bad_days.kill(tmp_path, moments=2, seed=1)
    assert sum(outcomes.values()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("function", [lambda room: bad_days.disk(room, free=(300,)), bad_days.readonly])
def test_a_full_or_read_only_disk_is_said_in_one_line(tmp_path: Path, function) -> None:
    try:
        outcomes = function(tmp_path)
    except PermissionError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    assert sum(outcomes.values()) >= 7
