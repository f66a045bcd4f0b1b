"""Tiles cover images, training tiles show what is left of objects, and what is found in tiles is put together."""

import json

import numpy as np
import pytest
from PIL import Image

from crossformerpp import engine, predict
from crossformerpp.analysis.predictions import ObjectPrediction, Predictor
from crossformerpp.analysis.tiled import TiledPredictor, merge_tiles, tiles_of
from crossformerpp.data.coco_images import CocoImage, CocoObject
from crossformerpp.data.detection import TrainImages, cut_tiles, train_transform
from crossformerpp.data.images import read_image
from crossformerpp.data.masks import decode, encode_mask
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.data.tiles import Tile, tile_grid, visible_share
from crossformerpp.recipes.load import load_recipe, parse_recipe
from crossformerpp.recipes.tiles import TilesSection, tile_overrides


@pytest.mark.parametrize(
    ("width", "height", "size", "overlap"),
    [
        (1000, 700, 256, 0.2),
        (256, 256, 256, 0.5),
        (257, 90, 256, 0.0),
        (40, 3000, 64, 0.9),
        (999, 1, 32, 0.3),
    ],
)
def test_a_grid_covers_the_image_and_overlaps_as_asked(width, height, size, overlap):
    tiles = tile_grid(width, height, size, overlap)
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        seen[top:bottom, left:right] = True
    assert seen.all()
    for starts in ({tile.left for tile in tiles}, {tile.top for tile in tiles}):
        steps = np.diff(sorted(starts))
        assert (steps <= max(1, size * (1 - overlap))).all()
    assert len(set(tiles)) == len(tiles)


def test_an_object_smaller_than_the_overlap_is_whole_in_some_tile():
    rng = np.random.default_rng(0)
    tiles = tile_grid(900, 640, 200, 0.25)
    for _ in range(500):
        x, y = rng.uniform(0, 850), rng.uniform(0, 590)
        assert max(visible_share((x, y, x + 50, y + 50), tile) for tile in tiles) == pytest.approx(1)


# --- merging against an independent computation


def random_tiles(seed, whole=False):
    """Detections of a noisy detector that sees each object through each tile, and some that are not there."""
    rng = np.random.default_rng(seed)
    width, height = 300, 220
    tiles = tiles_of(width, height, TilesSection(size=100, overlap=0.3, whole=whole))
    objects = [
        (int(rng.integers(2)), rng.uniform([0, 0], [250, 180]), rng.uniform(5, 120, size=2))
        for _ in range(14)
    ]
    found = [[] for _ in tiles]
    for part, (left, top, right, bottom) in zip(found, tiles, strict=True):
        for label, (x, y), sides in objects:
            low = np.maximum([x, y], [left, top]) + rng.normal(0, 2, size=2)
            high = np.minimum(np.add([x, y], sides), [right, bottom]) + rng.normal(0, 2, size=2)
            low, high = np.maximum(low, [left, top]), np.minimum(high, [right, bottom])
            if (high - low > 3).all() and rng.random() < 0.9:
                bbox = [*(low - [left, top]).tolist(), *(high - low).tolist()]
                part.append({"label": label, "bbox": bbox, "score": float(rng.random())})
    return found, tiles, width, height


