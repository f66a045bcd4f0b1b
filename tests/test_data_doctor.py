"""`crossformer data doctor`: what is planted in real data is found, and little else."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from skimage import data

from crossformerpp import engine
from crossformerpp.analysis.report import image_uri
from crossformerpp.cli import main
from crossformerpp.data.convert import convert
from crossformerpp.data.digits import load_digits
from crossformerpp.data.doctor import labels, leaks
from crossformerpp.data.doctor.examine import examine
from crossformerpp.data.doctor.findings import KINDS, Finding
from crossformerpp.data.doctor.subjects import Sample, open_subjects
from crossformerpp.data.scenes import write_digit_scenes
from tiny import tiny_recipe

FACES = 40  # of lfw_subset's 100, and as many pictures of something else


def faces() -> list[Image.Image]:
    """Real pictures of 25×25 pixels, enlarged."""
    pixels = (data.lfw_subset() * 255).astype(np.uint8)
    others = [
        each for each in pixels[100:] if np.percentile(each, 99) > 80 and each.std() > 12
    ]  # some are dark
    kept = [*pixels[:FACES], *others[:FACES]]
    assert len(kept) == 2 * FACES
    return [Image.fromarray(face).resize((50, 50), Image.Resampling.BICUBIC).convert("RGB") for face in kept]


def write_faces(root: Path) -> list[Path]:
    """train/ and val/ of two classes, lossless."""
    paths = []
    for number, face in enumerate(faces()):
        kind = "face" if number < FACES else "other"
        path = (
            root
            / ("val" if number % 4 == 3 else "train")
            / kind
            / f"{kind}-{'abcdefgh'[number % 8]}{number}x.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        face.save(path)
        paths.append(path)
    return paths


def kinds(findings: list[Finding], *chosen: str) -> set[tuple[str, ...]]:
    return {tuple(sorted(filter(None, (f.image, f.other)))) for f in findings if f.kind in chosen}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["data", "doctor", *map(str, arguments)])
    assert isinstance(exit.value.code, int)
    return exit.value.code


def of_tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_labels_of_digits_are_found(seed: int) -> None:
    """5% of real digits get another label: recall and precision by the numbers of those that were changed."""
    images, truth = load_digits("train")
    generator = np.random.default_rng(seed)
    given = np.asarray(truth)
    changed = generator.choice(len(given), len(given) // 20, replace=False)
    given[changed] = (given[changed] + generator.integers(1, 10, len(changed))) % 10
    doubts, small = labels.doubtful(labels.pixel_features(images), given, np.arange(len(given)))
    found = {doubt.item for doubt in doubts}
    right = found & set(changed.tolist())
    assert not small
    assert len(right) > 0.8 * len(changed)
    assert len(right) > 0.85 * len(found)
    assert np.mean([doubt.suggestion == truth[doubt.item] for doubt in doubts if doubt.item in right]) > 0.9
    assert [doubt.given for doubt in doubts] == sorted(doubt.given for doubt in doubts)


def test_copies_do_not_confirm_a_wrong_label() -> None:
    """Five copies of a digit with the same wrong label: contradicted if they are one group, in one fold."""
    images, truth = load_digits("train")
    images, truth = [*images[:600], *[images[600]] * 5], [*truth[:600], *[(truth[600] + 1) % 10] * 5]
    groups = np.arange(605)
    groups[600:] = 600
    features = labels.pixel_features(images)
    right, wrong = truth[600] - 1, truth[600]
    together = labels._out_of_fold(features, np.asarray(truth), groups, iter)[600:]
    apart = labels._out_of_fold(features, np.asarray(truth), np.arange(605), iter)[600:]
    assert (together.argmax(axis=1) == right % 10).all()
    assert together[:, wrong].max() < 0.1 < apart[:, wrong].min()  # apart they confirm each other
    doubts, small = labels.doubtful(features, np.asarray([*truth[:600], *[10] * 5]), groups)
    assert small == {10}  # a class of one picture
    assert all(doubt.item < 600 for doubt in doubts)


def test_duplicates_are_found_whatever_the_file(tmp_path: Path) -> None:
    paths = write_faces(tmp_path)
    pairs: dict[str, set[tuple[str, str]]] = {"exact": set(), "near": set()}

    def plant(
        kind: str, number: int, change: Callable[[Image.Image], Image.Image], suffix: str, **how: Any
    ) -> None:
        source = paths[number]
        path = tmp_path / "val" / source.parent.name / f"copy{len(pairs['exact'] | pairs['near'])}y{suffix}"
        change(Image.open(source)).save(path, **how)
        names = [each.relative_to(tmp_path).as_posix() for each in (source, path)]
        pairs[kind].add((min(names), max(names)))

    for number in (0, 7, 30, 60):
        plant("exact", number, lambda image: image, ".bmp")
    for number in (1, 12, 41, 56, 70):
        plant("near", number, lambda image: image, ".jpg", quality=50)
    for number in (2, 13, 43, 58, 73):
        plant("near", number, lambda image: image.resize((35, 35), Image.Resampling.BICUBIC), ".png")
    for number in (4, 14, 44, 59, 74):
        plant("near", number, lambda image: ImageEnhance.Contrast(image).enhance(0.7), ".png")
    found = examine(open_subjects(tmp_path), with_labels=False).findings
    assert kinds(found, "duplicate", "duplicate across splits") == pairs["exact"]
    near = kinds(found, "near duplicate", "near duplicate across splits")
    assert len(near & pairs["near"]) >= 14  # of 15
    assert len(near - pairs["near"]) <= 1
    for finding in found:
        assert (
            finding.kind.endswith("across splits") == (finding.split != finding.other_split)
            or not finding.other
        )


def test_a_copy_with_another_label_comes_first(tmp_path: Path) -> None:
    paths = write_faces(tmp_path)
    Image.open(paths[5]).save(tmp_path / "train" / "face" / "one.png")
    Image.open(paths[9]).save(tmp_path / "train" / "other" / "two.png")
    found = [f for f in examine(open_subjects(tmp_path), with_labels=False).findings if f.kind == "duplicate"]
    assert [finding.detail for finding in found] == ["their labels differ", ""]


def test_odd_images_are_found(tmp_path: Path) -> None:
    write_faces(tmp_path)
    face = faces()[0].resize((100, 100))
    planted = {
        "tiny": face.resize((20, 20)),
        "one side is more than 4 times the other": face.resize((300, 60)),
        "blank": Image.new("RGB", (60, 60), (90, 90, 90)),
        "nearly uniform": Image.fromarray(np.tile(np.linspace(100, 118, 64).astype(np.uint8), (64, 1))),
        "dark": ImageEnhance.Brightness(face).enhance(0.15),
        "bright": Image.eval(face, lambda value: 225 + value // 10),
        "another kind of file": face.convert("CMYK"),
    }
    for kind, image in planted.items():
        image.save(tmp_path / "train" / "face" / f"{kind}.{'jpg' if image.mode == 'CMYK' else 'png'}")
    (tmp_path / "train" / "face" / "broken.png").write_bytes(b"no image")
    found = examine(open_subjects(tmp_path), with_labels=False).findings
    by_name = {(Path(f.image).stem, f.detail.partition(":")[0]) for f in found if f.kind == "odd image"}
    for kind in planted:
        assert (kind, kind) in by_name
    assert {name for name, _ in by_name} == set(planted)
    assert kinds(found, "unreadable") == {("train/face/broken.png",)}


def test_what_holds_for_most_images_is_a_note(tmp_path: Path) -> None:
    for number, face in enumerate(faces()):
        path = tmp_path / ("a" if number < FACES else "b") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        face.resize((25, 25)).save(path)
    found = examine(open_subjects(tmp_path), with_labels=False)
    assert not kinds(found.findings, "odd image")
    assert "tiny" in found.notes[0]


@pytest.mark.parametrize(
    ("train", "val", "count"),
    [
        (["a/patient07_1.png", "a/patient08_1.png"], ["a/patient07_2.png", "b/patient09_2.png"], 1),
        (["a/video-3-frame-0001.jpg", "a/x.jpg"], ["b/video-3-frame-0100.jpg", "b/y.jpg"], 1),
        (["a/p12/1.png", "a/p13/1.png", "a/q.png"], ["a/p12/7.png", "a/p14/1.png", "a/r.png"], 1),
        (
            ["a/cat_jpg.rf.0123456789abcdef.jpg", "a/u.jpg"],
            ["a/cat_jpg.rf.fedcba9876543210.jpg", "a/v.jpg"],
            1,
        ),
        (["a/scan_9f3b2c.png", "a/k.png"], ["a/scan_9f3b2c.jpg", "a/l.png"], 1),
        (
            ["a/IMG_0001.jpg", "a/IMG_0002.jpg"],
            ["a/IMG_0001.jpg", "a/IMG_0009.jpg"],
            0,
        ),  # cameras count again
        (["a/000001.png", "a/000002.png"], ["a/000001.png", "a/000003.png"], 0),
        (["n01/n01_10026.JPEG", "n02/n02_1.JPEG"], ["n01/n01_40.JPEG", "n02/n02_2.JPEG"], 0),  # the class's
        (["a/set2_1.png", "a/set2_2.png"], ["a/set2_3.png", "a/set2_4.png"], 0),  # the data set's
    ],
)
def test_names_that_belong_together(train: list[str], val: list[str], count: int) -> None:
    samples = [
        Sample(f"{split}/{name}", split, lambda: (Image.new("RGB", (32, 32)), None))
        for split, names in (("train", train), ("val", val))
        for name in names
    ]
    found = list(leaks.find_leaks(samples))
    assert len(found) == count
    assert all((f.split, f.other_split) == ("train", "val") for f in found)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=150, val=10, size=96)


@pytest.mark.parametrize("form", ["yolo", "voc", "folders", "table"])
def test_every_format_is_examined(form: Any, scenes: Path, tmp_path: Path) -> None:
    source, task = scenes, "detection"
    if form in ("folders", "table"):
        source, task = tmp_path / "faces", "classification"
        write_faces(source)
    convert(source, tmp_path / "out", form, form=None if task == "classification" else "coco")
    one, two = open_subjects(source), open_subjects(tmp_path / "out")
    assert two.task == task
    assert len(two.samples) == len(one.samples)
    assert two.splits == one.splits
    counts = [Counter(each.class_names[item.label] for item in each.items) for each in (one, two)]
    assert counts[0] == counts[1]


def test_objects_with_wrong_classes_and_odd_boxes_are_found(scenes: Path, tmp_path: Path) -> None:
    page = json.loads((scenes / "annotations/instances_train.json").read_text())
    generator = np.random.default_rng(0)
    big = [i for i, entry in enumerate(page["annotations"]) if min(entry["bbox"][2:]) >= 16]
    changed = generator.choice(big, 25, replace=False).tolist()
    for place in changed:
        entry = page["annotations"][place]
        entry["category_id"] = int(entry["category_id"] + generator.integers(1, 9)) % 10 + 1
    first = page["annotations"][0]
    odd = {
        "huge": [0, 0, 96, 96],
        "thin": [0, 10, 80, 3.5],
        "tiny": [5, 5, 2, 9],
        "double": [v + 0.2 for v in first["bbox"]],
    }
    for box in odd.values():
        entry = {"id": len(page["annotations"]) + 1, "image_id": first["image_id"], "bbox": box}
        page["annotations"].append({**first, **entry, "area": box[2] * box[3]})
    page["annotations"].append({**first, "id": 9999, "bbox": [5, 5, 0, 9]})
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(page))
    assert not open_subjects(file).samples  # the images are elsewhere
    found = examine(open_subjects(file, images=scenes / "images" / "train")).findings
    details = Counter(f.detail.partition(":")[0] for f in found if f.kind == "odd box")
    assert set(odd) <= set(details)
    assert any(f.detail == "degenerate box" for f in found if f.kind == "annotation problem")
    names = {entry["id"]: entry["file_name"] for entry in page["images"]}
    truth = {
        (names[page["annotations"][i]["image_id"]], tuple(page["annotations"][i]["bbox"][:2]))
        for i in changed
    }
    doubts = {(Path(f.image).name, f.box[:2]) for f in found if f.kind == "label error" and f.box is not None}
    assert len(doubts & truth) > 0.6 * len(truth)
    assert len(doubts & truth) > 0.6 * len(doubts)


def test_odd_masks_and_segments_with_wrong_classes_are_found(scenes: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_bytes((scenes / "classes.txt").read_bytes())
    changed = []
    for path in sorted((scenes / "masks" / "train").iterdir()):
        (tmp_path / "images" / f"{path.stem}.jpg").symlink_to(
            scenes / "images" / "train" / f"{path.stem}.jpg"
        )
        mask = np.array(Image.open(path))
        number = int(path.stem)
        if number % 12 == 0 and mask.any():
            digit = int(np.bincount(mask[mask > 0]).argmax())
            other = digit % 10 + 1
            if not (mask == other).any():
                mask[mask == digit] = other
                changed.append(path.stem)
        if number == 1:
            mask[:60] = 255
        if number == 2:
            mask = mask[:50]
        Image.fromarray(mask).save(tmp_path / "masks" / path.name)
    found = examine(open_subjects(tmp_path)).findings
    assert {f.image for f in found if f.detail.startswith("ignored")} == {"00001.jpg"}
    assert kinds(found, "unreadable") == {("00002.jpg",)}
    doubted = {Path(f.image).stem for f in found if f.kind == "label error"}
    assert len(doubted & set(changed)) > 0.5 * len(changed)


def test_the_page_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "photos"
    paths = write_faces(root)
    strange = root / "train" / "face" / "<b>&bold.png"
    Image.open(paths[0]).save(strange)
    before = of_tree(root)
    assert run(root, "--out", tmp_path / "one", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 2 * FACES + 1
    assert set(found["findings"]) <= set(KINDS)
    page = (tmp_path / "one" / "index.html").read_text()
    assert "&lt;b&gt;&amp;bold.png" in page
    assert "<b>&" not in page
    assert "<script" not in page
    with (tmp_path / "one" / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["kind"] for row in rows) == found["findings"]
    assert any("train/face/<b>&bold.png" in (row["image"], row["other"]) for row in rows)
    assert run(root, "--out", tmp_path / "two") == 0
    assert of_tree(tmp_path / "one") == of_tree(tmp_path / "two")  # the same every time
    assert of_tree(root) == before
    assert run(root, "--out", tmp_path / "one") == 2
    assert "exists" in capsys.readouterr().err


def test_features_of_a_run_and_of_a_timm_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_faces(tmp_path / "photos")
    Image.open(paths[3]).save(tmp_path / "photos" / "train" / "face" / "again.jpg", quality=60)
    engine.train(tiny_recipe("trainer.steps=2"), tmp_path / "run")
    for model in (tmp_path / "run", "test_vit"):
        assert (
            run(
                tmp_path / "photos", "--model", model, "--out", tmp_path / "out", "--overwrite", "--no-labels"
            )
            == 0
        )
        table = (tmp_path / "out" / "findings.csv").read_text()
        assert "near duplicate across splits,train/face/again.jpg" in table
    assert run(tmp_path / "photos", "--model", "resnet05", "--out", tmp_path / "new") == 2
    assert "did you mean" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_line_of_pixels_is_pictured() -> None:
    assert image_uri(Image.new("RGB", (1, 900))).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no such folder"),
        (["photos", "--task", "detection"], "no train annotations in COCO's format"),
        (["photos", "--task", "segmentation"], "what are the classes called?"),
        (["photos", "--pretrained"], "--model"),
        (["photos", "--out", "photos/doctor"], "inside the data"),
    ],
)
def test_what_cannot_be_examined_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("a", "b"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        faces()[0].save(tmp_path / "photos" / kind / "1.png")
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "doctor").exists()


def test_a_split_may_lack_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, folder in enumerate(("train/a", "train/b", "val/b")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for place, face in enumerate(faces()[4 * number : 4 * number + 4]):
            face.save(tmp_path / "data" / folder / f"{place}.png")
    assert run(tmp_path / "data", "--out", tmp_path / "doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12


@pytest.mark.parametrize("form", ["yolo", "table"])
def test_data_in_other_formats_are_examined(tmp_path: Path, form: str) -> None:
    """The first training picture lies among those of validation, too."""
    rows = ["path,label,split"]
    for number, face in enumerate([*faces()[:12], faces()[0]]):
        split, kind = "train" if number < 8 else "val", number % 2
        path = tmp_path / "data" / "images" / split / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        face.save(path)
        rows.append(f"{split}/{path.name},{'ab'[kind]},{split}")
        if form == "yolo":
            text = tmp_path / "data" / "labels" / split / f"{number}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"{kind} 0.5 0.5 0.6 0.7\n")
    if form == "yolo":
        page = "train: images/train\nval: images/val\nnames: [a, b]\n"
        (tmp_path / "data" / "data.yaml").write_text(page)
    else:
        (tmp_path / "data" / "list.csv").write_text("\n".join(rows) + "\n")
    subjects = open_subjects(tmp_path / "data")
    assert subjects.task == ("detection" if form == "yolo" else "classification")
    assert Counter(sample.split for sample in subjects.samples) == {"train": 8, "val": 5}
    found = examine(subjects, lambda items, title: items, with_labels=False).findings
    (pair,) = kinds(found, "duplicate across splits")
    assert {Path(name).name for name in pair} == {"0.png", "12.png"}
