"""COCO's format: what is read, what is left out with a count, what is refused."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from crossformerpp.data.check import check_objects
from crossformerpp.data.coco import CocoObject, find_split, open_coco, read_coco, suspicion
from crossformerpp.data.coco_values import run_lengths, whole
from crossformerpp.data.detection import (
    EvalImages,
    TrainImages,
    aspect_groups,
    collate,
    train_transform,
    whole_tiles,
)
from crossformerpp.data.masks import encode_mask

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
OTHER_SIZE = {"size": [9, 9], "counts": [81]}
TOO_SHORT = {"size": [48, 64], "counts": [5]}


def write(
    root, annotations, images=((1, 64, 48), (5, 48, 64)), categories=((3, "cat"), (90, "dog")), missing=()
):
    """A data set of grey images under `root`; annotations are (image, category, box, segmentation, …)."""
    folder = root / "images" / "train"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, width, height in images:
        if number not in missing:
            Image.new("RGB", (width, height), "gray").save(folder / f"{number}.png")
    page = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, w, h in images],
        "annotations": [
            {"id": i, "image_id": n, "category_id": c, "bbox": b, "iscrowd": 0, **more}
            for i, (n, c, b, more) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps(page))
    return file, folder


def test_labels_are_dense_whatever_the_ids(tmp_path):
    coco = read_coco(*write(tmp_path, [(1, 90, [1, 2, 3, 4], {}), (5, 3, [1, 2, 3, 4], {})]))
    assert coco.class_names == ["cat", "dog"]
    assert coco.category_ids == [3, 90]
    assert [thing.label for image in coco.images for thing in image.objects] == [1, 0]
    assert coco.images[0].objects[0].box == (1, 2, 4, 6)
    assert not coco.problems.found


DAMAGED = "run lengths that are damaged: they do not add up to the image"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ((1, 3, [5, 5, 0, 4], {}), "degenerate box"),
        ((1, 3, [5, 5, 4, -1], {}), "degenerate box"),
        ((1, 3, [64, 5, 4, 4], {}), "box outside its image"),
        ((1, 3, [-9, 5, 4, 4], {}), "box outside its image"),
        ((1, 3, [1, 2, 3], {}), "box that is not [x, y, width, height]"),
        ((1, 3, [1, 2, 3, float("nan")], {}), "box that is not [x, y, width, height]"),
        ((1, 4, [1, 2, 3, 4], {}), "unknown category"),
        ((2, 3, [1, 2, 3, 4], {}), "annotation of an unknown image"),
        ((1, 3, [1, 2, 3, 4], {"segmentation": [[1, 1, 5, 5]]}), "polygon of fewer than 3 points"),
        ((1, 3, [1, 2, 3, 4], {"segmentation": OTHER_SIZE}), "mask of another size than its image"),
        ((1, 3, [1, 2, 3, 4], {"segmentation": TOO_SHORT}), DAMAGED),
        ((1, 3, [1, 2, 3, 4], {}), "object without a mask"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, entry, problem):
    good = (5, 90, [10, 10, 20, 20], {"segmentation": SQUARE})
    files = write(tmp_path, [entry, good, entry])
    with pytest.warns(UserWarning, match="instances_train.json: left out") as caught:
        coco = open_coco(*files, with_masks=True)
    assert len(coco.problems.found[problem]) == 2
    assert [len(image.objects) for image in coco.images] == [0, 1]
    assert f"2 × {problem}" in str(caught[0].message)


def test_a_missing_image_is_left_out_with_its_objects(tmp_path):
    files = write(tmp_path, [(1, 3, [1, 2, 3, 4], {}), (5, 3, [1, 2, 3, 4], {})], missing=(1,))
    coco = read_coco(*files)
    assert [image.id for image in coco.images] == [5]
    assert coco.problems.found == {"missing image": ["1.png"]}


@pytest.mark.parametrize(
    ("annotations", "options", "message"),
    [
        ([], {}, "no annotation can be used"),
        ([(1, 3, [1, 1, 0, 0], {})], {}, "1 × degenerate box"),
        ([(1, 3, [1, 2, 3, 4], {"iscrowd": 1})], {}, "no annotation can be used"),
        ([(1, 3, [1, 2, 3, 4], {})], {"with_masks": True}, "--set detector.name=retinanet"),
        ([(1, 3, [1, 2, 3, 4], {})], {"class_names": ["cat", "ape"]}, "unknown category dog; the model knows cat, ape"),
    ],
)  # fmt: skip
def test_hopeless_sets_are_refused(tmp_path, annotations, options, message):
    with pytest.raises(ValueError, match=message):
        open_coco(*write(tmp_path, annotations), **options)


def test_a_set_without_any_image_file_is_refused(tmp_path):
    files = write(tmp_path, [(1, 3, [1, 2, 3, 4], {})], missing=(1, 5))
    with pytest.raises(ValueError, match="none of its images is in"):
        open_coco(*files)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [], "categories": [{}]}']
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_coco(tmp_path / "a.json", tmp_path)


def test_labels_follow_the_model_s_classes(tmp_path):
    files = write(tmp_path, [(1, 90, [1, 2, 3, 4], {}), (5, 3, [1, 2, 3, 4], {})])
    coco = read_coco(*files, class_names=["dog", "bird", "cat"])
    assert [thing.label for image in coco.images for thing in image.objects] == [0, 2]
    assert coco.category_ids[0] == 90
    assert coco.category_ids[2] == 3
    assert len(set(coco.category_ids)) == 3


def test_polygons_and_both_run_lengths_give_the_same_mask(tmp_path):
    compressed = coco_mask.merge(coco_mask.frPyObjects(SQUARE, 48, 64))
    mask = coco_mask.decode(compressed)
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    forms = [
        SQUARE,
        {"size": [48, 64], "counts": compressed["counts"].decode()},
        {"size": [48, 64], "counts": counts},
    ]
    annotations = [(1, 3, [10, 10, 20, 20], {"segmentation": form}) for form in forms]
    coco = open_coco(*write(tmp_path, annotations), with_masks=True)
    _, target = TrainImages(whole_tiles(coco.images), train_transform([48], 64, 0.0, 0.0), with_masks=True)[0]
    assert (target["masks"].numpy() == mask).all()


def test_training_targets_follow_the_image(tmp_path):
    """Resized and mirrored: boxes and masks stay on their object, crowds are gone, all stays inside."""
    annotations = [
        (1, 3, [10, 10, 20, 20], {"segmentation": SQUARE}),
        (1, 90, [50, 30, 40, 40], {"segmentation": [[50, 30, 63, 30, 63, 47, 50, 47]]}),  # beyond the image
        (1, 3, [0, 0, 64, 48], {"segmentation": SQUARE, "iscrowd": 1}),
    ]
    coco = open_coco(*write(tmp_path, annotations), with_masks=True)
    dataset = TrainImages(whole_tiles(coco.images), train_transform([96], 1000, 1.0, 0.3), with_masks=True)
    image, target = dataset[0]
    assert image.shape == (3, 96, 128)
    assert image.dtype == torch.uint8
    assert target["labels"].tolist() == [0, 1]
    assert target["boxes"][0].tolist() == [68, 20, 108, 60]  # 128 − 2·30, …
    assert target["boxes"][1].tolist() == [0, 60, 28, 96]
    rows, columns = np.nonzero(target["masks"][0].numpy())
    assert abs(columns.min() - 68) <= 2
    assert abs(rows.max() - 60) <= 2
    images, targets = collate([dataset[0], dataset[1]])
    assert targets[1]["boxes"].shape == (0, 4)
    assert targets[1]["masks"].shape == (0, *images[1].shape[1:])
    assert aspect_groups(whole_tiles(coco.images)) == [1, 0]


def test_evaluation_sees_the_whole_truth(tmp_path):
    annotations = [(1, 90, [1, 2, 3, 4], {"area": 5.5}), (1, 3, [0, 0, 64, 48], {"iscrowd": 1})]
    image, truth = EvalImages(read_coco(*write(tmp_path, annotations)), with_masks=False)[0]
    assert image.shape == (3, 48, 64)
    assert truth["image_id"] == 1
    assert [thing["iscrowd"] for thing in truth["objects"]] == [0, 1]
    assert truth["objects"][0] == {"label": 1, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 0}


def test_an_image_of_another_size_is_named(tmp_path):
    file, folder = write(tmp_path, [(1, 3, [1, 2, 3, 4], {})])
    Image.new("RGB", (48, 64)).save(folder / "1.png")
    coco = read_coco(file, folder)
    with pytest.raises(ValueError, match=r"1\.png: 48x64 pixels, but its annotations are for 64x48"):
        EvalImages(coco, with_masks=False)[0]
    (report,) = check_objects(file)
    assert any("another size than annotated (1.png is 48x64, not 64x48)" in line for line in report.problems)


def test_check_tells_everything_at_once(tmp_path):
    annotations = [
        (1, 3, [50, 30, 40, 40], {"segmentation": SQUARE}),
        (1, 3, [5, 5, 0, 4], {}),
        (7, 3, [0, 0, 1, 1], {}),
    ]
    _, folder = write(
        tmp_path, annotations, images=((1, 64, 48), (5, 48, 64), (7, 1, 1), (8, 50, 50)), missing=(5,)
    )
    (folder / "8.png").write_bytes(b"no image")
    (report,) = check_objects(tmp_path)
    assert report.images == folder
    assert report.counts["images"] == 3
    assert report.counts["objects"] == 2
    text = "\n".join(report.problems)
    for problem in (
        "1 × missing image (5.png)",
        "1 × degenerate box (annotation 1)",
        "1 × unreadable image (8.png",
        "1 × image below 32 pixels (7.png is 1x1)",
        "1 × box that reaches beyond its image",
        "no val annotations in COCO's format (looked for annotations/instances_val2017.json, ",
    ):
        assert problem in text
    assert report.notes == ["1 × category without objects (dog)"]


def test_what_may_be_meant_so_is_a_note(tmp_path):
    file, _ = write(tmp_path, [(1, 3, [1, 2, 3, 4], {})])
    (report,) = check_objects(file)
    assert report.problems == []
    assert report.notes == [
        "1 × category without objects (dog)",
        "no masks: train with --set detector.name=retinanet",
    ]


@pytest.mark.parametrize("are_corners", [True, False])
def test_corners_are_told_from_sizes(tmp_path, are_corners):
    boxes = [(5, 5, 60, 40), (30, 20, 50, 45), (2, 3, 20, 15), (40, 10, 63, 30)]
    sizes = [(left, top, right - left, bottom - top) for left, top, right, bottom in boxes]
    file, _ = write(tmp_path, [(1, 3, box, {}) for box in (boxes if are_corners else sizes)])
    (report,) = check_objects(file)
    assert ("the boxes look like corners" in "".join(report.problems)) == are_corners


def test_folders_of_something_else_are_told_what_is_looked_for(tmp_path):
    for text in (
        "train/_annotations.coco.json",
        "data.yaml",
        "Annotations/",
        "images and masks",
        "class folders",
    ):
        with pytest.raises(ValueError, match=f"no train annotations in .*{text}"):
            list(check_objects(tmp_path))


def test_a_missing_folder_of_images_can_be_named(tmp_path):
    file, folder = write(tmp_path, [(1, 3, [1, 2, 3, 4], {})])
    folder.parent.rename(tmp_path / "photos")
    settings = "data.train_annotations=annotations/instances_train.json --set data.train_images=…"
    with pytest.raises(ValueError, match=settings):
        find_split(tmp_path, "train")
    (report,) = check_objects(file, tmp_path / "photos" / "train")
    assert report.counts["images"] == 2


def test_usual_layouts_are_found(tmp_path):
    for annotations, images in (
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "images/val"),
        ("valid/_annotations.coco.json", "valid"),
    ):
        root = tmp_path / images.replace("/", "_")
        (root / images).mkdir(parents=True)
        (root / annotations).parent.mkdir(exist_ok=True)
        (root / annotations).write_text("{}")
        assert find_split(root, "val") == (root / annotations, root / images)
    with pytest.raises(ValueError, match="no train annotations in COCO's format"):
        find_split(tmp_path, "train")


def page_of(tmp_path, **changes):
    """Two images of 64 × 48 with a square each, and what `changes` puts in the place of their entries."""
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    page = {
        "images": [
            {"id": i + 1, "file_name": f"{n}.png", "width": 64, "height": 48} for i, n in enumerate("ab")
        ],
        "annotations": [
            {"id": i, "image_id": i + 1, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
            for i in (0, 1)
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    for key, entries in changes.items():
        for old, new in zip(page[key], entries, strict=True):
            old.update(new)
    (tmp_path / "a.json").write_text(json.dumps(page))
    return tmp_path / "a.json", folder


def test_two_images_of_one_id_are_both_left_out(tmp_path):
    files = page_of(tmp_path, images=[{}, {"id": 1}], annotations=[{}, {"image_id": 1}])
    coco = read_coco(*files)
    assert coco.images == []
    assert coco.problems.found == {
        "image id used twice (all of its images are left out)": ["1"],
        "annotation of an image id that is used twice": ["annotation 0", "annotation 1"],
    }


def test_crowds_alone_are_nothing_to_learn_from(tmp_path):
    with pytest.raises(ValueError, match=r"no annotation can be used \(it has none but crowds\)"):
        open_coco(*page_of(tmp_path, annotations=[{"iscrowd": 1}, {"iscrowd": 1}]))


def test_training_refuses_ids_that_several_images_have(tmp_path):
    files = page_of(tmp_path, images=[{}, {"id": 1}])
    with pytest.raises(ValueError, match="several images have the id 1"):
        open_coco(*files)


def test_a_file_listed_under_two_ids_is_one_image_with_all_objects(tmp_path):
    coco = read_coco(*page_of(tmp_path, images=[{}, {"file_name": "a.png"}]))
    assert [(image.path.name, len(image.objects)) for image in coco.images] == [("a.png", 2)]
    assert coco.problems.found == {"image listed twice (its objects are put together)": ["a.png"]}


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ([{"id": "1"}, {"id": "2"}], [{"image_id": "1"}, {"image_id": 2.0}]),
        ([{"width": "64", "height": 48.0}, {}], [{"category_id": "3"}, {"bbox": ["5", "5.0", 10, "10"]}]),
        ([{}, {}], [{"area": "100"}, {"iscrowd": "0"}]),
    ],
)
def test_numbers_may_be_text(tmp_path, images, annotations):
    coco = read_coco(*page_of(tmp_path, images=images, annotations=annotations))
    assert not coco.problems.found
    assert [image.id for image in coco.images] == [1, 2]
    assert all(image.objects == (CocoObject(0, (5, 5, 15, 15), 100),) for image in coco.images)


@pytest.mark.parametrize(
    "value", [True, None, "x", "", 1.5, "1.5", float("inf"), float("nan"), [], {}, "9" * 5000]
)
def test_what_is_no_whole_number(value):
    assert whole(value) is None


@pytest.mark.parametrize(
    "name",
    [
        "images/train/a.png",
        "images\\train\\a.png",
        "./a.png",
        "/home/me/data/train/a.png",
        "C:\\data\\train\\a.png",
    ],
)
def test_file_names_may_begin_with_the_folders_path_anywhere(tmp_path, name):
    coco = read_coco(*page_of(tmp_path, images=[{"file_name": name}, {}]))
    assert [image.path.name for image in coco.images] == ["a.png", "b.png"]
    assert not coco.problems.found


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..\\..\\x.png", "a\0.png", "", "."])
def test_file_names_that_lead_out_of_the_folder_are_left_out(tmp_path, name):
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "secret.png")
    coco = read_coco(*page_of(tmp_path, images=[{"file_name": name}, {}]))
    assert [image.path.name for image in coco.images] == ["b.png"]
    assert len(coco.problems.found["image outside its folder"]) == 1


def test_file_names_may_be_composed_as_macs_do(tmp_path):
    files = page_of(tmp_path, images=[{"file_name": "é.png"}, {}])
    (files[1] / "a.png").rename(files[1] / unicodedata.normalize("NFD", "é.png"))
    coco = read_coco(*files)
    assert len(coco.images) == 2
    assert coco.images[0].path.is_file()


def test_images_that_no_memory_could_hold_are_left_out(tmp_path):
    coco = read_coco(*page_of(tmp_path, images=[{"width": 10**6, "height": 10**6}, {}]))
    assert [image.id for image in coco.images] == [2]


@pytest.mark.parametrize("box", [[0.1, 0.1, 0.2, 0.2], [0, 0, 1, 1]])
def test_boxes_as_shares_of_the_image_are_refused(tmp_path, box):
    files = page_of(tmp_path, annotations=[{"bbox": box}, {"bbox": box}])
    assert "shares of the image" in suspicion(read_coco(*files))
    with pytest.raises(ValueError, match="multiply x and width by the image's width"):
        open_coco(*files)


def test_training_warns_of_corners(tmp_path):
    corners = {"bbox": [30, 20, 60, 40]}
    files = page_of(tmp_path, annotations=[corners, corners])
    with pytest.warns(UserWarning, match=r"the boxes look like corners \[x1, y1, x2, y2\]"):
        open_coco(*files)


def test_run_lengths_are_read_as_cocos_own_code_reads_them():
    generator = np.random.default_rng(0)
    for density in (0.001, 0.02, 0.5):
        for _ in range(30):
            mask = (generator.random((37, 53)) < density).astype(np.uint8)
            lengths = run_lengths(encode_mask(mask)["counts"])
            values = np.arange(len(lengths)) % 2
            assert np.array_equal(np.repeat(values, lengths).reshape(53, 37).T, mask)


@pytest.mark.parametrize(
    "counts",
    ["zzzz", "P" * 29, "", "\x00", "é", "PPPPPPPPP1", [-5, 100, 6049], [1.5], ["x"], [None], [10**30], 7, {}],
)
def test_damaged_run_lengths_are_counted_not_decoded(tmp_path, counts):
    segmentation = {"size": [48, 64], "counts": counts}
    coco = read_coco(*page_of(tmp_path, annotations=[{"segmentation": segmentation}, {}]))
    assert len(coco.images) == 2
    assert coco.images[0].objects[0].segmentation is None
    assert list(coco.problems.found.values()) == [["annotation 0"]]


def test_polygons_as_they_come(tmp_path):
    flat, text = [5, 5, 15, 5, 15, 15], [["5", "5", "15", "5", "15", "15"]]
    coco = read_coco(*page_of(tmp_path, annotations=[{"segmentation": flat}, {"segmentation": text}]))
    assert [image.objects[0].segmentation for image in coco.images] == [[flat], [flat]]
    far = [[5, 5, 1e9, 5, 15, 15]]
    coco = read_coco(*page_of(tmp_path, annotations=[{"segmentation": far}, {}]))
    assert coco.problems.found == {"polygon far outside its image": ["annotation 0"]}


def test_annotations_with_a_byte_order_mark(tmp_path):
    file, folder = page_of(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_coco(file, folder).images) == 2


def test_the_check_notes_images_that_exif_turns_without_another_size(tmp_path):
    file, folder = page_of(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (64, 48)).save(folder / "a.png", exif=exif)
    (report,) = check_objects(file, folder)
    assert any("turned or mirrored by EXIF" in note and "a.png" in note for note in report.notes)


def test_crowds_may_be_told_by_true(tmp_path):
    things = [(1, 3, [1, 2, 3, 4], {"iscrowd": value}) for value in (True, 1, "1", False, 0, None)]
    (image, _) = read_coco(*write(tmp_path, things)).images
    assert [thing.is_crowd for thing in image.objects] == [True, True, True, False, False, False]


def test_the_check_names_images_that_no_annotation_names_and_sets_of_nothing(tmp_path):
    file, folder = write(tmp_path, [(1, 3, [1, 2, 3, 4], {"iscrowd": 1})])
    Image.new("RGB", (64, 48)).save(folder / "new.png")
    Image.new("RGB", (64, 48)).save(folder / "._new.png", "PNG")
    for place in (tmp_path, file):
        report = next(iter(check_objects(place)))
        assert (
            "1 × image without a usable entry in the annotations (it is left out) (new.png)" in report.notes
        )
        assert "no objects to train on or to evaluate but crowds" in report.problems