def brute_force(found, tiles, width, height):
    """The three rules of `merge_tiles`, box by box."""
    image = Tile(0, 0, width, height)
    views = []  # (score, box, tile number, label)
    for number, part in enumerate(found):
        for thing in part:
            x, y, w, h = thing["bbox"]
            left, top = tiles[number][:2]
            views.append(
                (thing["score"], (x + left, y + top, x + left + w, y + top + h), number, thing["label"])
            )

    def is_cut(box, tile):
        for axis in (0, 1):
            near = max(2.0, 0.1 * (box[2 + axis] - box[axis]))
            if tile[axis] != image[axis] and box[axis] - tile[axis] < near:
                return True
            if tile[2 + axis] != image[2 + axis] and tile[2 + axis] - box[2 + axis] < near:
                return True
        return False

    def is_inside(box, tile):
        return box[0] >= tile[0] and box[1] >= tile[1] and box[2] <= tile[2] and box[3] <= tile[3]

    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    def common(a, b):
        return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))

    def is_alike(one, other):
        shared = common(tiles[one[2]], tiles[other[2]])
        a, b = common(one[1], shared), common(other[1], shared)
        both = area(common(a, b))
        return both > 0 and both / (area(a) + area(b) - both) >= 0.5

    left = []
    for view in views:
        others = [t for n, t in enumerate(tiles) if n != view[2] and t != image]
        better = any(is_inside(view[1], t) and not is_cut(view[1], t) for t in others)
        if not (is_cut(view[1], tiles[view[2]]) and better):
            left.append(view)
    left.sort(key=lambda view: -view[0])
    merged = []
    while left:
        group = [left.pop(0)]
        while True:
            for view in left:
                fits = view[3] == group[0][3] and all(view[2] != member[2] for member in group)
                if fits and any(is_alike(view, member) for member in group):
                    break
            else:
                break
            left.remove(view)
            group.append(view)
        whole = [view for view in sorted(group, reverse=True) if not is_cut(view[1], tiles[view[2]])]
        boxes = [view[1] for view in (whole[:1] or group)]
        box = [
            min(b[0] for b in boxes),
            min(b[1] for b in boxes),
            max(b[2] for b in boxes),
            max(b[3] for b in boxes),
        ]
        merged.append((group[0][0], group[0][3], box))
    return sorted(merged, reverse=True)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_merging_is_what_its_rules_say(seed, whole):
    arguments = random_tiles(seed, whole)
    merged, expected = merge_tiles(*arguments), brute_force(*arguments)
    assert 5 < len(merged) < sum(map(len, arguments[0]))
    assert [(thing["score"], thing["label"]) for thing in merged] == [entry[:2] for entry in expected]
    for thing, (_, _, box) in zip(merged, expected, strict=True):
        x, y, width, height = thing["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], box, atol=1e-9)


class Eye(Predictor[ObjectPrediction]):
    """A perfect detector: finds the coloured rectangles of a picture, with masks, as far as it sees them."""

    class_names = ("only",)
    columns = ObjectPrediction.columns

    def __init__(self, least):
        self.least = least
        self.seen = []

    def prepare(self, image):
        return np.asarray(image)[..., 0]

    def predict(self, prepared):
        return [self._one(pixels) for pixels in prepared]

    def _one(self, pixels):
        self.seen.append(pixels.shape)
        found = []
        for value in np.unique(pixels[pixels > 0]):
            rows, columns = np.nonzero(pixels == value)
            if len(rows) >= self.least:
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                mask = encode_mask(pixels == value)
                score = 0.5 + 0.4 * min(1, len(rows) / 1e4)
                found.append(
                    {"label": 0, "bbox": [float(v) for v in box], "score": score, "segmentation": mask}
                )
        return ObjectPrediction(found, list(self.class_names))


@pytest.mark.parametrize("whole", [False, True])
def test_objects_across_borders_come_back_whole(whole):
    """Small ones between two tiles, one that four tiles share, one larger than any tile: boxes and masks are exact."""
    pixels = np.zeros((400, 600, 3), np.uint8)
    boxes = [(90, 20, 20, 30), (5, 5, 10, 10), (60, 70, 60, 60), (150, 150, 300, 90), (300, 20, 25, 110)]
    for value, (x, y, width, height) in enumerate(boxes, start=1):
        pixels[y : y + height, x : x + width] = value
    eye = Eye(least=40)
    predictor = TiledPredictor(eye, TilesSection(size=100, overlap=0.3, whole=whole))
    prediction = predictor(Image.fromarray(pixels))
    assert sorted(tuple(thing["bbox"]) for thing in prediction.found) == sorted(boxes)
    for thing in prediction.found:
        x, y, width, height = (int(value) for value in thing["bbox"])
        mask = np.zeros((400, 600), np.uint8)
        mask[y : y + height, x : x + width] = 1
        assert (decode(thing["segmentation"]) == mask).all()
    assert set(eye.seen) == ({(100, 100), (400, 600)} if whole else {(100, 100)})


def test_a_small_image_is_one_tile_and_keeps_its_answer():
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:20, 10:30] = 1
    eye = Eye(least=1)
    tiled = TiledPredictor(eye, TilesSection(size=100, whole=True))(Image.fromarray(pixels))
    assert tiled.found == eye(Image.fromarray(pixels)).found


def test_no_tile_finds_anything():
    tiles = tile_grid(200, 100, 100, 0.2)
    assert merge_tiles([[] for _ in tiles], tiles, 200, 100) == []


# --- training


