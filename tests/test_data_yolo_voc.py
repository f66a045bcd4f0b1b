"""YOLO's and Pascal VOC's labels, written line by line here, against boxes and masks computed from pixels here."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data.check import check_objects
from crossformerpp.data.coco import CocoSet
from crossformerpp.data.masks import decode, encode
from crossformerpp.data.objects import find_objects, open_objects

W, H = 64, 48
BOX = (8, 6, 40, 30)  # left, top, right, bottom in pixels
TRIANGLE = [(10, 10), (50, 12), (30, 40)]


def picture(path: Path, size: tuple[int, int] = (W, H)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)
    return path


def yolo_box(label: int, box=BOX) -> str:
    left, top, right, bottom = box
    return (
        f"{label} {(left + right) / 2 / W} {(top + bottom) / 2 / H} {(right - left) / W} {(bottom - top) / H}"
    )


def yolo_polygon(label: int, points=TRIANGLE) -> str:
    return f"{label} " + " ".join(f"{x / W:.6f} {y / H:.6f}" for x, y in points)


def yolo(
    root: Path, lines=(), page="path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
) -> Path:
    """Two images of training, one of validation; `lines` are the labels of train/a."""
    for name in ("train/a", "train/b", "val/c"):
        picture(root / f"images/{name}.png")
        (root / f"labels/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(lines) if name == "train/a" and lines else yolo_box(0)
        (root / f"labels/{name}.txt").write_text(text + "\n")
    (root / "data.yaml").write_text(page)
    return root


def things(coco: CocoSet) -> list[tuple[str, str, tuple[float, ...]]]:
    return [
        (image.path.stem, coco.class_names[thing.label], tuple(round(side, 3) for side in thing.box))
        for image in coco.images
        for thing in image.objects
    ]


def test_yolo_boxes_and_polygons(tmp_path: Path) -> None:
    yolo(tmp_path, [yolo_box(1), yolo_polygon(0)])
    found, train = open_objects(tmp_path, "train")
    assert str(found) == "YOLO detection set, data.yaml"
    assert things(train) == [("a", "dog", BOX), ("a", "cat", (10, 10, 50, 40)), ("b", "cat", BOX)]
    assert things(open_objects(tmp_path / "data.yaml", "val")[1]) == [("c", "cat", BOX)]
    assert not train.problems.found


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    yolo(tmp_path, [yolo_box(1), yolo_polygon(0)])
    with pytest.warns(UserWarning, match="2 × object without a mask"):
        _, train = open_objects(tmp_path, "train", with_masks=True)
    (thing,) = train.images[0].objects
    ours, theirs = decode(encode(thing.segmentation, H, W)).astype(bool), inside_triangle()
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95  # the rules for edges differ
    assert thing.area == pytest.approx(abs(10 * (12 - 40) + 50 * (40 - 10) + 30 * (10 - 12)) / 2, rel=1e-4)


def inside_triangle() -> np.ndarray:
    """H × W: the pixels whose centres lie on the inner side of all three edges of TRIANGLE."""
    y, x = np.mgrid[:H, :W] + 0.5
    inside = np.ones((H, W), bool)
    for (x1, y1), (x2, y2) in zip(TRIANGLE, TRIANGLE[1:] + TRIANGLE[:1], strict=True):
        inside &= (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0
    return inside


def test_yolo_pages_as_they_come(tmp_path: Path) -> None:
    for number, page in enumerate(
        (
            "train: ../images/train\nval: ../images/val\nnc: 2\nnames: {0: cat, 1: dog}\n",  # Roboflow's
            "path: /elsewhere\ntrain: /elsewhere/images/train/\nvalid: [images/val]\nnames: [cat, dog]\n",
            "train: train.txt\nval: val.txt\nnames: [cat, dog]\n",
        )
    ):
        root = yolo(tmp_path / str(number), page=page)
        (root / "train.txt").write_text("./images/train/a.png\n/elsewhere/images/train/b.png\n")
        (root / "val.txt").write_text("images/val/c.png\n")
        assert [len(open_objects(root, half)[1].images) for half in ("train", "val")] == [2, 1]
        assert open_objects(root, "val")[1].class_names == ["cat", "dog"]


def test_yolo_without_a_page_and_without_splits(tmp_path: Path) -> None:
    for name in "abcde":
        picture(tmp_path / f"images/{name}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.txt").write_text(yolo_box(0))
    with pytest.raises(ValueError, match=r"write .*/classes.txt, one a line from class 0 on"):
        open_objects(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("cat\n")
    train, val = (open_objects(tmp_path, half, seed=3)[1] for half in ("train", "val"))
    names = [image.path.stem for coco in (train, val) for image in coco.images]
    assert sorted(names) == list("abcde")
    assert len(val.images) == 1
    assert train.is_drawn


def test_yolo_images_turned_by_exif_are_measured_upright(tmp_path: Path) -> None:
    yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (H, W)).save(tmp_path / "images/train/a.png", exif=exif)
    image = open_objects(tmp_path, "train")[1].images[0]
    assert (image.width, image.height) == (W, H)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [yolo_box(0), "2 0.5 0.5 0.1 0.1"],
            r"1 × line with a class that has no name.*a.txt:2: class 2 of 2\)",
        ),
        (
            ["0 20 20 8 8", "0 9 9 2 2"],
            r"2 × line whose coordinates .*divide x.*labels/train/a.txt:1: 20 20 8 8",
        ),
    ],
)
def test_yolo_labels_that_would_teach_nonsense_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    yolo(tmp_path, lines)
    with pytest.raises(ValueError, match=message):
        open_objects(tmp_path, "train")
    report = next(check_objects(tmp_path))
    assert any("labels/train/a.txt:" in line for line in report.problems)


def test_yolo_odd_files_are_counted(tmp_path: Path) -> None:
    yolo(tmp_path, [yolo_box(0), "0 0.5 0.5 0.1", "0 x 0.5 0.1 0.1", "0 0.5 0.5 0 0.1"])
    (tmp_path / "labels/train/b.txt").unlink()
    (tmp_path / "labels/train/lost.txt").write_text(yolo_box(0))
    (tmp_path / "images/train/torn.png").write_bytes(b"no picture")
    train, val = check_objects(tmp_path)
    assert train.found == "YOLO detection set, data.yaml"
    assert train.counts["objects"] == 1
    text = " | ".join(train.problems)
    assert (
        "2 × line that is neither `class x y width height` nor `class` and a polygon (labels/train/a.txt:2: 0 0.5"
        in text
    )
    assert "1 × degenerate box (annotation labels/train/a.txt:4)" in text
    assert "1 × unreadable image (images/train/torn.png: " in text
    assert "1 × label file without an image (labels/train/lost.txt)" in text
    assert any("image without a label file" in note and "images/train/b.png" in note for note in train.notes)
    assert val.problems == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("train: images/train\nval: images/val\n", "no names of classes"),
        (
            "train: images/train\nval: images/val\nnc: 3\nnames: [cat, dog]\n",
            r"nc is 3, but there are 2 names",
        ),
        ("train: images/train\nval: images/none\nnames: [cat]\n", "images/none: no such folder or list"),
        ("train: images/train\nval: ../../etc\nnames: [cat]\n", "etc: no such folder or list"),
        ("train: [images/train\n", "data.yaml, line 2: not readable as YAML"),
        (
            "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n  1: hen\n",
            r"data.yaml, line 6: not readable as YAML \(key 1 twice\)",
        ),
        ("train: images/train\nval: images/val\nnames: [cat, '']\n", "class 1 has an empty name"),
        ("train: images/train\nval: images/val\nnames: [cat, cat]\n", "same id or name: name cat"),
        ("train: images/train\nval: images/val\nnames: {1: cat, 2: dog}\n", "number the classes 0, 1"),
    ],
)
def test_bad_pages_are_refused(tmp_path: Path, page: str, message: str) -> None:
    yolo(tmp_path, page=page)
    with pytest.raises(ValueError, match=message):
        open_objects(tmp_path, "train")


def test_yolo_names_are_what_is_written(tmp_path: Path) -> None:
    page = "train: images/train\nval: images/val\nnc: 6\n"
    page += "names: {0: no, 1: 010, 2: 1:30, 3: 1.0, 4: null, 5: 2024-13-01}\n"
    yolo(tmp_path, page=page)
    names = open_objects(tmp_path, "train")[1].class_names
    assert names == ["no", "010", "1:30", "1.0", "null", "2024-13-01"]


def test_yolo_labels_belong_to_their_images_however_a_mac_writes_them(tmp_path: Path) -> None:
    yolo(tmp_path, [yolo_box(1)])
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train/caf\N{LATIN SMALL LETTER E}\u0301.png")
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train/caf\u00e9.TXT")
    train = open_objects(tmp_path, "train")[1]
    assert [name for _, name, _ in things(train)] == ["cat", "dog"]
    assert not train.problems.found
    assert not train.notes.found


def test_yolo_boxes_of_two_corners_are_refused(tmp_path: Path) -> None:
    corners = [(0.1, 0.2, 0.5, 0.9), (0.5, 0.1, 0.8, 0.6), (0.05, 0.5, 0.9, 0.95), (0.3, 0.3, 0.7, 0.8)]
    yolo(tmp_path, ["0 " + " ".join(map(str, box)) for box in corners])
    with pytest.raises(
        ValueError, match=r"4 × line that looks like the corners x1 y1 x2 y2.*labels/train/a.txt:1"
    ):
        open_objects(tmp_path, "train")
    # objects that fill their images are no corners, nor is an object beside them
    yolo(tmp_path, ["0 0.5 0.5 1 1", "0 0.5 0.5 0.99 0.98", "0 0.45 0.5 1 1"])
    assert len(things(open_objects(tmp_path, "train")[1])) == 4
    yolo(tmp_path, ["0 " + " ".join(map(str, box)) for box in corners] + [yolo_box(0, (40, 6, 50, 9))])
    assert len(things(open_objects(tmp_path, "train")[1])) == 6


def test_yolo_folders_may_begin_with_a_capital(tmp_path: Path) -> None:
    yolo(tmp_path, page="train: Images/train\nval: Images/val\nnames: [cat, dog]\n")
    for name in ("images", "labels"):
        (tmp_path / name).rename(tmp_path / name.capitalize())
    for _ in ("with its page", "without"):
        assert things(open_objects(tmp_path, "train")[1]) == [("a", "cat", BOX), ("b", "cat", BOX)]
        (tmp_path / "data.yaml").unlink(missing_ok=True)
        (tmp_path / "classes.txt").write_text("cat\n")


def test_yolo_images_whose_labels_nobody_knows(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_bytes(b"0 0.5 0.5 0.1 0.1 \xe9\n")
    picture(tmp_path / "images/train/b.jpg")
    with pytest.warns(
        UserWarning, match=r"images of one name and one label file .*\(images/train/b\.jpg, images"
    ):
        train = open_objects(tmp_path, "train")[1]
    assert [image.path.name for image in train.images] == ["b.jpg", "b.png"]
    assert "labels/train/a.txt" in str(train.problems)


def test_yolo_training_images_that_are_also_validation_images(tmp_path: Path) -> None:
    yolo(tmp_path, page="train: images\nval: images/val\nnames: [cat]\n")
    with pytest.warns(UserWarning, match=r"train holds the images of val, too .*images/val"):
        open_objects(tmp_path, "val")


def voc_page(objects, name: str, size=(W, H), own=False, **more: str) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    if own:
        source = ElementTree.SubElement(root, "source")
        ElementTree.SubElement(source, "annotation").text = "PASCAL VOC2007"
    sides = ElementTree.SubElement(root, "size")
    for side, value in zip(("width", "height"), size, strict=True):
        ElementTree.SubElement(sides, side).text = str(value)
    for label, box, *difficult in objects:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = label
        ElementTree.SubElement(element, "difficult").text = str(int(bool(difficult)))
        corners = ElementTree.SubElement(element, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, side).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def voc(root: Path, pages: dict[str, list], lists=True, **options) -> Path:
    for name, objects in pages.items():
        picture(root / f"JPEGImages/{name}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{name}.xml").write_text(voc_page(objects, f"{name}.jpg", **options))
    if lists:
        (root / "ImageSets/Main").mkdir(parents=True)
        names = list(pages)
        (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:-1]) + "\n")
        (root / "ImageSets/Main/val.txt").write_text(names[-1] + "\n")
    return root


def test_voc_with_lists(tmp_path: Path) -> None:
    voc(
        tmp_path / "VOCdevkit/VOC2012",
        {"a": [("dog", BOX), ("cat", (1, 2, 3, 4), "difficult")], "b": [], "c": [("cat", BOX)]},
    )
    found, train = open_objects(tmp_path, "train")
    assert str(found) == "Pascal VOC detection set, VOCdevkit/VOC2012/Annotations"
    assert things(train) == [("a", "dog", BOX), ("a", "cat", (1, 2, 3, 4))]
    assert [thing.is_crowd for thing in train.images[0].objects] == [False, True]
    assert [image.path.stem for image in train.images] == ["a", "b"]
    _, val = open_objects(tmp_path, "val", class_names=train.class_names)
    assert things(val) == [("c", "cat", BOX)]


def test_voc_s_own_boxes_count_from_one(tmp_path: Path) -> None:
    """A box around the whole image is 1, 1, width, height in VOC's own files."""
    voc(tmp_path, {"a": [("dog", (1, 1, W, H))], "b": [("dog", BOX)]}, own=True)
    assert things(open_objects(tmp_path, "train")[1]) == [("a", "dog", (0, 0, W, H))]


