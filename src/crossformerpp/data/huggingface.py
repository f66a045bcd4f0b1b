"""A local copy of a Hugging Face data set: what `save_to_disk` wrote, or a folder of parquet files."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from crossformerpp.data.classification import LabelledImages, Names, relabel
from crossformerpp.data.files import is_hidden
from crossformerpp.data.split import Which
from crossformerpp.data.table_files import lists_images

SAVED = ("dataset_dict.json", "state.json")
VAL_NAMES = ("validation", "val", "valid", "test")


@dataclass(frozen=True)
class EncodedColumn(Sequence[BytesIO]):
    """The images of a column as the bytes of their files."""

    table: Any
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        cell = self.table[int(index)][self.column]
        return BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])


def is_huggingface(root: Path) -> bool:
    """Whether the folder is a copy of a Hugging Face data set."""
    is_saved = any((root / name).is_file() for name in SAVED)
    tables = [*root.glob("*.parquet"), *root.glob("data/*.parquet")]
    tables = [path for path in tables if not lists_images(path)]  # paths of files, which `data.tables` reads
    return is_saved or not all(is_hidden(path.name) for path in tables)


def open_huggingface(root: Path, which: Which, class_names: list[str] | None = None) -> LabelledImages:
    """One split of the copy; its first image column and its first column of class labels.

    Raises:
        ValueError: `datasets` is not installed, or the copy has no such split or columns.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{root}: reading this needs `datasets`: pip install datasets") from None
    if any((root / name).is_file() for name in SAVED):
        splits = datasets.load_from_disk(str(root))
    else:
        splits = datasets.load_dataset(str(root))
    if not isinstance(splits, datasets.DatasetDict):
        splits = {"train": splits}
    wanted = ("train",) if which == "train" else VAL_NAMES
    name = next((name for name in wanted if name in splits), None)
    if name is None:
        raise ValueError(f"{root}: no split {' or '.join(wanted)}; there is {', '.join(splits)}")
    table = splits[name]
    image = _column(root, table, datasets.Image)
    label = _column(root, table, datasets.ClassLabel)
    found = list(table.features[label].names)
    labels = [int(value) for value in table[label]]
    if any(not 0 <= value < len(found) for value in labels):
        raise ValueError(f"{root}: split {name} has samples without a label")
    if class_names is not None:
        labels, found = relabel(root, labels, found, class_names), class_names
    table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    names = Names([f"{name}/{number:07d}" for number in range(len(labels))])
    return LabelledImages(EncodedColumn(table, image), labels, found, names)


def _column(root: Path, table: Any, kind: type) -> str:
    for name, feature in table.features.items():
        if isinstance(feature, kind):
            return name
    raise ValueError(f"{root}: no column of type {kind.__name__} among {', '.join(table.features)}")
