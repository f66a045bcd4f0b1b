"""Many images: batches give what single images give, and a prediction that was stopped goes on where it was."""

import csv
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from crossformerpp.analysis.conformal import Promise
from crossformerpp.analysis.predictions import ClassPrediction
from crossformerpp.analysis.throughput import require_device
from crossformerpp.data.lock import RunLock
from crossformerpp.predict import Images, PredictionRun, open_images, predict
from crossformerpp.predict.pictures import _unused_stems
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification import eval_transform
from crossformerpp.tasks.saved import SavedRun
from tiny import tiny_values

NUM_IMAGES, BATCH = 60, 8


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of real photographs; every ninth is a PNG."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    sources = [Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(), data.chelsea())]
    for number in range(NUM_IMAGES):
        source = sources[number % len(sources)]
        left, top = generator.integers(0, 150, 2)
        crop = source.crop((left, top, left + 120 + number, top + 100))
        crop.save(folder / f"{number:03d}.{'jpg' if number % 9 else 'png'}")
    return folder


def model_values(task: str) -> dict[str, Any]:
    values = tiny_values()
    model, threads = values["model"], values["trainer"]
    if task == "classification":
        return values
    if task == "detection":
        return {
            "task": "detection",
            "model": model,
            "detector": {"name": "retinanet", "pyramid_channels": 16},
            "data": {"source": "folder", "short_side": [96], "long_side": 160},
            "trainer": threads,
        }
    return {
        "task": "segmentation",
        "model": model,
        "head": {"name": "semantic_fpn", "pyramid_channels": 16, "channels": 16},
        "data": {"source": "folder"},
        "trainer": threads,
    }


def predictor_of(task: str, **options: Any) -> Any:
    """A predictor with random weights."""
    recipe = parse_recipe(model_values(task), task)
    names = ["cat", "cup", "person"]
    torch.manual_seed(0)
    module = find_task(task).module(recipe, names)
    saved = SavedRun(Path("random"), recipe, names, 0, module.model.state_dict())
    return find_task(task).predictor(saved, **options)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return predictor_of("classification")


@pytest.fixture(scope="module")
def whole(classifier: Any, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a prediction that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    list(predict(classifier, open_images([photographs]), out, batch_size=BATCH))
    return lines(out)


def lines(out: Path) -> list[str]:
    """Of predictions.jsonl, without the folder's own name."""
    text = (out / "predictions.jsonl").read_text()
    return text.replace(str(out), "OUT").splitlines()


def close(one: Any, other: Any, absolute: float) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key], absolute) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b, absolute) for a, b in zip(one, other, strict=True))
    return one == pytest.approx(other, abs=absolute) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_list_of_images_gets_the_answers_of_single_ones(task: str) -> None:
    predictor = predictor_of(task, min_score=0.02)
    if task == "detection":  # fresh heads score everything alike
        torch.nn.init.normal_(predictor.model.head.classification_head.cls_logits.weight, std=1000.0)
    sizes = [(150, 100), (97, 130), (150, 100), (200, 64), (97, 130)]
    images = [Image.fromarray(data.astronaut()).resize(size) for size in sizes]
    predictor.batch_size = 3
    together = [prediction.to_json() for prediction in predictor(images)]
    assert len(together) == len(images)
    for image, found in zip(images, together, strict=True):
        alone = predictor(image).to_json()
        assert next(value for value in alone.values() if isinstance(value, list)), "something is found"
        assert close(alone, found, 1e-3 if task == "detection" else 1e-5)


def test_a_classifier_sees_what_the_evaluation_sees(classifier: Any, photographs: Path) -> None:
    """Bytes are handed over and normalised beside the network; the network's input is the same to the bit."""
    seen: list[torch.Tensor] = []
    hook = classifier.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = open_images([photographs])
    expected = torch.stack(
        [
            eval_transform(parse_recipe(model_values("classification"), "a").data)(images.open(n))  # type: ignore[attr-defined]
            for n in range(5)
        ]
    )
    try:
        classifier([images.open(n) for n in range(5)])
    finally:
        hook.remove()
    assert torch.equal(seen[0], expected)


