"""Images with a label each, whatever they lie in, found by what is in the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from crossformerpp.data.classification import LabelledImages, holds_class_folders, open_folder
from crossformerpp.data.files import find_folders
from crossformerpp.data.huggingface import is_huggingface, open_huggingface
from crossformerpp.data.label_sets import open_label_sets
from crossformerpp.data.names import printable
from crossformerpp.data.objects import find_objects
from crossformerpp.data.pixels import PHOTOGRAPHS, PixelFormat
from crossformerpp.data.problems import Problems
from crossformerpp.data.split import Which
from crossformerpp.data.tables import find_tables, open_table, unusable_table
from crossformerpp.data.tar_files import has_shards, is_imagenet_tars, open_imagenet_tars, open_shards

Format = Literal["tars", "shards", "huggingface", "table", "folders"]


def find_format(root: Path, wanted: Format | None = None) -> Format | None:
    """What a folder, or a table, holds; None: nothing with labels.

    Args:
        wanted: What it is, where it could be several.

    Raises:
        ValueError: It holds class folders and a table.
    """
    if wanted is not None:
        return wanted
    if is_imagenet_tars(root):
        return "tars"
    if has_shards(root):
        return "shards"
    if is_huggingface(root):
        return "huggingface"
    tables = find_tables(root)
    has_folders = root.is_dir() and holds_class_folders(root)
    if tables and has_folders:
        names = ", ".join(path.name for path in tables.values())
        raise ValueError(
            f"{root}: both class folders and a table of images ({names}); pass --set data.format=folders (`data check` "
            f"and `data convert`: --format folders) or table, or --data {next(iter(tables.values()))}"
        )
    return "table" if tables else "folders" if has_folders else None


def open_labelled(
    root: Path,
    which: Which,
    *,
    wanted: Format | None = None,
    multi_label: bool = False,
    val_fraction: float = 0.2,
    seed: int = 0,
    class_names: list[str] | None = None,
    pixels: PixelFormat = PHOTOGRAPHS,
) -> LabelledImages:
    """One split of a folder of labelled images, of whatever kind.

    Args:
        multi_label: Images have any number of labels; of tables and class folders.

    Raises:
        ValueError: As the reader of that kind; folders of nothing are refused as class folders.
    """
    found = find_format(root, wanted)
    if multi_label:
        return _open_label_sets(root, which, found, val_fraction, seed, class_names, pixels)
    if found == "tars":
        return replace(
            open_imagenet_tars(root, which, class_names), found="ImageNet's tar files", pixels=pixels
        )
    if found == "shards":
        return replace(open_shards(root, which, class_names), found="WebDataset shards", pixels=pixels)
    if found == "huggingface":
        return replace(
            open_huggingface(root, which, class_names), found="Hugging Face data set", pixels=pixels
        )
    if found == "table":
        source = open_table(root, which, val_fraction, seed, class_names)
        return replace(source, found=f"table of images and labels, {_tables(root)}", pixels=pixels)
    if found is None and root.is_dir():
        if (other := find_objects(root)) is not None:
            raise ValueError(
                f"{root}: {other}, not images with a label each; `crossformer train objects` trains a detector on it"
            )
        folders = {printable(folder.name) for folder in find_folders(root, Problems())}
        if folders.isdisjoint(class_names or ()) and (problem := unusable_table(root)) is not None:
            raise ValueError(f"{problem}; nor are there class folders in {root}")
    return replace(open_folder(root, which, val_fraction, seed, class_names, pixels), found="class folders")


def _open_label_sets(
    root: Path,
    which: Which,
    found: Format | None,
    val_fraction: float,
    seed: int,
    class_names: list[str] | None,
    pixels: PixelFormat,
) -> LabelledImages:
    if found not in ("table", "folders", None):
        raise ValueError(
            f"{root}: several labels per image are read from tables and class folders, not from {found}"
        )
    is_table = found == "table"
    source = open_label_sets(root, which, is_table, val_fraction, seed, class_names, pixels)
    text = (
        f"table of images and label sets, {_tables(root)}" if is_table else "class folders that share images"
    )
    return replace(source, found=text)


def _tables(root: Path) -> str:
    return ", ".join(printable(path.name) for path in find_tables(root).values())