def test_voc_exports_without_lists_and_sizes(tmp_path: Path) -> None:
    for half, name in (("train", "a"), ("valid", "b")):
        picture(tmp_path / half / f"{name}.png")
        (tmp_path / half / f"{name}.xml").write_text(voc_page([("cat", BOX)], "other.png", size=(0, 0)))
    assert [things(open_objects(tmp_path, half)[1]) for half in ("train", "val")] == [
        [("a", "cat", BOX)],
        [("b", "cat", BOX)],
    ]
    flat = voc(tmp_path / "flat", {name: [("cat", BOX)] for name in "abcde"}, lists=False)
    assert [len(open_objects(flat, half)[1].images) for half in ("train", "val")] == [4, 1]


def test_voc_classes_that_differ_are_refused_by_file_and_line(tmp_path: Path) -> None:
    voc(tmp_path, {"a": [("dog", BOX)], "b": [("dog", BOX), ("owl", BOX)]})
    train = open_objects(tmp_path, "train")[1]
    message = (
        r"1 × object of a class that training images do not have.*classes.txt \(Annotations/b.xml:17: owl\)"
    )
    line = (tmp_path / "Annotations/b.xml").read_text().split("<name>owl")[0].count("\n")
    assert line == 17  # the <object> stands a line above its name
    with pytest.raises(ValueError, match=message):
        open_objects(tmp_path, "val", class_names=train.class_names)
    assert any("Annotations/b.xml:17: owl" in text for text in list(check_objects(tmp_path))[1].problems)
    (tmp_path / "classes.txt").write_text("dog\nowl\n")
    assert open_objects(tmp_path, "train")[1].class_names == ["dog", "owl"]


