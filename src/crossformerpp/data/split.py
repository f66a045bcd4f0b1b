"""One split of a data set as the engine wants it, and the folders that splits lie in."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset, default_collate

from crossformerpp.data.balance import Labels
from crossformerpp.data.files import find_folders
from crossformerpp.data.problems import Problems

# "test" is what `eval --data FOLDER` opens: the folder's val/ if it has one, else all of it
Which = Literal["train", "val", "test"]


_FOLDERS: dict[Which, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
}
_TEST_FOLDERS = ("test", "testing")  # of use for validation where there is nothing else


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
        names: What the samples are called, to tell whether the data changed.
        labels: Of a classifier's samples, each its class or all its classes.
        weights: How often each sample is drawn in training, relative to others.
        is_drawn: Whether the split was drawn from one folder, so that another file in it may move others.
        found: What the folder was taken for, as people are told; "" for built-in data.
        counts: What else people want to know of its size, by name.
    """

    dataset: Dataset
    class_names: list[str]
    collate: Callable[[list[Any]], Any] = default_collate
    groups: Sequence[int] | None = None
    names: Sequence[str] = ()
    labels: Labels | None = None
    weights: np.ndarray | None = None
    is_drawn: bool = False
    found: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def split_named(name: str) -> Which | None:
    """The split that a data set means by a name, in any case; None: none."""
    name = name.strip().lower()
    known: dict[Which, Sequence[str]] = {**_FOLDERS, "test": _TEST_FOLDERS}
    return next((split for split, names in known.items() if name in names), None)


def split_folders(
    root: Path, *, holds_splits: Callable[[Path], bool] = lambda folder: True
) -> dict[Which, Path]:
    """The folders of "train" and "val" in a folder, by the names that data sets give them, in any case.

    Without a folder for validation, one for tests is taken, with a warning. None of both: the folder has no splits.

    Args:
        holds_splits: Whether such a folder is one of a split rather than of something else of this name.

    Raises:
        ValueError: Two folders claim to be the same split.
    """
    by_name: dict[str, list[Path]] = {}
    for folder in find_folders(root, Problems()):
        by_name.setdefault(folder.name.lower(), []).append(folder)

    def one_of(names: Sequence[str]) -> Path | None:
        found = [folder for name in names for folder in by_name.get(name, []) if holds_splits(folder)]
        if len(found) > 1:
            raise ValueError(f"{root}: both {found[0].name}/ and {found[1].name}/ are there; which is meant?")
        return found[0] if found else None

    splits: dict[Which, Path | None] = {"train": one_of(_FOLDERS["train"]), "val": one_of(_FOLDERS["val"])}
    if splits["train"] is not None and splits["val"] is None and (test := one_of(_TEST_FOLDERS)) is not None:
        warnings.warn(
            f"{root}: no val/ beside {splits['train'].name}/; {test.name}/ is used for validation, so that its "
            "figures also choose the best checkpoint",
            stacklevel=2,
        )
        splits["val"] = test
    return {which: folder for which, folder in splits.items() if folder is not None}


def every_split_folder(root: Path) -> dict[str, Path]:
    """The folders of "train", "val" and "test" that hold folders, by the names that data sets give them, in any case.

    Unlike `split_folders` it takes a folder for tests beside one for validation, too. Without training and validation
    the folder has no splits.

    Raises:
        ValueError: Two folders claim to be the same split.
    """
    found: dict[str, Path] = {}
    for folder in find_folders(root, Problems()):
        for split, names in {**_FOLDERS, "test": _TEST_FOLDERS}.items():
            if folder.name.lower() in names and find_folders(folder, Problems()):
                if split in found:
                    raise ValueError(
                        f"{root}: both {found[split].name}/ and {folder.name}/ are there; which is meant?"
                    )
                found[split] = folder
    order = [split for split in ("train", "val", "test") if split in found]
    return {split: found[split] for split in order} if {"train", "val"} & set(found) else {}
