"""Images with label masks: ADE20K, digit_scenes, or any folder of images and masks.

Layouts, where a mask has its image's name but its extension:

    ADE20K   images/{training,validation}/*.jpg    annotations/{training,validation}/*.png
    others   images/{train,val}/*                  masks/{train,val}/*   (or other names, see `split_folders`)
    or       images/*                              masks/*               (split by `val_fraction`)

Folders below these are searched too. `classes.txt` beside them names the labels, one a line, from label 0 on.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.data import ade20k
from crossformerpp.data.files import find_files, folder_named, warn_left_out
from crossformerpp.data.images import IMAGE_EXTENSIONS, UnusableImageError
from crossformerpp.data.mask_files import (
    IGNORED,
    MASK_EXTENSIONS,
    MAX_CLASSES,
    MaskCode,
    read_palette,
)
from crossformerpp.data.names import printable, read_class_names
from crossformerpp.data.palettes import are_colors, find_palette, has_color_masks
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat, Pixels
from crossformerpp.data.problems import Problems
from crossformerpp.data.split import Which, split_folders

_WHOLE: Which = "test"
_ADE_SPLITS = {"train": "training", "val": "validation", "test": "validation"}


@dataclass(frozen=True)
class MaskedImages:
    """Images and their masks, not yet opened.

    Attributes:
        names: What to call each sample: its path below the folder of images.
        without_mask: Images that have none, and are left out.
        without_image: Masks that have none.
        left_out: Other files in the folders.
        is_drawn: Whether the split was drawn from one folder.
        found: What their folder was taken for; "" for built-in data.
        pixels: How the images are read.
    """

    images: list[Path]
    masks: list[Path]
    names: list[str]
    class_names: list[str]
    code: MaskCode
    without_mask: list[Path]
    without_image: list[Path]
    left_out: Problems
    is_drawn: bool = False
    found: str = ""
    pixels: PixelFormat = PHOTOGRAPHS

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> tuple[Image.Image | Pixels, np.ndarray]:
        """The image, RGB or as its data are, and its labels, H × W of int16.

        Raises:
            UnusableImageError: One is unreadable, or they do not fit; names the file and what is wrong.
        """
        try:
            image = open_pixels(self.images[index], str(self.images[index]), self.pixels)
            return image, self.code.read(self.masks[index], image.size)
        except ValueError as error:
            raise UnusableImageError(str(error)) from None


def is_ade20k(root: Path) -> bool:
    """Whether a folder is laid out as ADE20K's scene parsing data."""
    return any((root / "annotations" / name).is_dir() for name in ("training", "validation"))


def open_ade20k(root: Path, which: Which) -> MaskedImages:
    """A split of ADE20K; value 0 of the files is ignored, 1 … 150 are labels 0 … 149.

    Raises:
        ValueError: The folder is laid out otherwise.
    """
    folder = _ADE_SPLITS[which]
    if not is_ade20k(root):
        raise ValueError(
            f"{root}: expected ADE20K's images/{folder} and annotations/{folder} in it (the folder "
            "ADEChallengeData2016)"
        )
    code = MaskCode(len(ade20k.NAMES), ignore_value=0, values=tuple(range(1, 151)))
    pairs = _pair(root / "images" / folder, root / "annotations" / folder)
    return _assemble(pairs, ade20k.NAMES, code, found="ADE20K")


