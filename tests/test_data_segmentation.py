"""Masked images: layouts, mask codes, palettes, and what is said about bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data import ade20k
from crossformerpp.data.classification import scan_classes
from crossformerpp.data.mask_files import (
    IGNORED,
    MaskCode,
    Palette,
    default_colors,
    index_picture,
    read_palette,
)
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.data.segmentation import has_masks, open_ade20k, open_folder, open_splits

RNG = np.random.default_rng(0)


def write_pair(
    root: Path, name: str, labels: np.ndarray, rooms: tuple[str, str] = ("images", "masks")
) -> None:
    image, mask = (root / room / name for room in rooms)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture = RNG.integers(0, 256, (*labels.shape[:2], 3), dtype=np.uint8)
    Image.fromarray(picture).save(image.with_suffix(".jpg"))
    Image.fromarray(labels.astype(np.uint8)).save(mask.with_suffix(".png"))


def make_folder(root: Path, count: int = 5, num_classes: int = 3) -> Path:
    for number in range(count):
        write_pair(root, f"{number}", RNG.integers(0, num_classes, (40, 50)))
    (root / "classes.txt").write_text("\n".join("abcdefgh"[:num_classes]) + "\n")
    return root


def test_ade20k_shifts_labels_and_ignores_zero(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [150, 2]]).repeat(20, 0).repeat(20, 1)
    write_pair(tmp_path, "ADE_val_00000001", labels, ("images/validation", "annotations/validation"))
    source = open_ade20k(tmp_path, "val")
    _, found = source.open(0)
    assert np.array_equal(found[::20, ::20], [[IGNORED, 0], [149, 1]])
    assert source.class_names[0] == "wall"
    assert source.class_names[149] == "flag"


def test_ade20k_has_150_classes_with_a_colour_each() -> None:
    assert len(ade20k.NAMES) == len(set(ade20k.NAMES)) == len(ade20k.COLORS) == 150
    assert all(0 <= value <= 255 for color in ade20k.COLORS for value in color)
    assert ade20k.NAMES[12] == "person"
    assert ade20k.COLORS[12] == (150, 5, 61)


def test_a_flat_folder_is_split_without_overlap(tmp_path: Path) -> None:
    make_folder(tmp_path, count=10)
    train, val, test = (open_folder(tmp_path, which, val_fraction=0.3) for which in ("train", "val", "test"))
    assert len(train) == 7
    assert len(val) == 3
    assert sorted(train.names + val.names) == sorted(test.names)
    assert val.names == open_folder(tmp_path, "val", val_fraction=0.3).names
    assert val.names != open_folder(tmp_path, "val", val_fraction=0.3, seed=1).names


def test_digit_scenes_come_in_this_layout(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=3, val=2, size=64)
    train, val = (open_folder(tmp_path / "scenes", which) for which in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    assert train.class_names == ["background", *map(str, range(10))]
    image, labels = train.open(0)
    assert image.size == (64, 64)
    assert set(np.unique(labels)) - {0}


def test_images_without_masks_are_left_out_with_a_count(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 5 images have no mask .*3\.jpg"):
        source = open_folder(tmp_path, "test")
    assert len(source) == 4
    assert [path.name for path in source.without_mask] == ["3.jpg"]


def test_masks_without_images_are_left_out_with_a_count(tmp_path: Path) -> None:
    make_folder(tmp_path)
    next((tmp_path / "images").glob("1.*")).unlink()
    with pytest.warns(UserWarning, match=r"1 masks have no image and are left out, the first is .*1\.png"):
        assert len(open_folder(tmp_path, "test")) == 4


def test_folders_may_begin_with_a_capital(tmp_path: Path) -> None:
    make_folder(tmp_path)
    expected = [open_folder(tmp_path, "test").open(number)[1].tolist() for number in range(5)]
    for name in ("images", "masks"):
        (tmp_path / name).rename(tmp_path / name.capitalize())
    assert has_masks(tmp_path)
    ((_, source),) = open_splits(tmp_path)
    assert [source.open(number)[1].tolist() for number in range(5)] == expected
    with pytest.raises(
        ValueError, match=r"images and their masks or labels \(Images, Masks\), not a folder of images"
    ):
        scan_classes(tmp_path, (".png",))


def test_masks_of_other_folders_do_not_count(tmp_path: Path) -> None:
    write_pair(tmp_path, "a/1", np.zeros((40, 40)))
    (tmp_path / "masks" / "b").mkdir()
    (tmp_path / "masks" / "a" / "1.png").rename(tmp_path / "masks" / "b" / "1.png")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.raises(ValueError, match=r"no mask belongs to an image; 1\.jpg needs 1\.png"):
        open_folder(tmp_path, "test")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), r"classes\.txt there, .*`train` also takes --set"),
        (lambda root: (root / "classes.txt").write_text("a\nb\na\n"), "lines 1 and 3 have the same name, a"),
        (lambda root: (root / "classes.txt").write_text("a\n"), "at least two"),
        (lambda root: (root / "masks").rename(root / "labels"), "found no masks"),
        (lambda root: (root / "images" / "train").mkdir(), r"no val/ beside train/"),
        (lambda root: (root / "images" / "0.png").write_bytes(b""), "would share a mask"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, break_it, message: str) -> None:
    break_it(make_folder(tmp_path))
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, "val")


def test_the_classes_must_be_the_models(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert open_folder(tmp_path, "test", trained=["a", "b", "c"]).class_names == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"has 3 classes \(a, b, c\), the model 2 \(a, b\)"):
        open_folder(tmp_path, "test", trained=["a", "b"])
    (tmp_path / "classes.txt").unlink()
    assert open_folder(tmp_path, "test", trained=["x", "y", "z"]).class_names == ["x", "y", "z"]


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_a_value_that_is_no_label_is_named(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", np.array([[0, 1], [7, 255]], np.uint8))
    assert MaskCode(8).read(mask).tolist() == [[0, 1], [7, IGNORED]]
    with pytest.raises(ValueError, match=r"m\.png: value 7 is no label; with 3 classes labels are 0 to 2"):
        MaskCode(3).read(mask)
    with pytest.raises(ValueError, match="value 0 is no label"):
        MaskCode(8, ignore_value=255, values=tuple(range(1, 9))).read(mask)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"m\.png: the mask has 6x4 pixels, its image 4x6"):
        MaskCode(2).read(mask, (4, 6))


def test_sixteen_bit_masks_hold_many_classes(tmp_path: Path) -> None:
    labels = np.array([[0, 299], [255, 65535]], np.uint16)
    code = MaskCode(300, ignore_value=65535)
    assert code.read(save(tmp_path / "m.png", labels)).tolist() == [[0, 299], [255, IGNORED]]


def test_colours_become_labels_by_the_palette(tmp_path: Path) -> None:
    (tmp_path / "palette.csv").write_text("name,r,g,b\nroad,128,64,128\nsky,70,130,180\nvoid,0,0,0\n")
    palette = read_palette(tmp_path / "palette.csv")
    assert palette == Palette(["road", "sky"], [(128, 64, 128), (70, 130, 180)], [(0, 0, 0)])
    pixels = np.array([[[70, 130, 180], [128, 64, 128]], [[0, 0, 0], [70, 130, 180]]], np.uint8)
    mask = save(tmp_path / "m.png", pixels)
    assert MaskCode(2, palette=palette).read(mask).tolist() == [[1, 0], [IGNORED, 1]]
    pixels[1, 0] = (1, 2, 3)
    mask = save(tmp_path / "m.png", pixels)
    with pytest.raises(ValueError, match=r"colour \(1, 2, 3\) at x 0, y 1 is not in the palette"):
        MaskCode(2, palette=palette).read(mask)
    with pytest.raises(ValueError, match=r"m\.png: a mask of colours needs a palette"):
        MaskCode(2).read(mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road,1,2,3\nsky,4,5,6\n", "heading name,r,g,b"),
        ("name,r,g,b\nroad,1,2,3\nsky,4,5,256\n", "line 3: colour .* not within"),
        ("name,r,g,b\nroad,1,2,3\nsky,1,2,3\n", "line 3: sky .* twice"),
        ("name,r,g,b\nroad,1,2,3\nvoid,0,0,0\n", "1 classes; at least two"),
        ("name,r,g,b\nroad,1,2,3\n ,4,5,6\n", r"line 3: colour \(4, 5, 6\) has no name"),
    ],
)
def test_palettes_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "palette.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_palette(tmp_path / "palette.csv")


def test_a_palette_may_name_the_classes_of_index_masks(tmp_path: Path) -> None:
    """Masks of one channel hold values, unless others are in colour."""
    make_folder(tmp_path)
    expected = [open_folder(tmp_path, "test").open(number)[1].tolist() for number in range(5)]
    (tmp_path / "names.csv").write_text("name,r,g,b\na,0,0,0\nb,255,255,255\nc,255,0,0\n")
    source = open_folder(tmp_path, "test", palette=tmp_path / "names.csv")
    assert source.class_names == ["a", "b", "c"]
    assert [source.open(number)[1].tolist() for number in range(5)] == expected
    Image.new("RGB", (50, 40), "red").save(tmp_path / "masks/0.png")
    Image.new("L", (50, 40), 255).save(tmp_path / "masks/1.png")
    source = open_folder(tmp_path, "test", palette=tmp_path / "names.csv")
    assert [int(source.open(number)[1].max()) for number in range(2)] == [2, 1]


def test_index_pictures_read_back(tmp_path: Path) -> None:
    for num_classes in (11, 300):
        labels = RNG.integers(0, num_classes, (9, 7)).astype(np.int16)
        index_picture(labels, default_colors(num_classes)).save(tmp_path / "m.png")
        assert np.array_equal(MaskCode(num_classes, ignore_value=65535).read(tmp_path / "m.png"), labels)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"no mask")
    with pytest.raises(ValueError, match=r"m\.png: not a mask"):
        MaskCode(2).read(tmp_path / "m.png")
    with pytest.raises(ValueError, match="no such mask"):
        MaskCode(2).read(tmp_path / "none.png")
