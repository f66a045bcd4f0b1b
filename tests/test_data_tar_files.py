"""Images in tar files are the images that were put there, and damage is named."""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from scipy.io import savemat

from crossformerpp.data.tar_files import (
    has_shards,
    is_imagenet_tars,
    open_imagenet_tars,
    open_shards,
)

SYNSETS = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(*color: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (40, 36), color).save(content, "PNG")  # PNG keeps the colour; the name does not matter
    return content.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def write_imagenet(root: Path) -> None:
    """Three classes in the layout of the official files; the colour tells class and number."""
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, synset in enumerate(SYNSETS):
            inner_file = BytesIO()
            with tarfile.open(fileobj=inner_file, mode="w") as inner:
                for number in range(4):
                    add(inner, f"{synset}_{number}.JPEG", picture(label, number, 0))
            add(outer, f"{synset}.tar", inner_file.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in (3, 1, 2):  # not in their order
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", picture(9, number, 0))


def write_devkit(root: Path) -> None:
    ids = [7, 2, 9]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    synsets = np.array(list(zip(ids, SYNSETS, strict=True)), dtype=kind)
    content = BytesIO()
    savemat(content, {"synsets": synsets})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        add(kit, "ILSVRC2012_devkit_t12/data/meta.mat", content.getvalue())
        add(kit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"9\n7\n2\n")


def test_imagenets_two_tar_files_are_read_in_place(tmp_path: Path, cache: Path) -> None:
    write_imagenet(tmp_path)
    write_devkit(tmp_path)
    assert is_imagenet_tars(tmp_path)
    for _ in range(2):  # searched, then from the cache
        train = open_imagenet_tars(tmp_path, "train")
        assert train.class_names == SYNSETS
        assert len(train) == 12
        for index in range(12):
            assert train.open(index).getpixel((0, 0)) == (train.labels[index], index % 4, 0)
        assert train.names[5] == "n01443537/n01443537_1.JPEG"
        assert len(list(cache.rglob("*.npz"))) == 1
    for index_file in cache.rglob("*.npz"):
        index_file.write_bytes(index_file.read_bytes()[:-30])  # cut short: it is searched again
    assert len(open_imagenet_tars(tmp_path, "train")) == 12
    val = open_imagenet_tars(tmp_path, "val", train.class_names)
    assert [val.open(index).getpixel((0, 0)) for index in range(3)] == [(9, 1, 0), (9, 2, 0), (9, 3, 0)]
    assert val.labels == [2, 0, 1]


def test_a_list_of_synsets_serves_as_labels_and_must_fit(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    with pytest.raises(ValueError, match="the validation labels are missing; put ILSVRC2012_devkit"):
        open_imagenet_tars(tmp_path, "val", SYNSETS)
    labels = tmp_path / "imagenet_2012_validation_synset_labels.txt"
    labels.write_text("\n".join([SYNSETS[1], SYNSETS[1], SYNSETS[0]]))
    assert open_imagenet_tars(tmp_path, "val", SYNSETS).labels == [1, 1, 0]
    labels.write_text(SYNSETS[0])
    with pytest.raises(ValueError, match="3 images, but 1 labels"):
        open_imagenet_tars(tmp_path, "val", SYNSETS)


def write_shards(root: Path, split: str, count: int, per_shard: int) -> None:
    pattern = str(root / f"photos-{split}-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number in range(count):
            image = Image.new("RGB", (40, 36), (number, 5, 0))
            writer.write({"__key__": f"s{number:03d}", "png": image, "cls": number % 3})


def stream(root: Path, split: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    shards = sorted(str(path) for path in root.glob(f"*{split}*.tar"))
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        yield sample["__key__"], sample["png"].getpixel((0, 0)), sample["cls"]


def test_shards_hold_what_webdataset_finds_in_them(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 11, per_shard=4)
    write_shards(tmp_path, "val", 3, per_shard=4)
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    assert has_shards(tmp_path)
    for split in ("train", "val"):
        ours = open_shards(tmp_path, split)  # type: ignore[arg-type]
        found = [
            (ours.names[index], ours.open(index).getpixel((0, 0)), ours.labels[index])
            for index in range(len(ours))
        ]
        assert found == list(stream(tmp_path, split))
        assert ours.class_names == ["cat", "dog", "owl"]


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 8, per_shard=4)
    shard = tmp_path / "photos-train-000001.tar"
    shard = next(iter(sorted(tmp_path.glob("*.tar"))[1:]), shard)
    whole = shard.read_bytes()
    for length in (len(whole) // 2, 1536, 700):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{shard.name}: ends early or is damaged"):
            open_shards(tmp_path, "train")


def test_labels_that_cannot_be_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 6, per_shard=6)
    with pytest.raises(ValueError, match=r"\*val\*\.tar missing"):
        open_shards(tmp_path, "val")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"label 2 is outside the 2 classes of classes\.txt"):
        open_shards(tmp_path, "train")
    with tarfile.open(tmp_path / "more-train.tar", "w") as tar:
        add(tar, "a.png", picture(1, 2, 3))
    with pytest.raises(ValueError, match="sample a has no class number"):
        open_shards(tmp_path, "train")