def picture(tmp_path, objects, size=(300, 200)):
    """An image whose first channel holds an object's number where the object is."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    things = []
    for number, (x, y, width, height) in enumerate(objects, start=1):
        pixels[max(0, y) : y + height, max(0, x) : x + width, 0] = number
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        box = (x, y, x + width, y + height)
        things.append(CocoObject(number - 1, box, width * height, segmentation=[[float(v) for v in polygon]]))
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return CocoImage(1, tmp_path / "image.png", *size, tuple(things))


@pytest.mark.parametrize("with_masks", [False, True])
def test_training_tiles_hold_what_is_left_of_objects(tmp_path, with_masks):
    objects = [(10, 10, 20, 20), (70, 50, 60, 40), (250, 150, 80, 80), (88, 120, 16, 10)]
    image = picture(tmp_path, objects)
    tiles = cut_tiles([image], 100, 0.0, whole=False, min_visible=0.4)
    assert len(tiles) == 6
    dataset = TrainImages(tiles, train_transform([100], 100, 0.0, 0.0), with_masks)
    labels = []
    for number, part in enumerate(tiles):
        pixels, target = dataset[number]
        assert pixels.shape == (3, 100, 100)
        labels += target["labels"].tolist()
        assert target["removed"] == part.num_cut
        for index, (label, box) in enumerate(
            zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ):
            rows, columns = np.nonzero(pixels[0].numpy() == label + 1)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if with_masks:
                assert (target["masks"][index].numpy() == (pixels[0].numpy() == label + 1)).all()
    # whole; in halves of which 30 of 60 columns and 40 of 40 or 10 rows …; clipped by the image; 12 of 16 columns
    shares = {0: 1, 1: 2, 2: 1, 3: 1}
    assert {label: labels.count(label) for label in shares} == shares
    assert sum(part.num_cut for part in tiles) == 1  # 4 of 16 columns are too little


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("detection", None, None), []),
        (("detection", 640, None), ["data.tiles={size: 640, overlap: 0.2}"]),
    ],
)
def test_the_option_sets_the_recipe_of_a_detector(arguments, expected):
    assert tile_overrides(*arguments) == expected
    recipe = load_recipe("objects", expected)
    if expected:
        assert recipe.data.tiles == TilesSection(size=640, overlap=0.2)


@pytest.mark.parametrize(
    ("size", "overlap", "stride"),
    [(512, 0.25, 384), (512, 0.34, 336), (512, None, 408), (1024, None, 816), (32, 0.99, 4), (64, 0.0, 64)],
)
def test_the_option_sets_the_recipe_of_a_segmenter(size, overlap, stride):
    """Windows overlap at least as much as asked for, by a multiple of 4."""
    recipe = load_recipe("masks", tile_overrides("segmentation", size, overlap))
    found = (
        recipe.inference.mode,
        recipe.inference.short_side,
        recipe.inference.window,
        recipe.inference.stride,
    )
    assert found == ("slide", None, size, stride)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("classification", 640, 0.2), "not for classification"),
        (("detection", None, 0.2), "pass --tiles SIZE"),
        (("detection", 640, 1.0), "--overlap 1"),
        (("detection", 8, 0.2), "--tiles 8"),
        (("segmentation", 510, None), "--tiles 510.*multiple of 4"),
    ],
)
def test_bad_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        tile_overrides(*arguments)


# --- the whole path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A detector that barely learnt, in tiles of 64 pixels: (run folder, folder of scenes)."""
    folder = tmp_path_factory.mktemp("tiles")
    scenes = write_digit_scenes(folder / "scenes", train=4, val=2, size=128)
    options = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    options |= {"group_sizes": [4, 4, 4, 2], "intervals": [2, 1, 1, 1]}
    page = {
        "task": "detection",
        "model": {"name": "crossformerpp_small", "options": options},
        "data": {"root": scenes, "short_side": [64], "long_side": 64, "tiles": {"size": 64, "overlap": 0.25}},
        "detector": {"name": "retinanet", "pyramid_channels": 16, "min_score": 0.01, "max_detections": 5},
        "trainer": {"steps": 1, "batch_size": 2, "workers": 0, "accelerator": "cpu", "threads": 1},
    }
    engine.train(parse_recipe(page, "test"), folder / "run")
    return folder / "run", scenes


def objects_in(predictor, scenes):
    files = sorted((scenes / "images" / "val").iterdir())
    return [predictor(read_image(file)).to_json()["objects"] for file in files]


def test_predict_finds_what_eval_found_tile_by_tile(run):
    folder, scenes = run
    predictor = predict.load_predictor(folder, "cpu", min_score=0.01)
    results = json.loads((folder / "detections.json").read_text())
    found = objects_in(predictor, scenes)
    assert sum(map(len, found)) == len(results) > 10  # more than the 5 that a tile may have
    for number, objects in enumerate(found, start=1):
        expected = [entry for entry in results if entry["image_id"] == number]
        for ours, theirs in zip(objects, expected, strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.01)


def test_worker_processes_hand_tiles_over(run, tmp_path):
    folder, scenes = run
    predictor = predict.load_predictor(folder, "cpu", min_score=0.01)
    files = sorted((scenes / "images" / "val").iterdir())
    found = list(predict.predict(predictor, files, tmp_path / "out", workers=1, batch_size=1))
    assert [one.to_json()["objects"] for one in found] == objects_in(predictor, scenes)


def test_a_run_cannot_go_on_with_other_tiles(run):
    with pytest.raises(ValueError, match=r"changed data\.tiles\.size: 64 → 80"):
        engine.resume(run[0], ["data.tiles.size=80"])