def test_voc_odd_files_are_counted(tmp_path: Path) -> None:
    voc(tmp_path, {"a": [("dog", BOX), ("dog", ("?", 1, 2, 3))], "b": [], "c": [], "d": [("dog", BOX)]})
    (tmp_path / "Annotations/b.xml").write_text("<annotation>\n<object>\n")
    (tmp_path / "JPEGImages/c.jpg").unlink()
    with (tmp_path / "ImageSets/Main/train.txt").open("a") as file:
        file.write("nowhere\n")
    train, _ = check_objects(tmp_path)
    text = " | ".join(train.problems)
    assert (
        "1 × annotation file that is no XML of an <annotation> (Annotations/b.xml:3: no element found)"
        in text
    )
    assert "1 × missing image (Annotations/c.xml: c.jpg)" in text
    assert "1 × name in ImageSets without Annotations/NAME.xml (nowhere)" in text
    assert "1 × object without a name or a box of xmin, ymin, xmax, ymax (Annotations/a.xml:17)" in text


def test_voc_objects_are_put_onto_the_image_of_the_annotation_s_own_name(tmp_path: Path) -> None:
    """Files are renamed, the names in them stay."""
    voc(tmp_path, {name: [(name, BOX)] for name in "abcd"})
    for name in "abc":
        page = (tmp_path / f"Annotations/{name}.xml").read_text()
        (tmp_path / f"Annotations/{name}.xml").write_text(page.replace(f"{name}.jpg", "d.jpg"))
    with pytest.warns(UserWarning, match=r"3 × annotation file with another image's <filename>"):
        train = open_objects(tmp_path, "train")[1]
    assert [(file, label) for file, label, _ in things(train)] == [("a", "a"), ("b", "b"), ("c", "c")]
    picture(tmp_path / "JPEGImages/d.bmp")
    page = (tmp_path / "Annotations/d.xml").read_text()
    (tmp_path / "Annotations/d.xml").write_text(page.replace("d.jpg", "d.bmp"))
    found = find_objects(tmp_path)
    assert found is not None
    assert [image.path.name for image in found.read("val").images] == ["d.bmp"]