def test_workers_change_nothing(classifier: Any, whole: list[str], photographs: Path, tmp_path: Path) -> None:
    options = {"batch_size": BATCH, "workers": 2}
    results = list(predict(classifier, open_images([photographs]), tmp_path / "a", **options))
    assert lines(tmp_path / "a") == whole
    assert [json.loads(line)["image"] for line in whole] == [result.image for result in results]
    assert json.loads((tmp_path / "a" / "predictions.json").read_text()) == [
        json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()
    ]
    with (tmp_path / "a" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["class"], float(row["probability"])) for row in rows] == [
        (result.image, entry["class"], entry["probability"])
        for result in results
        for entry in result.to_json()["top"]
    ]
    for result in results:
        (picture,) = result.pictures
        with Image.open(picture) as drawn:
            assert drawn.format == ("PNG" if result.image.endswith(".png") else "JPEG")


def test_the_promised_set_is_in_the_table(photographs: Path, tmp_path: Path) -> None:
    """The threshold is the median of the highest probabilities, so that half of the images have an answer."""
    predictor = predictor_of("classification", top_k=2)
    torch.nn.init.normal_(predictor.model.head.fc.weight, std=3.0)
    images = open_images([photographs])
    found = predictor.probabilities([predictor.prepare(images.open(number)) for number in range(NUM_IMAGES)])
    predictor.promise = Promise(0.9, float(np.median(found.max(axis=1))), NUM_IMAGES)
    predictor.columns = ClassPrediction.columns_with(predictor.promise)
    results = list(predict(predictor, images, tmp_path / "out", pictures=False))
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = [(row["image"], row["class"], row["in the 0.9 set"]) for row in csv.DictReader(file)]
    expected = []
    for result in results:
        record = result.to_json()
        for entry in record["top"]:
            expected.append(
                (result.image, entry["class"], "yes" if entry["class"] in record["answer"] else "")
            )
    assert rows == expected
    assert {kept for _, _, kept in rows} == {"", "yes"}


def _run(predictor: Any, inputs: list[Path], out: Path, options: dict[str, Any]) -> None:
    for result in predict(predictor, open_images(inputs), out, batch_size=BATCH, **options):
        del result


