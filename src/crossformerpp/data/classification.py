"""Labelled images: the built-in digits, or any folder of class folders."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes, make_dataset

from crossformerpp.data.digits import NAMES, load_digits
from crossformerpp.data.images import IMAGE_EXTENSIONS, read_image
from crossformerpp.data.split import Which


@dataclass(frozen=True)
class LabelledImages:
    """Images (files, or already in memory) with labels.

    Attributes:
        images: A path or an image per sample.
        labels: Index into `class_names` per sample.
        names: What to call each sample in tables and errors.
    """

    images: Sequence[Path | Image.Image]
    labels: list[int]
    class_names: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """The RGB image of one sample, untransformed."""
        image = self.images[index]
        return image if isinstance(image, Image.Image) else read_image(image)


class TransformedImages(Dataset):
    """(image 3 × H × W, label, index) of each labelled image, after `transform`."""

    def __init__(self, source: LabelledImages, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.transform(self.source.open(index)), self.source.labels[index], index


def open_digits(which: Which, size: int) -> LabelledImages:
    """The built-in handwritten digits; "val" and "test" are the same."""
    images, labels = load_digits("train" if which == "train" else "val", size)
    return LabelledImages(images, labels, NAMES, [f"digits/{which}/{i:04d}" for i in range(len(labels))])


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
        labels = _relabel(folder, labels, found, class_names)
        found = class_names
    if not has_splits and which != "test":
        keep = _split(labels, val_fraction, seed, found, root)[which]
        paths, labels = [paths[i] for i in keep], [labels[i] for i in keep]
    return LabelledImages(paths, labels, found, [path.relative_to(root).as_posix() for path in paths])


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


def _relabel(folder: Path, labels: list[int], found: list[str], wanted: list[str]) -> list[int]:
    """Number the labels as `wanted` does; classes of `wanted` without a folder are simply not met."""
    strange = [name for name in found if name not in wanted]
    if strange:
        raise ValueError(f"{folder}: unknown class {', '.join(strange)}; the model knows {', '.join(wanted)}")
    return [wanted.index(found[label]) for label in labels]


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
