"""Worker processes that share memory with this one: PyTorch's DataLoader, which also ends them with it."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, Dataset

from crossformerpp.predict.loading import Loaded, Loader


@dataclass(frozen=True)
class _Shape:
    """What stands for a tensor that is packed."""

    sides: tuple[int, ...]


class _Packed(NamedTuple):
    """A `Loaded` whose tensors are few: each takes an open file while it is handed over.

    What `prepare` gives may be a tensor, or a tree of tensors and other things, as of tiles or of two settings.
    """

    numbers: list[int]
    tree: TreeSpec
    leaves: list[Any]
    prepared: Tensor
    sizes: list[_Shape]
    pixels: Tensor
    errors: dict[int, str]
    lost: str | None


class _Batches(Dataset):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, batch: range) -> _Packed:
        loaded = self.loader.load(batch)
        pixels = [torch.from_numpy(image) for image in loaded.pixels]
        leaves, tree = tree_flatten(list(loaded.prepared))
        return _Packed(
            loaded.numbers,
            tree,
            [_Shape(tuple(leaf.shape)) if isinstance(leaf, Tensor) else leaf for leaf in leaves],
            _joined([leaf for leaf in leaves if isinstance(leaf, Tensor)]),
            [_Shape(tuple(tensor.shape)) for tensor in pixels],
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
            tensors = iter(_cut(one.prepared, [leaf for leaf in one.leaves if isinstance(leaf, _Shape)]))
            leaves = [next(tensors) if isinstance(leaf, _Shape) else leaf for leaf in one.leaves]
            yield Loaded(
                one.numbers,
                tree_unflatten(leaves, one.tree),
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


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)


def _cut(joined: Tensor, shapes: Sequence[_Shape]) -> list[Tensor]:
    parts = joined.split([math.prod(shape.sides) for shape in shapes])
    return [part.view(shape.sides) for part, shape in zip(parts, shapes, strict=True)]
