"""One split of a data set as the engine wants it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset, default_collate

# "test" is what `eval --data FOLDER` opens: the folder's val/ if it has one, else all of it
Which = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Split:
    """A map-style data set and what is needed to batch it.

    `dataset[i]` may be random (augmentation): the engine seeds the global generators of torch, numpy and
    `random` from (seed, epoch, i) around each call, so that a sample does not depend on who loads it.

    Attributes:
        dataset: Map-style, `len()` and `[index]`; cheap to pickle, for it is sent to worker processes.
        class_names: In the order of the labels.
        collate: List of samples to a batch.
        groups: A group number per sample; a training batch is drawn from one group (aspect ratios).
    """

    dataset: Dataset
    class_names: list[str]
    collate: Callable[[list[Any]], Any] = default_collate
    groups: Sequence[int] | None = None