@pytest.mark.parametrize("pictures", [True, False])
def test_kills_lose_and_repeat_nothing(
    classifier: Any, whole: list[str], photographs: Path, tmp_path: Path, pictures: bool
) -> None:
    generator = random.Random(pictures)
    out, kills = tmp_path / "out", 0
    options = {"pictures": pictures, "workers": 1}
    for moment in sorted(generator.sample(range(NUM_IMAGES - BATCH), 3)):
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(classifier, [photographs], out, {**options, "resume": True})
        )
        process.start()
        while process.is_alive() and _num_lines(out) <= moment:
            time.sleep(0.002)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    before = _num_lines(out)
    results = list(
        predict(classifier, open_images([photographs]), out, resume=True, batch_size=BATCH, pictures=pictures)
    )
    assert kills
    assert len(results) == NUM_IMAGES - before
    found = [json.loads(line) for line in lines(out)]
    expected = [json.loads(line) for line in whole]
    assert [one["image"] for one in found] == [one["image"] for one in expected]
    assert all(close(one["top"], other["top"], 1e-6) for one, other in zip(found, expected, strict=True))
    with (out / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * NUM_IMAGES
    if pictures:
        assert [one["pictures"] for one in found] == [one["pictures"] for one in expected]
        for picture in (out / Path(name).name for one in found for name in one["pictures"]):
            with Image.open(picture) as opened:
                opened.load()
    assert not list(out.glob(".*"))


def _num_lines(out: Path) -> int:
    path = out / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("tail", [b'{"image": "ha', b"\0" * 700, b"[1]\n", b'{"image": 1'])
def test_half_a_line_is_repaired(
    classifier: Any, whole: list[str], photographs: Path, tmp_path: Path, tail: bytes
) -> None:
    out, options = tmp_path / "out", {"batch_size": BATCH, "pictures": False}
    results = predict(classifier, open_images([photographs]), out, **options)
    for _ in range(2 * BATCH):
        next(results)
    results.close()  # type: ignore[attr-defined]
    with (out / "predictions.jsonl").open("ab") as file:
        file.write(tail)
    with (out / "predictions.csv").open("ab") as file:
        file.write(b"half a ro")
    left = list(predict(classifier, open_images([photographs]), out, resume=True, **options))
    assert len(left) == NUM_IMAGES - 2 * BATCH
    assert [json.loads(line)["top"] for line in lines(out)] == [json.loads(line)["top"] for line in whole]
    assert "half" not in (out / "predictions.csv").read_text()


def test_only_the_same_prediction_is_resumed(photographs: Path, tmp_path: Path) -> None:
    predictor, other = predictor_of("classification"), predictor_of("classification")
    for number, one in enumerate((predictor, other)):
        one.source = tmp_path / f"{number}.ckpt"
        one.source.write_bytes(bytes([number]))
        one.options = {"--top-k": 5}
    images = open_images([photographs])
    list(predict(predictor, images, tmp_path / "out", pictures=False))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def resume(predictor: Any, images: Any = images, **options: Any) -> None:
        settings = {"pictures": False, "resume": True, **options}
        assert not list(predict(predictor, images, tmp_path / "out", **settings))

    resume(predictor)
    with pytest.raises(ValueError, match=r"checkpoint 0.ckpt .* began these predictions, now it is 1.ckpt"):
        resume(other)
    with pytest.raises(ValueError, match="--pictures False began these predictions, now it is True"):
        resume(predictor, pictures=True)
    with pytest.raises(ValueError, match="images 60 began these predictions, now it is 59"):
        resume(predictor, open_images(sorted(photographs.iterdir())[:59]))
    with pytest.raises(ValueError, match="names of the images"):
        resume(predictor, open_images(sorted(photographs.iterdir(), reverse=True)))
    predictor.options = {"--top-k": 3}
    with pytest.raises(ValueError, match="--top-k 5 began these predictions, now it is 3"):
        resume(predictor)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no predictions to resume"):
        PredictionRun(predictor, images, tmp_path / "mine", resume=True)
    with pytest.raises(ValueError, match="exists; choose another --out"):
        PredictionRun(predictor, images, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_photographs_are_never_replaced_by_their_pictures(
    classifier: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(photographs, tmp_path / "photos")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(folder)
    for inputs, out in (([folder], folder), (["000.png"], Path("."))):
        with pytest.raises(
            ValueError, match=r"holds images to predict, such as .*000\.png.*; choose another --out"
        ):
            list(predict(classifier, open_images(inputs), out, overwrite=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    list(predict(classifier, open_images(["000.png"]), Path("."), overwrite=True, pictures=False))
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_what_predict_wrote_is_no_input_of_a_pattern(
    classifier: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photographs, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    first = open_images(["photos/**/*.jpg"])
    list(predict(classifier, first, Path("photos/out"), batch_size=BATCH))
    assert list(open_images(["photos/**/*.jpg"]).names) == list(first.names)
    assert len(open_images(["photos/out/*.jpg"])) == len(first)  # unless they are meant
    (tmp_path / "photos/out/predictions.jsonl").unlink()  # as several processes leave it that were killed
    assert len(open_images(["photos"])) == NUM_IMAGES


def test_pictures_of_many_images_of_one_name_are_named_at_once() -> None:
    images = Images.of_files(f"{number}/rgb/0.png" for number in range(20_000))
    stems = list(_unused_stems(images, [""]))
    assert stems[:3] == ["rgb_0", "rgb_0_2", "rgb_0_3"]
    assert len(set(stems)) == 20_000
    others = Images.of_files(["a/x.png", "b/x.png", "c/a_x.png", "a/x.jpg"])
    assert list(_unused_stems(others, ["", "_mask"])) == ["a_x", "b_x", "a_x_2", "a_x_3"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda" if not torch.cuda.is_available() else "xpu"])
def test_devices_that_are_not_there_are_said(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--device {device}: PyTorch cannot use it here"):
        require_device(device)
    require_device("cpu")


def test_a_folder_has_one_prediction_at_a_time(classifier: Any, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    images = open_images([photographs])
    list(predict(classifier, images, out, pictures=False))
    with RunLock(out, "predict") as lock:
        lock.path.write_text(
            json.dumps({**json.loads(lock.path.read_text()), "pid": os.getppid(), "started": _age()})
        )
        with pytest.raises(ValueError, match="is predicting in this folder"):
            PredictionRun(classifier, images, out, overwrite=True)


def _age() -> str:
    return Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]


def shard(path: Path, files: list[Path]) -> Path:
    """A WebDataset shard: each image beside a text."""
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, f"some/{file.name}")
            note = tarfile.TarInfo(f"some/{file.stem}.txt")
            note.size = 4
            tar.addfile(note, io.BytesIO(b"note"))
    return path


def test_images_are_found_wherever_they_are_named(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photographs.iterdir())
    (tmp_path / "folder").mkdir()
    shard(tmp_path / "folder" / "0.tar", files[:5])
    shutil.copy(files[5], tmp_path / "folder" / "5.jpg")
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text(f"{files[7]}\n\nfolder/0.tar\nmissing.jpg\r\n")
    names = [f"folder/0.tar/some/{file.name}" for file in files[:5]]
    for inputs, expected in (
        (["folder"], [*names, "folder/5.jpg"]),
        (["folder/*.jpg", "fol*"], ["folder/5.jpg", *names, "folder/5.jpg"]),
        (["@list.txt"], [str(files[7]), *names, "missing.jpg"]),
        (["**/*.tar"], names),
    ):
        assert list(open_images(inputs).names) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(f"{files[3]}\n"))))
    assert list(open_images(["@-"]).names) == [str(files[3])]
    images = open_images(["folder"])
    for number in range(6):
        assert images.open(number).tobytes() == open_images(files[:6]).open(number).tobytes()
    assert images.stem(1) == ("some", "001")
    with pytest.raises(ValueError, match=r"missing\.jpg: no such image"):
        open_images(["@list.txt"]).open(6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("typo.jpg", "no such image or folder"),
        ("*.xyz", "no image matches this pattern"),
        ("@typo.txt", "no such list"),
        ("@empty.txt", "an empty list"),
        ("a.tar.gz", "compressed"),
        ("cut.tar", "ends early or is damaged"),
        ("none.tar", "no images in this tar file"),
    ],
)
def test_inputs_that_name_no_image_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("a.tar.gz").write_bytes(b"x")
    whole = shard(tmp_path / "whole.tar", sorted(photographs.iterdir())[:3]).read_bytes()
    Path("cut.tar").write_bytes(whole[:5000])
    shard(tmp_path / "none.tar", [])
    with pytest.raises(ValueError, match=message):
        open_images([given])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_disappears_stops_it_and_nothing_is_lost(
    classifier: Any, whole: list[str], photographs: Path, tmp_path: Path, workers: int
) -> None:
    files, out = sorted(photographs.iterdir()), tmp_path / "out"
    shards = [shard(tmp_path / "0.tar", files[:30]), shard(tmp_path / "1.tar", files[30:])]
    images = open_images(shards)
    options = {"pictures": False, "workers": workers, "batch_size": BATCH}
    shards[1].rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"1\.tar: No such file or directory, though it was there"):
        list(predict(classifier, images, out, **options))
    assert _num_lines(out) == 30, "the batch in which it was lost is cut short"
    (tmp_path / "away").rename(shards[1])
    assert len(list(predict(classifier, images, out, resume=True, **options))) == 30
    found = [json.loads(line)["top"] for line in lines(out)]
    assert all(close(one, json.loads(line)["top"], 1e-6) for one, line in zip(found, whole, strict=True))


def test_bad_images_are_counted_and_the_others_keep_their_places(
    classifier: Any, photographs: Path, tmp_path: Path
) -> None:
    good = sorted(photographs.iterdir())[:20]
    (tmp_path / "broken.jpg").write_bytes(good[1].read_bytes()[:300])
    paths = [*good[:3], tmp_path / "broken.jpg", tmp_path / "missing.jpg", *good[3:]]
    results = list(predict(classifier, paths, tmp_path / "out", workers=2, batch_size=4))
    assert [result.image for result in results] == [str(path) for path in paths]
    assert [result.error is not None for result in results] == [number in (3, 4) for number in range(22)]
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        errors = {row["image"]: row["error"] for row in csv.DictReader(file) if row["error"]}
    assert set(errors) == {str(tmp_path / "broken.jpg"), str(tmp_path / "missing.jpg")}


def test_one_bad_answer_spoils_no_other_of_its_batch(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of("classification")
    forward = predictor.model.forward

    def nan_for_bright(images: torch.Tensor) -> torch.Tensor:
        logits = forward(images)
        logits[images.flatten(1).mean(1) == brightest] = float("nan")
        return logits

    images = open_images([photographs])
    seen = [predictor.prepare(images.open(number)).float().mean() for number in range(8)]
    brightest_number = int(torch.stack(seen).argmax())
    pixels = predictor.prepare(images.open(brightest_number)).float().div(255)
    brightest = ((pixels - predictor.mean) / predictor.std).flatten().mean()
    monkeypatch.setattr(predictor.model, "forward", nan_for_bright)
    paths = [Path(images.names[number]) for number in range(8)]
    errors = [result.error for result in predict(predictor, paths, batch_size=8)]
    assert [error is not None for error in errors] == [number == brightest_number for number in range(8)]
    assert "not a number" in str(errors[brightest_number])


def test_a_full_disk_is_said_and_the_results_before_it_are_whole(
    classifier: Any, photographs: Path, tmp_path: Path
) -> None:
    """The limit on file sizes makes the real writes fail as those on a full disk do."""
    out, images, limits = (
        tmp_path / "out",
        open_images([photographs]),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"predictions\.jsonl"):
            list(predict(classifier, images, out, pictures=False, batch_size=BATCH))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    before = [json.loads(line)["image"] for line in lines(out)]
    assert before == [images.names[number] for number in range(len(before))]
    assert len(before) >= BATCH
    left = list(predict(classifier, images, out, pictures=False, batch_size=BATCH, resume=True))
    assert len(before) + len(left) == NUM_IMAGES == len(lines(out))


_PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_predict import BATCH, open_images, predict, predictor_of
images = open_images([Path(sys.argv[1])])
for number, result in enumerate(predict(predictor_of("classification"), images, Path(sys.argv[2]), pictures=False,
                                        batch_size=BATCH, resume=True)):
    if sys.argv[3] == "die" and number == 9:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_share_the_images_and_merge_in_order(
    whole: list[str], photographs: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", tmp_path / "program.py"
    program.write_text(_PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29571",
    ]
    command += [str(program), str(photographs), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = {"env": environment, "capture_output": True, "timeout": 200, "text": True}
    died = subprocess.run([*command, "die"], **run)  # type: ignore[call-overload]
    assert died.returncode != 0
    assert (
        0 < sum(path.read_bytes().count(b"\n") for path in out.glob("predictions.*-of-2.jsonl")) < NUM_IMAGES
    )
    ended = subprocess.run([*command, "live"], **run)  # type: ignore[call-overload]
    assert ended.returncode == 0, ended.stderr
    ours = [{**json.loads(line), "pictures": None} for line in lines(out)]
    assert [one["image"] for one in ours] == [json.loads(line)["image"] for line in whole]
    assert all(
        close(one["top"], json.loads(line)["top"], 1e-6) for one, line in zip(ours, whole, strict=True)
    )
    names = ["predict.json", "predictions.csv", "predictions.json", "predictions.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
