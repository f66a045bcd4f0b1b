"""What one process needs to run all test files: memory that a file took is given back after it."""

import ctypes
import ctypes.util
import gc
import os
import sys
from collections.abc import Iterator

import pytest

os.environ["CROSSFORMERPP_KERNELS"] = (
    "fixed"  # results must not hang on what is fast today; commands inherit it
)


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    """Compiled graphs, exported programs and freed pages stay with a process unless it is asked for them."""
    yield
    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()
    gc.collect()
    name = ctypes.util.find_library("c")
    if name is not None and sys.platform == "linux":
        ctypes.CDLL(name).malloc_trim(0)