def test_voc_lists_as_they_come(tmp_path: Path) -> None:
    """Names with spaces, with an extension, with a folder, twice, and written as a Mac writes them."""
    voc(
        tmp_path,
        {"my pet": [("cat", BOX)], "b": [("cat", BOX)], "caf\u00e9": [("cat", BOX)], "d": [("cat", BOX)]},
    )
    for old, new in (
        ("JPEGImages/b.jpg", "JPEGImages/east/b.jpg"),
        ("Annotations/b.xml", "Annotations/east/b.XML"),
    ):
        (tmp_path / new).parent.mkdir()
        (tmp_path / old).rename(tmp_path / new)
    lines = ["my pet.jpg", "east/b", "b", "cafe\u0301", "my pet"]
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(lines) + "\n")
    train = open_objects(tmp_path, "train")[1]
    assert things(train) == [(name, "cat", BOX) for name in ("my pet", "b", "caf\u00e9")]
    assert not train.problems.found
    (tmp_path / "ImageSets/Main/train.txt").write_text("b  1\nd -1\n")
    assert [name for name, _, _ in things(open_objects(tmp_path, "train")[1])] == ["b", "d"]


def test_voc_files_that_are_used_or_left_out_are_told(tmp_path: Path) -> None:
    voc(tmp_path, {name: [("cat", BOX)] for name in "abcdef"}, lists=False)
    (tmp_path / "Annotations/f.xml").unlink()
    (tmp_path / "Annotations/._e.xml").write_bytes(b"\0")
    (report,) = check_objects(tmp_path)
    assert report.counts["images"] == 5
    assert "1 × image without an annotation file (it is left out) (f.jpg)" in report.notes
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (report,) = check_objects(tmp_path)
    assert any(
        note.startswith("1 × list in ImageSets without that of the other split") for note in report.notes
    )
    (tmp_path / "ImageSets/Main/test.txt").write_text("c\n")
    with pytest.warns(UserWarning, match=r"no val\.txt; the images of test\.txt are used for validation"):
        assert [name for name, _, _ in things(open_objects(tmp_path, "val")[1])] == ["c"]


