"""What one process needs to run all test files: memory that a file took is given back after it."""

from collections.abc import Iterator

import pytest
from benchmarks.process_memory import give_back


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    """Compiled graphs, symbolic sizes and freed pages stay with a process unless it is asked for them."""
    yield
    give_back()
