"""Masks drawn from outlines, and colours that are found: against masks that are made pixel by pixel here."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data.drawn_masks import open_drawn
from crossformerpp.data.mask_files import IGNORED
from crossformerpp.data.segmentation import open_folder, open_splits
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.tasks.segmentation import class_colors, open_masks

W, H = 60, 40


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def coco(root: Path) -> Path:
    """A large cat under a small dog; a box without an outline; run lengths."""
    objects = [
        {"category_id": 4, "bbox": [5, 5, 10, 10], "segmentation": [rectangle(5, 5, 15, 15)]},
        {"category_id": 2, "bbox": [0, 0, 30, 30], "segmentation": [rectangle(0, 0, 30, 30)]},
        {"category_id": 2, "bbox": [28, 2, 12, 8]},
        {
            "category_id": 4,
            "bbox": [50, 0, 10, 40],
            "segmentation": {"size": [H, W], "counts": [50 * H, 10 * H]},
        },
    ]
    for half in ("train", "val"):
        (root / f"images/{half}").mkdir(parents=True)
        Image.new("RGB", (W, H), "gray").save(root / f"images/{half}/a.png")
        page = {
            "images": [{"id": 1, "file_name": "a.png", "width": W, "height": H}],
            "annotations": [{"id": i, "image_id": 1, "iscrowd": 0, **it} for i, it in enumerate(objects)],
            "categories": [{"id": 2, "name": "cat"}, {"id": 4, "name": "dog"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{half}.json").write_text(json.dumps(page))
    return root


def test_masks_are_drawn_small_over_large(tmp_path: Path) -> None:
    source = open_drawn(coco(tmp_path), "train")
    image, labels = source.open(0)
    assert source.class_names == ["background", "cat", "dog"]
    assert source.found == "COCO outlines, annotations/instances_train.json"
    expected = np.zeros((H, W), np.int16)
    expected[area(28, 2, 40, 10)] = IGNORED  # a box says where something is, not which pixels
    expected[area(0, 0, 30, 30)] = 1
    expected[area(5, 5, 15, 15)] = 2
    expected[:, 50:] = 2
    assert image.size == (W, H)
    assert np.array_equal(labels, expected)


def test_a_trained_model_s_labels_are_taken(tmp_path: Path) -> None:
    coco(tmp_path)
    _, labels = open_drawn(tmp_path, "val", trained=["background", "dog", "owl", "cat"]).open(0)
    assert (labels[6, 6], labels[1, 1], labels[39, 0]) == (1, 3, 0)
    _, labels = open_drawn(tmp_path, "val", trained=["dog", "cat"]).open(0)
    assert (labels[6, 6], labels[1, 1], labels[39, 0]) == (0, 1, IGNORED)
    with pytest.raises(ValueError, match="unknown category cat; the model knows background, dog"):
        open_drawn(tmp_path, "val", trained=["background", "dog"])


def test_yolo_polygons_become_masks_and_boxes_alone_are_refused(tmp_path: Path) -> None:
    points = " ".join(f"{x / W} {y / H}" for x, y in ((10, 5), (40, 5), (40, 25), (10, 25)))
    for half in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / half).mkdir(parents=True)
        Image.new("RGB", (W, H)).save(tmp_path / f"images/{half}/a.png")
        (tmp_path / f"labels/{half}/a.txt").write_text(f"1 {points}\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    _, labels = open_drawn(tmp_path, "train").open(0)
    assert np.array_equal(labels, np.where(area(10, 5, 40, 25), 2, 0))
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match="1 boxes and no outline of an object"):
        open_drawn(tmp_path, "train")


def recipe(root: Path, **data: object):
    return parse_recipe(
        {
            "task": "segmentation",
            "model": {"name": "crossformerpp_small"},
            "head": {"name": "semantic_fpn"},
            "data": {"source": "folder", "root": root, **data},
            "trainer": {"steps": 1},
        },
        "test",
    )


def test_recipes_find_outlines_and_prefer_masks(tmp_path: Path) -> None:
    coco(tmp_path)
    assert open_masks(recipe(tmp_path), "train", None).found.startswith("COCO outlines")
    for half in ("train", "val"):
        (tmp_path / "masks" / half).mkdir(parents=True)
        Image.fromarray(np.ones((H, W), np.uint8)).save(tmp_path / f"masks/{half}/a.png")
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    assert open_masks(recipe(tmp_path), "train", None).found == "index masks"
    assert open_masks(recipe(tmp_path, format="coco"), "train", None).class_names == [
        "background",
        "cat",
        "dog",
    ]


RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)


def colored(root: Path, **splits: list[tuple[int, int, int]]) -> np.ndarray:
    """A mask per split, in columns of the given colours; returns the column of each pixel."""
    columns = np.arange(W) * 3 // W
    for half, colors in splits.items():
        for folder in ("images", "masks"):
            (root / folder / half).mkdir(parents=True)
        pixels = np.array(colors, np.uint8)[columns][None].repeat(H, 0)
        Image.fromarray(pixels).save(root / f"masks/{half}/a.png")
        Image.new("RGB", (W, H)).save(root / f"images/{half}/a.png")
    return columns[None].repeat(H, 0)


def test_colours_are_found_in_the_masks_themselves(tmp_path: Path) -> None:
    columns = colored(tmp_path, train=[RED, BLACK, BLUE], val=[BLUE, BLUE, RED])
    source = open_folder(tmp_path, "train")
    assert source.class_names == ["#000000", "#0000ff", "#ff0000"]
    assert source.found == "masks of 3 colours"
    assert np.array_equal(source.open(0)[1], np.array([2, 0, 1])[columns])
    val = open_folder(tmp_path, "val", trained=source.class_names)
    assert np.array_equal(val.open(0)[1], np.array([1, 1, 2])[columns])
    assert class_colors(recipe(tmp_path).data, source.class_names) == [BLACK, BLUE, RED]


def test_colours_that_only_validation_has_are_refused_by_file(tmp_path: Path) -> None:
    colored(tmp_path, train=[RED, BLACK, BLUE], val=[RED, BLACK, (0, 9, 0)])
    (_, train), (_, val) = open_splits(tmp_path)
    assert train.class_names == val.class_names
    with pytest.raises(ValueError, match=r"val/a.png: colour \(0, 9, 0\) at x 40, y 0 is not in the palette"):
        val.open(0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nvoid,0,0,0\nroad,255,0,0\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:0,0,255::\nvoid:0,0,0::\nroad:255,0,0::\n"),
    ],
)
@pytest.mark.parametrize("folder", ["masks", "Masks"])
def test_tables_of_colours_are_found(tmp_path: Path, name: str, text: str, folder: str) -> None:
    columns = colored(tmp_path, train=[RED, BLACK, BLUE])
    (tmp_path / "images/train").rename(tmp_path / "images/val")
    (tmp_path / "masks/train").rename(tmp_path / "masks/val")
    (tmp_path / "masks").rename(tmp_path / folder)
    (tmp_path / name).write_text(text)
    source = open_folder(tmp_path, "val")
    assert source.class_names == ["sky", "road"]
    assert np.array_equal(source.open(0)[1], np.array([1, IGNORED, 0])[columns])
    assert class_colors(recipe(tmp_path).data, source.class_names) == [BLUE, RED]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_black_masks_among_masks_of_colours_mean_black(tmp_path: Path, mode: str) -> None:
    """Programs save a mask of black pixels alone with one channel; black need not be the first class."""
    columns = colored(tmp_path, train=[RED, BLACK, BLUE], val=[RED, BLACK, BLUE])
    for half in ("train", "val"):
        Image.new(mode, (W, H)).save(tmp_path / f"masks/{half}/0.png")
        Image.new("RGB", (W, H)).save(tmp_path / f"images/{half}/0.png")
    assert open_folder(tmp_path, "train").class_names == ["#000000", "#0000ff", "#ff0000"]
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,0,0,255\nnight,0,0,0\nroad,255,0,0\n")
    for half in ("train", "val"):
        source = open_folder(tmp_path, half)  # type: ignore[arg-type]
        assert source.names == ["0.png", "a.png"]
        assert (source.open(0)[1] == 1).all()
        assert np.array_equal(source.open(1)[1], np.array([2, 1, 0])[columns])


def test_a_table_may_name_greys_alone(tmp_path: Path) -> None:
    white = (255, 255, 255)
    columns = colored(tmp_path, train=[white, BLACK, white], val=[BLACK, BLACK, white])
    Image.open(tmp_path / "masks/val/a.png").convert("L").save(tmp_path / "masks/val/a.png")
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nother,0,0,0\nhouse,255,255,255\n")
    assert np.array_equal(open_folder(tmp_path, "train").open(0)[1], np.array([1, 0, 1])[columns])
    assert np.array_equal(open_folder(tmp_path, "val").open(0)[1], np.array([0, 0, 1])[columns])


def test_smoothed_masks_and_bad_tables_are_refused(tmp_path: Path) -> None:
    colored(tmp_path, train=[RED, BLACK, BLUE], val=[RED, BLACK, BLUE])
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks/train/a.png")
    with pytest.raises(ValueError, match=r"more than 256 colours in 1 of 1 masks.*write .*palette.csv"):
        open_folder(tmp_path, "train")
    (tmp_path / "labelmap.txt").write_text("sky:0,0,255::\nroad:300,0,0::\n")
    with pytest.raises(ValueError, match=r"labelmap.txt, line 2: expected name:r,g,b"):
        open_folder(tmp_path, "train")
