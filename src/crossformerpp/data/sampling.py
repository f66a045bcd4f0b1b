"""Which samples come when, as pure functions of (seed, epoch, position): the base of exact resume.

Legend: a *step* is one optimiser step and consumes `batch_size` samples, over all processes (`world`) and
accumulated batches; a *batch* is what one process sees at once, batch_size / (world · accumulate) samples.
"""

import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from crossformerpp.data.split import Split

Draw = tuple[int, ...]  # epoch, index, and where a sample comes several times in an epoch, which time it is


def seed_generators(*key: int, cpu_only: bool = False) -> None:
    """Seed the global generators of `random`, numpy and torch from a tuple of numbers."""
    python, numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(3, np.uint32).tolist()
    random.seed(python)
    np.random.seed(numpy_seed)  # noqa: NPY002 (timm draws from the global generator)
    (torch.default_generator.manual_seed if cpu_only else torch.manual_seed)(torch_seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global CPU generators inside the block and give them back as they were."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            seed_generators(*key, cpu_only=True)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


class SeededDataset(Dataset):
    """Makes a random data set a function of (seed, epoch, index), in any process."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Any:
        _, index, *_ = draw
        with seeded(self.seed, *draw):
            return self.dataset[index]


class BatchStream(Sampler[list[Draw]]):
    """All training batches of one process, from batch `start` to the end of the run, as (epoch, index) pairs.

    Each epoch is a fresh permutation, cut into whole steps; its remainder is left out. The samples of a step
    do not depend on the number of processes or on accumulation.

    With `weights` an epoch has as many draws, and sample i comes M·w_i / Σw times in its M draws, rounded up or down at
    random (systematic sampling); a draw then has a third number, which tells the draws of one sample apart.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_steps: int,
        *,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        groups: Sequence[int] | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """
        Args:
            batch_size: Samples of a step.
            start: Batch with which to begin; `len()` stays that of the whole run.
            groups: A group per sample; all but a few steps of an epoch take theirs from one group.
            weights: How often each sample is drawn, relative to others; not together with groups.

        Raises:
            ValueError: The batch size does not fit the data or the devices.
        """
        if num_samples < batch_size:
            raise ValueError(
                f"a batch of {batch_size} is more than the {num_samples} training samples; "
                f"pass --set trainer.batch_size={num_samples} or less"
            )
        if batch_size % (world * accumulate):
            raise ValueError(
                f"trainer.batch_size {batch_size} must be a multiple of devices × accumulate "
                f"= {world} × {accumulate}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.accumulate, self.rank, self.world, self.start = accumulate, rank, world, start
        self.steps_per_epoch = num_samples // batch_size
        self.num_batches = num_steps * accumulate
        self.groups = None if groups is None else np.asarray(groups)
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        assert self.groups is None or self.weights is None

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        per_epoch = self.steps_per_epoch * self.accumulate
        epoch, batches = -1, np.empty((0, 0, 0, 0))
        for number in range(self.start, self.num_batches):
            if number // per_epoch != epoch:
                epoch = number // per_epoch
                order = self._order(epoch)
                draws = [order] if self.weights is None else [order, _occurrences(order)]
                batches = np.stack(draws, axis=1).reshape(per_epoch, self.world, -1, len(draws))
            yield [(epoch, *draw) for draw in batches[number % per_epoch, self.rank].tolist()]

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        count = self.steps_per_epoch * self.batch_size
        if self.weights is not None:
            return _weighted_order(self.weights, count, generator)
        order = generator.permutation(self.num_samples)[:count]
        if self.groups is None:
            return order
        order = order[np.argsort(self.groups[order], kind="stable")]
        return generator.permutation(order.reshape(-1, self.batch_size)).reshape(-1)


def _weighted_order(weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` draws by systematic sampling: one point in each of `count` equal parts of the line of all weights, on
    which samples lie in random order."""
    line = generator.permutation(len(weights))
    ends = np.cumsum(weights[line])
    points = (np.arange(count) + generator.random()) * (ends[-1] / count)
    chosen = np.searchsorted(ends, points, side="right").clip(max=len(line) - 1)
    return generator.permutation(line[chosen])


def _occurrences(order: np.ndarray) -> np.ndarray:
    """How often each entry has come before it."""
    places = np.argsort(order, kind="stable")
    ordered = order[places]
    starts = np.searchsorted(ordered, ordered, side="left")
    found = np.empty_like(order)
    found[places] = np.arange(len(order)) - starts
    return found


class EvalOrder(Sampler[int]):
    """Every sample exactly once over all processes, without the usual padding to equal shares."""

    def __init__(self, samples: Sized, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, len(samples), world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def num_samples(split: Split) -> int:
    """How many samples a split has."""
    return len(split.dataset)  # type: ignore[arg-type]
