"""Labelled images inside tar files: ImageNet's two, or WebDataset shards, without unpacking them.

The tar files are searched once, then every image is read where it lies. Unlike a stream of shards this gives
any image at any time: batches are drawn from the whole data set, each evaluation sample comes once, and a
resumed run goes on with the very next batch.
"""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from crossformerpp.data.classification import LabelledImages, Names, relabel
from crossformerpp.data.devkit import read_val_labels
from crossformerpp.data.files import is_hidden
from crossformerpp.data.images import IMAGE_EXTENSIONS
from crossformerpp.data.names import read_class_names
from crossformerpp.data.split import Which
from crossformerpp.data.tar_index import Found, Members, images, index, is_image, members

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def is_imagenet_tars(root: Path) -> bool:
    """Whether the folder holds one of ImageNet's official tar files."""
    return (root / TRAIN_TAR).is_file() or (root / VAL_TAR).is_file()


def open_imagenet_tars(root: Path, which: Which, class_names: list[str] | None = None) -> LabelledImages:
    """ImageNet as it is handed out: a tar of a tar per class for training, a tar of all images for validation.

    The labels of the latter come from the development kit, see `devkit.read_val_labels`.

    Raises:
        ValueError: A file is missing or damaged, or the classes differ from `class_names`.
    """
    path = root / (TRAIN_TAR if which == "train" else VAL_TAR)
    if not path.is_file():
        raise ValueError(f"{path}: no such file, beside ImageNet's other tar file")
    if which == "train":
        return _labelled([path], _class_tars, None, class_names)
    labels = read_val_labels(root)
    return _labelled([path], _flat, None, class_names, labels)


def has_shards(root: Path) -> bool:
    """Whether the folder holds tar files of training or validation samples."""
    return any(_shards(root, which) for which in ("train", "val"))


def open_shards(root: Path, which: Which, class_names: list[str] | None = None) -> LabelledImages:
    """WebDataset shards `*train*.tar` and `*val*.tar`: KEY.jpg (or another image) and KEY.cls, a class number.

    The names of the classes are the lines of `classes.txt`; without it they are their numbers.

    Raises:
        ValueError: A shard is damaged or ends early, a sample has no label, or a label is outside the list.
    """
    shards = _shards(root, "train" if which == "train" else "val")
    if not shards:
        raise ValueError(
            f"{root}: shards of one split only; *{'train' if which == 'train' else 'val'}*.tar missing"
        )
    page = root / "classes.txt"
    listed = read_class_names(page) if page.is_file() else []
    return _labelled(shards, _samples, listed or None, class_names)


def _shards(root: Path, which: str) -> list[Path]:
    found = sorted(root.glob(f"*{which}*.tar")) or sorted((root / which).glob("*.tar"))
    return [path for path in found if not is_hidden(path.name)]


def _labelled(
    tars: list[Path],
    search: Callable[[Path], Iterator[Found]],
    listed: list[str] | None,
    class_names: list[str] | None,
    labels: list[str] | None = None,
) -> LabelledImages:
    """Search the tar files, number the labels.

    Args:
        listed: Names of the classes, for labels that are numbers.
        labels: Of the samples in the order of their names, where the tar files have none.
    """
    indices = [index(path, search) for path in tars]
    names = np.concatenate([one["names"] for one in indices])
    texts = np.char.decode(np.concatenate([one["labels"] for one in indices]), "utf-8")
    tar = np.repeat(np.arange(len(tars), dtype=np.int32), [len(one["names"]) for one in indices])
    offsets, sizes = (np.concatenate([one[key] for one in indices]) for key in ("offsets", "sizes"))
    if not len(names):
        raise ValueError(f"{tars[0].parent}: no images in {tars[0].name}")
    if labels is not None:
        if len(labels) != len(names):
            raise ValueError(f"{tars[0]}: {len(names)} images, but {len(labels)} labels")
        order = np.argsort(names)
        names, tar, offsets, sizes = names[order], tar[order], offsets[order], sizes[order]
        texts = np.array(labels)
    files = Members(tars, tar, offsets, sizes)
    found, numbers = np.unique(texts, return_inverse=True)
    classes = found.tolist()
    if search is _samples:
        classes, numbers = _named(tars[0].parent, texts.astype(np.int64), listed)
    as_list = numbers.tolist()
    if class_names is not None:
        as_list, classes = relabel(tars[0].parent, as_list, classes, class_names), class_names
    if len(classes) < 2:
        raise ValueError(f"{tars[0].parent}: a single class ({classes[0]}); at least two are needed")
    return LabelledImages(
        files,
        as_list,
        classes,
        Names([name.decode("utf-8", "surrogateescape") for name in names]).as_printable(),
    )


def _named(root: Path, numbers: np.ndarray, listed: list[str] | None) -> tuple[list[str], np.ndarray]:
    highest = int(numbers.max())
    classes = listed or [str(number) for number in range(highest + 1)]
    if highest >= len(classes) or numbers.min() < 0:
        wrong = highest if highest >= len(classes) else int(numbers.min())
        raise ValueError(f"{root}: label {wrong} is outside the {len(classes)} classes of classes.txt")
    return classes, numbers


def _flat(path: Path) -> Iterator[Found]:
    for name, offset, size, label in images(path):
        yield PurePosixPath(name).name, offset, size, label


def _class_tars(path: Path) -> Iterator[Found]:
    with tarfile.open(path, "r:") as outer:
        for class_tar in members(outer, path.stat().st_size):
            if not class_tar.name.endswith(".tar"):
                continue
            label = PurePosixPath(class_tar.name).stem
            with tarfile.open(fileobj=outer.extractfile(class_tar), mode="r:") as inner:
                for member in members(inner, class_tar.size):
                    if is_image(member.name):
                        offset = class_tar.offset_data + member.offset_data
                        yield f"{label}/{PurePosixPath(member.name).name}", offset, member.size, label


def _samples(path: Path) -> Iterator[Found]:
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    with tarfile.open(path, "r:") as tar:
        for member in members(tar, path.stat().st_size):
            place = PurePosixPath(member.name)
            stem, _, extension = place.name.partition(".")  # as WebDataset: all after the first dot
            key = (place.parent / stem).as_posix()
            if f".{extension}".lower() in IMAGE_EXTENSIONS:
                pictures[key] = member.offset_data, member.size
            elif extension == "cls":
                content = tar.extractfile(member)
                assert content is not None
                labels[key] = content.read(32).decode("ascii", "replace").strip()
    for key, (offset, size) in pictures.items():
        label = labels.get(key, "none")
        if not label.lstrip("-").isdecimal():
            raise ValueError(f"{path}: sample {key} has no class number in {key}.cls ({label})")
        yield key, offset, size, label
