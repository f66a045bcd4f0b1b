"""What one process needs to run all test files: memory that a file took is given back after it."""

import os
from collections.abc import Iterator

# before PyTorch is there: processes that share the work share the cores, too; commands inherit it
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
from benchmarks.process_memory import give_back

# results must not hang on what is fast today; commands inherit it
os.environ["CROSSFORMERPP_KERNELS"] = "fixed"


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    """Compiled graphs, symbolic sizes and freed pages stay with a process unless it is asked for them."""
    yield
    give_back()
