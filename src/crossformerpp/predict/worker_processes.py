"""Worker processes that share memory with this one: PyTorch's DataLoader, which also ends them with it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossformerpp.predict.loading import Loaded, Loader


class _Packed(NamedTuple):
    """A `Loaded` whose tensors are few: each takes an open file while it is handed over."""

    numbers: list[int]
    shapes: list[tuple[int, ...]]
    prepared: Tensor
    sizes: list[tuple[int, ...]]
    pixels: Tensor
    errors: dict[int, str]
    lost: str | None


class _Batches(Dataset):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, batch: range) -> _Packed:
        loaded = self.loader.load(batch)
        pixels = [torch.from_numpy(image) for image in loaded.pixels]
        return _Packed(
            loaded.numbers,
            [tuple(tensor.shape) for tensor in loaded.prepared],
            _joined(loaded.prepared),
            [tuple(tensor.shape) for tensor in pixels],
            _joined(pixels),
            loaded.errors,
            loaded.lost,
        )


def load_by_processes(
    loader: Loader, batches: Iterator[range], workers: int, ahead: int, pin_memory: bool
) -> Iterator[Loaded]:
    """The batches in order; see `loading.load_all`."""
    packed = DataLoader(
        _Batches(loader),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=pin_memory,
    )
    try:
        for one in packed:
            yield Loaded(
                one.numbers,
                _cut(one.prepared, one.shapes),
                _cut(one.pixels, one.sizes),
                one.errors,
                one.lost,
            )
    except RuntimeError as error:
        if re.search(r"DataLoader worker \(pid.*exited unexpectedly|is killed by signal", str(error)) is None:
            raise
        raise ValueError(
            "a worker process was killed, for lack of memory perhaps; pass a smaller --batch-size or fewer --workers"
        ) from None


def _joined(tensors: Sequence[Any]) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)


def _cut(joined: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = joined.split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