def test_voc_classes_in_two_spellings_and_empty_lists_are_told(tmp_path: Path) -> None:
    voc(tmp_path, {"a": [("Cat", BOX)], "b": [("cat", BOX)], "c": [("cat", BOX)]})
    with pytest.warns(UserWarning, match=r"differ only in case \(are they one\?\) \(Cat and cat\)"):
        open_objects(tmp_path, "train")
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"no image can be used \(the list of train is empty"):
        open_objects(tmp_path, "train")


def test_lists_that_share_images_are_told_and_other_xml_is_no_annotation(tmp_path: Path) -> None:
    voc(tmp_path / "voc", {name: [("cat", BOX)] for name in "abc"})
    (tmp_path / "voc/ImageSets/Main/val.txt").write_text("a.jpg\nc\n")
    with pytest.warns(
        UserWarning, match=r"1 × image of training and validation, whose metrics will be too good \(a\)"
    ):
        open_objects(tmp_path / "voc", "val")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/metadata.xml").write_text("<photos/>")
    assert find_objects(tmp_path / "photos") is None
    (tmp_path / "photos/annotations/cvat").mkdir(parents=True)
    (tmp_path / "photos/annotations/cvat/annotations.xml").write_text("<annotations><version/></annotations>")
    assert find_objects(tmp_path / "photos") is None
    (tmp_path / "photos/a.xml").write_text(voc_page([("cat", BOX)], "a.jpg"))
    assert find_objects(tmp_path / "photos") is not None


