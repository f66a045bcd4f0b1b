"""digit_scenes: exact boxes and masks, nothing shared between splits, nothing half written."""

import json

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data.scenes import SceneMaker, default_folder, run_lengths, write_digit_scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=12, val=4, size=128)


def _decode(rle):
    counts = rle["counts"]
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(rle["size"][::-1]).T


@pytest.mark.parametrize("which", ["train", "val"])
def test_boxes_areas_and_both_layouts_agree(root, which):
    page = json.loads((root / f"annotations/instances_{which}.json").read_text())
    names = {category["id"]: category["name"] for category in page["categories"]}
    assert names == {number + 1: str(number) for number in range(10)}
    assert len(page["annotations"]) > len(page["images"])
    for image in page["images"]:
        with Image.open(root / "images" / which / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (128, 128)
        index = np.asarray(Image.open(root / "masks" / which / image["file_name"].replace(".jpg", ".png")))
        rebuilt = np.zeros_like(index)
        for annotation in page["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            mask = _decode(annotation["segmentation"])
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum() > 0
            assert not rebuilt[mask].any(), "visible masks of one scene never overlap"
            rebuilt[mask] = annotation["category_id"]
        assert (rebuilt == index).all()


def test_a_scene_depends_on_its_seed_alone(root):
    maker = SceneMaker("val", 96)
    first = maker.draw(np.random.default_rng(5))
    maker.draw(np.random.default_rng(6))
    again, other = maker.draw(np.random.default_rng(5)), maker.draw(np.random.default_rng(7))
    assert (first.image == again.image).all()
    assert first.labels == again.labels
    assert (first.image != other.image).any()


def test_splits_share_neither_digits_nor_photographs():
    train, val = SceneMaker("train", 64), SceneMaker("val", 64)
    assert len(train.scans) + len(val.scans) == 1797
    photographs = [{photo.tobytes() for photo in maker.photographs} for maker in (train, val)]
    assert not photographs[0] & photographs[1]


@pytest.mark.parametrize("mask", [[[0, 1], [1, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
def test_run_lengths_are_coco_s(mask):
    from pycocotools import mask as coco

    array = np.asarray(mask, bool)
    rle = run_lengths(array)
    assert sum(rle["counts"]) == array.size
    assert (coco.decode(coco.frPyObjects(rle, 2, 2)).astype(bool) == array).all()


def test_a_finished_folder_is_kept_and_another_is_refused(root, tmp_path):
    before = (root / "digit_scenes.json").stat().st_mtime_ns
    write_digit_scenes(root, train=12, val=4, size=128)
    assert (root / "digit_scenes.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="name another folder"):
        write_digit_scenes(root, train=13, val=4, size=128)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="in the way"):
        write_digit_scenes(tmp_path / "mine", train=2, val=1, size=64)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "no draft stays behind"


def test_scenes_of_many_small_digits(tmp_path):
    digits, side = (8, 12), (0.05, 0.08)
    root = write_digit_scenes(tmp_path / "small", train=6, val=1, size=256, digits=digits, side=side)
    page = json.loads((root / "annotations/instances_train.json").read_text())
    counts = [sum(a["image_id"] == image["id"] for a in page["annotations"]) for image in page["images"]]
    assert all(8 <= count <= 12 or count == 0 for count in counts)
    sides = [max(a["bbox"][2:]) for a in page["annotations"]]
    assert 6 < min(sides) <= max(sides) < 0.08 * 256 * 1.5  # turned, and without the empty rim of the scan
    assert default_folder(6, 1, 256, 0) != default_folder(6, 1, 256, 0, digits, side)
    with pytest.raises(ValueError, match="holds the digit_scenes"):
        write_digit_scenes(tmp_path / "small", train=6, val=1, size=256)