def open_folder(
    root: Path,
    which: Which,
    *,
    class_names: list[str] | None = None,
    palette: Path | None = None,
    ignore_value: int = 255,
    values: Sequence[int] | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    trained: list[str] | None = None,
    pixels: PixelFormat = PHOTOGRAPHS,
) -> MaskedImages:
    """A split of a folder with images/ and masks/.

    Args:
        class_names: By label; default: the palette's, or those of classes.txt.
        palette: Table of colours for masks of colours; default: the one in the folder, or the colours that occur.
        values: Of each label in the mask files; default: 0, 1, …
        trained: Names that a trained model knows; the folder's must be these, or none.

    Raises:
        ValueError: Missing folders, names or masks; says which, and what to do.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    table = find_palette(root, trained) if palette is None else read_palette(palette)
    grey_is_color = palette is None or has_color_masks(root)
    names = _class_names(root, class_names, None if table is None else table.names, trained)
    if values is not None and len(values) != len(names):
        raise ValueError(f"data.mask_values has {len(values)} values for {len(names)} classes")
    values = None if values is None else tuple(values)
    code = MaskCode(len(names), ignore_value, palette=table, values=values, grey_is_color=grey_is_color)
    found = "index masks" if table is None else f"masks of {len(table.names)} colours"
    images, masks = folder_named(root, "images"), folder_named(root, "masks")
    described: dict[str, Any] = {"found": found, "pixels": pixels}
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(f"{root}: expected the folders images and masks in it, found no {folder.name}")
    halves = split_folders(images)
    if halves:
        half: Which = "train" if which == "train" else "val"
        if half not in halves:
            raise ValueError(f"{images}: there is no {half}/ beside {next(iter(halves.values())).name}/")
        labelled = split_folders(masks).get(half, masks / halves[half].name)
        return _assemble(_pair(halves[half], labelled, pixels.extensions), names, code, **described)
    pairs = _pair(images, masks, pixels.extensions)
    if which != "test":
        pairs = _split(pairs, which, val_fraction, seed, root)
    return _assemble(pairs, names, code, is_drawn=which != "test", **described)


def warn_of_values(source: MaskedImages, samples: int = 16) -> None:
    """Warn if some masks, spread over the data, hold a single class beside what is ignored: 0 and 255, mostly."""
    pixels, ignored = np.zeros(len(source.class_names), np.int64), 0
    for number in sorted({number * len(source) // samples for number in range(samples)}):
        try:
            _, labels = source.open(number)
        except UnusableImageError:
            continue  # said when it is its turn
        pixels += count_labels(labels, len(pixels))
        ignored += int((labels == IGNORED).sum())
    if (problem := lost_class(source, pixels, ignored)) is not None:
        warnings.warn(
            f"{source.masks[0].parent}: of {min(samples, len(source))} masks, {problem}", stacklevel=2
        )


def count_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) pixels of each class."""
    return np.bincount(labels[labels != IGNORED], minlength=num_classes)


def lost_class(source: MaskedImages, pixels: np.ndarray, ignored: int) -> str | None:
    """What is wrong with masks in which one class at most is left beside ignored pixels; None: nothing.

    Args:
        pixels: (K,) pixels of each class.
        ignored: Pixels that are ignored.
    """
    seen = np.flatnonzero(pixels)
    if len(seen) > 1 or not ignored or source.code.palette is not None:
        return None
    share = ignored / (ignored + int(pixels.sum()))
    only = f"only class {source.class_names[seen[0]]} is seen" if len(seen) else "no class is seen"
    value = source.code.ignore_value
    return (
        f"{only}: the other {share:.0%} of the pixels have the value {value}, which is ignored. If it means a class, "
        f"pass --set data.mask_values=[0,{value}] (`data check`: --mask-values 0,{value}), the value of each class"
    )


def has_masks(root: Path) -> bool:
    """Whether a folder is one for segmentation."""
    return is_ade20k(root) or folder_named(root, "masks").is_dir()


def open_splits(
    root: Path,
    palette: Path | None = None,
    ignore_value: int = 255,
    values: Sequence[int] | None = None,
    pixels: PixelFormat = PHOTOGRAPHS,
) -> Iterator[tuple[Which, MaskedImages]]:
    """The splits that a folder for segmentation has; "test" is all of one that has none.

    Raises:
        ValueError: As `open_ade20k` and `open_folder`.
    """
    splits: list[Which] = ["train", "val"]
    if is_ade20k(root):
        for which in splits:
            if (root / "images" / _ADE_SPLITS[which]).is_dir():
                yield which, open_ade20k(root, which)
        return
    images = folder_named(root, "images")
    halves = split_folders(images) if images.is_dir() else {}
    trained = None
    for which in halves or [_WHOLE]:
        options: dict[str, Any] = {"palette": palette, "ignore_value": ignore_value, "values": values}
        source = open_folder(root, which, trained=trained, pixels=pixels, **options)
        trained = source.class_names if are_colors(source.class_names) else None
        yield which, source


@dataclass(frozen=True)
class _Pairs:
    folder: Path
    found: list[tuple[Path, Path]]
    without_mask: list[Path]
    without_image: list[Path]
    left_out: Problems


