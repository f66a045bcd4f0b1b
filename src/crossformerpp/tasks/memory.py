"""How running out of memory shows."""

import torch

_SIGNS = (
    "can't allocate memory",  # of the CPU's allocator,
    "could not create a primitive",  # of oneDNN,
    "CUDA error: out of memory",  # and of CUDA and its libraries, which allocate by themselves
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