def test_old_xml_files_below_those_of_coco_do_not_count(tmp_path: Path) -> None:
    voc(tmp_path, {"a": [("cat", BOX)], "b": [("cat", BOX)]}, lists=False)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "Annotations").rename(tmp_path / "annotations/xmls")
    for half in ("train", "val"):
        (tmp_path / f"annotations/instances_{half}.json").write_text("{}")
        picture(tmp_path / f"images/{half}/a.jpg")
    found = find_objects(tmp_path)
    assert found is not None
    assert found.format == "coco"


def test_names_are_found_in_any_case(tmp_path: Path) -> None:
    """As Windows and macOS find them: extensions of images, labels, and lines of lists."""
    voc(tmp_path / "voc", {"IMG_0": [("dog", BOX)], "IMG_1": [("cat", BOX)], "frame.0001": [("cat", BOX)]})
    for name in ("IMG_0", "IMG_1"):
        (tmp_path / f"voc/JPEGImages/{name}.jpg").rename(tmp_path / f"voc/JPEGImages/{name}.JPG")
    page = (tmp_path / "voc/Annotations/IMG_1.xml").read_text()
    (tmp_path / "voc/Annotations/IMG_1.xml").write_text(page.replace("IMG_1.jpg", "IMG_0.JPG"))
    (tmp_path / "voc/ImageSets/Main/train.txt").write_text("img_0\nIMG_1\n")
    with pytest.warns(UserWarning, match=r"1 × annotation file with another image's <filename>"):
        train = open_objects(tmp_path / "voc", "train")[1]
    assert [(name, label) for name, label, _ in things(train)] == [("IMG_0", "dog"), ("IMG_1", "cat")]
    page = (tmp_path / "voc/Annotations/frame.0001.xml").read_text()
    (tmp_path / "voc/Annotations/frame.0001.xml").write_text(page.replace("frame.0001.jpg", "frame.0001"))
    found = find_objects(tmp_path / "voc")
    assert found is not None
    val = found.read("val")
    assert [image.path.name for image in val.images] == ["frame.0001.jpg"]
    assert not val.notes.found

    yolo(tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/a.txt").write_text(yolo_box(1))
    (tmp_path / "yolo/labels/train/a.txt").rename(tmp_path / "yolo/labels/train/A.txt")
    assert ("a", "dog", BOX) in things(open_objects(tmp_path / "yolo", "train")[1])


def test_a_drawn_split_without_objects_is_refused(tmp_path: Path) -> None:
    page = "train: images/train\nnames: [cat, dog]\n"
    yolo(tmp_path, page=page)
    for number in range(8):
        picture(tmp_path / f"images/train/more{number}.png")
    found = find_objects(tmp_path)
    assert found is not None
    images = found.read(None).images
    seen = set()
    for seed in range(10):
        drawn = np.random.default_rng(seed).permutation(len(images))[:2].tolist()
        seen.add(has_objects := any(images[number].objects for number in drawn))
        if has_objects:
            assert things(open_objects(tmp_path, "val", seed=seed)[1])
        else:
            with pytest.raises(
                ValueError, match="none of the 2 images drawn for val has an object; change data"
            ):
                open_objects(tmp_path, "val", seed=seed)
    assert seen == {True, False}


def test_xml_entities_are_not_expanded(tmp_path: Path) -> None:
    voc(tmp_path, {"a": [("dog", BOX)], "b": [("dog", BOX)]})
    bomb = '<!DOCTYPE a [<!ENTITY x "ha">]><annotation><filename>&x;</filename></annotation>'
    (tmp_path / "Annotations/a.xml").write_text(bomb)
    with pytest.raises(ValueError, match="defines entities"):
        open_objects(tmp_path, "train")


def test_several_formats_in_one_folder_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    message = r"COCO \(annotations/instances_train.json\), YOLO \(data.yaml\); pass --set data.format=coco"
    with pytest.raises(ValueError, match=message):
        find_objects(tmp_path)
    assert len(open_objects(tmp_path, "train", wanted="yolo")[1].images) == 2


def test_keypoints_and_oriented_boxes(tmp_path: Path) -> None:
    """Of keypoints the box is taken; the four corners of an oriented box are a polygon."""
    page = "train: images/train\nval: images/val\nkpt_shape: [2, 3]\nnames: [cat, dog]\n"
    yolo(tmp_path / "pose", [yolo_box(1) + " 0.1 0.2 2 0.3 0.4 1"], page)
    assert things(open_objects(tmp_path / "pose", "train")[1])[0] == ("a", "dog", BOX)
    corners = [(20, 10), (40, 20), (30, 40), (10, 30)]
    yolo(tmp_path / "obb", [yolo_polygon(1, corners)])
    assert things(open_objects(tmp_path / "obb", "train")[1])[0] == ("a", "dog", (10, 10, 40, 40))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT's
        ("result.json", "images"),  # Label Studio's
        ("_annotations.coco.json", "."),  # Roboflow's
        ("annotations.json", "images"),
    ],
)
def test_coco_without_splits_is_split_by_lot(tmp_path: Path, file: str, folder: str) -> None:
    names = [f"{number}.png" for number in range(5)]
    for name in names:
        picture(tmp_path / folder / name)
    prefix = "images/" if file == "result.json" else ""
    page = {
        "images": [
            {"id": i, "file_name": prefix + name, "width": W, "height": H} for i, name in enumerate(names)
        ],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in range(5)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(page))
    for root in (tmp_path, tmp_path / file):
        found, train = open_objects(root, "train")
        _, val = open_objects(root, "val")
        assert str(found) == f"COCO detection set, {file if root is tmp_path else Path(file).name}"
        assert sorted(image.path.name for coco in (train, val) for image in coco.images) == names
        assert len(val.images) == 1
    (report,) = check_objects(tmp_path)
    assert report.counts["objects"] == 5
    assert not report.problems