def _pair(images: Path, masks: Path, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> _Pairs:
    """Images and masks of the same relative path without extension."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    left_out, left_out_masks = Problems(), Problems()
    pictures = _find(images, extensions, left_out)
    labels = _find(masks, MASK_EXTENSIONS, left_out_masks)
    if not pictures:
        more = f"; left out {left_out}" if left_out.found else ""
        raise ValueError(f"{images}: no images (looked for {' '.join(extensions)}{more})")
    found = [(pictures[stem], labels[stem]) for stem in pictures if stem in labels]
    if not found:
        first = next(iter(pictures.values()))
        more = f" (left out {left_out_masks}; formats that keep labels: {' '.join(MASK_EXTENSIONS)})"
        raise ValueError(
            f"{masks}: no mask belongs to an image; {first.name} needs {first.stem}.png there"
            + (more if left_out_masks.found else "")
        )
    for folder, problems in ((images, left_out), (masks, left_out_masks)):
        warn_left_out(folder, problems)
    for kind, places in left_out_masks.found.items():
        left_out.found[kind] += places
    without_mask = [path for stem, path in pictures.items() if stem not in labels]
    without_image = [path for stem, path in labels.items() if stem not in pictures]
    return _Pairs(images, found, without_mask, without_image, left_out)


def _find(folder: Path, extensions: tuple[str, ...], left_out: Problems) -> dict[str, Path]:
    """Files by their path below the folder without extension, as `printable` writes it: Macs write é differently."""
    found: dict[str, Path] = {}
    for path in sorted(find_files(folder, extensions, left_out)):
        stem = printable(path.relative_to(folder).with_suffix("").as_posix())
        if stem in found:
            raise ValueError(f"{path} and {found[stem].name} would share a mask; rename one")
        found[stem] = path
    return found


def _split(pairs: _Pairs, which: Which, val_fraction: float, seed: int, root: Path) -> _Pairs:
    order = np.random.default_rng(seed).permutation(len(pairs.found))
    num_val = max(1, round(len(order) * val_fraction))
    if num_val >= len(order):
        raise ValueError(f"{root}: {len(order)} image(s) with a mask cannot be split into train and val")
    chosen = order[:num_val] if which == "val" else order[num_val:]
    return replace(pairs, found=[pairs.found[i] for i in sorted(chosen)])


def _assemble(
    pairs: _Pairs,
    names: list[str],
    code: MaskCode,
    is_drawn: bool = False,
    found: str = "",
    pixels: PixelFormat = PHOTOGRAPHS,
) -> MaskedImages:
    if pairs.without_mask:
        warnings.warn(
            f"{len(pairs.without_mask)} of {len(pairs.found) + len(pairs.without_mask)} images have no mask "
            f"and are left out, the first is {pairs.without_mask[0]}",
            stacklevel=3,
        )
    if pairs.without_image:
        warnings.warn(
            f"{len(pairs.without_image)} masks have no image and are left out, the first is {pairs.without_image[0]}",
            stacklevel=3,
        )
    return MaskedImages(
        images=[image for image, _ in pairs.found],
        masks=[mask for _, mask in pairs.found],
        names=[printable(image.relative_to(pairs.folder).as_posix()) for image, _ in pairs.found],
        class_names=names,
        code=code,
        without_mask=pairs.without_mask,
        without_image=pairs.without_image,
        left_out=pairs.left_out,
        is_drawn=is_drawn,
        found=found,
        pixels=pixels,
    )


def _class_names(
    root: Path, given: list[str] | None, palette: list[str] | None, trained: list[str] | None
) -> list[str]:
    listed = root / "classes.txt"
    names = given or palette
    if names is None and not listed.is_file():
        names = trained
    if given and palette and given != palette:
        raise ValueError(
            f"data.class_names ({', '.join(given)}) differ from the palette's ({', '.join(palette)})"
        )
    if names is None:
        if not listed.is_file():
            raise ValueError(
                f"{root}: what are the classes called? Write their names into {listed.name} there, one a "
                "line from label 0 on (`train` also takes --set data.class_names=[background,…])"
            )
        names = read_class_names(listed)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not 2 <= len(names) <= MAX_CLASSES:
        problem = f"{', '.join(twice)} twice" if twice else f"{len(names)} class(es); at least two are needed"
        raise ValueError(f"{root}: the names of its classes: {problem}")
    if trained is not None and names != trained:
        raise ValueError(
            f"{root}: has {len(names)} classes ({_some(names)}), the model {len(trained)} "
            f"({_some(trained)}); they must be the same, in the same order"
        )
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
