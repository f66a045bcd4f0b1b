"""The command line: what it prints, what it writes, and what it says when something is wrong."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import crossformerpp
from crossformerpp.cli import main
from crossformerpp.data.classification import open_digits
from tiny import tiny_values

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process; give its exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        code = exit.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values()))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders of image files: three real digits, in other formats and sizes."""
    root = tmp_path_factory.mktemp("photos")
    digits = open_digits("train", 32)
    for label, name in enumerate(["zero", "one", "two"]):
        (root / name).mkdir()
        own = [number for number, other in enumerate(digits.labels) if other == label]
        for place, number in enumerate(own[:30]):
            image = digits.open(number).resize((48 + place, 40))
            image.save(root / name / f"{place}.{('jpg', 'png', 'bmp')[place % 3]}")
    return root


@pytest.fixture(scope="module")
def run(page: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the folder."""
    path = tmp_path_factory.mktemp("runs") / "photos"
    arguments = ["train", str(page), "--data", str(photos), "--out", str(path)]
    with pytest.raises(SystemExit) as exit:
        main(
            [
                *arguments,
                "--set",
                "trainer.batch_size=24",
                "--set",
                "trainer.steps=6",
                "--set",
                "optim.lr=2e-3",
            ]
        )
    assert exit.value.code == 0
    return path


def test_models_are_listed_as_they_are_measured(call: Call) -> None:
    status, out, err = call("models", "--json")
    assert (status, err) == (0, "")
    records = {record["name"]: record for record in json.loads(out)}
    assert len(records) == 8
    small = records["crossformerpp_small"]
    assert small["params"] == pytest.approx(23.325e6, abs=500)
    assert small["macs"] == pytest.approx(4.39e9, rel=0.01)
    assert (small["group_sizes"], small["intervals"]) == ([4, 4, 14, 7], [4, 2, 1, 1])


def test_the_table_of_models_is_for_people(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossformerpp.cli.models._variants", lambda: ["crossformer_tiny"])
    status, out, _ = call("models")
    assert status == 0
    for text in ("crossformer_tiny", "27.777M", "2.86G", "7, 7, 7, 7", "8, 4, 2, 1"):
        assert text in out


def test_training_on_a_folder_and_judging_it(call: Call, run: Path, photos: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["samples"] == 18  # a fifth of 90
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["root"] == str(photos)
    status, out, _ = call("eval", run, "--json")
    assert status == 0
    again = json.loads(out)
    assert {key: metrics[key] for key in ("top1", "loss", "samples")}.items() <= again.items()
    assert json.loads((run / "eval" / "metrics.json").read_text())["top1"] == metrics["top1"]
    assert (run / "eval" / "confusion.png").exists()
    status, out, _ = call("eval", run, "--data", photos)  # everything in it, in a folder beside the first
    assert status == 0
    assert "90" in out
    assert (run / "eval-2" / "predictions.csv").exists()


def test_predictions_name_every_image(call: Call, run: Path, photos: Path, tmp_path: Path) -> None:
    first, folder = photos / "one" / "0.jpg", tmp_path / "some"
    (folder / "deep").mkdir(parents=True)
    for name in ("0.jpg", "1.png", "deep/2.bmp"):
        shutil.copy(photos / "two" / Path(name).name, folder / name)
    status, out, _ = call("predict", run, first, folder, "--out", tmp_path / "out", "--top-k", 2, "--json")
    assert status == 0
    records = json.loads(out)
    assert len(records) == 4
    assert records == json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert records[0]["image"] == str(first)
    assert [entry["class"] in ("zero", "one", "two") for entry in records[0]["top"]] == [True, True]
    assert records[0]["top"][0]["probability"] >= records[0]["top"][1]["probability"]
    pictures = {Path(path) for record in records for path in record["pictures"]}
    assert {path.stem for path in pictures} == {"one_0", "some_0", "1", "2"}
    assert all(Image.open(path).width >= 320 for path in pictures)
    status, out, _ = call("predict", run / "checkpoints" / "last.ckpt", first, "--out", tmp_path / "table")
    assert status == 0
    assert "0.jpg" in out
    assert "%" in out


def test_bad_images_are_named_and_the_others_are_predicted(
    call: Call, run: Path, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (2, 5)).save(tmp_path / "small.png")
    Image.new("RGB", (1, 1500)).save(tmp_path / "line.png")
    (tmp_path / "broken.jpg").write_bytes((photos / "one" / "0.jpg").read_bytes()[:300])
    good = photos / "one" / "0.jpg"
    status, out, err = call(
        "predict",
        run,
        tmp_path / "small.png",
        good,
        tmp_path / "broken.jpg",
        tmp_path / "line.png",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert status == 2
    assert "line.png: 1x1500 pixels; one side is more than 1000 times the other" in err
    assert "broken.jpg: unreadable image" in err
    assert "2 of 4 images could not be predicted" in err
    assert ["error" in record for record in json.loads(out)] == [False, False, True, True]


def test_predictions_are_resumed_by_their_folder(call: Call, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("predict", run, photos, "--no-pictures", "--top-k", 1, "--batch-size", 4, "--resume")
    status, said, err = call(*command)
    assert (status, said) == (2, "")
    assert "--resume needs --out" in err
    assert call(*command, "--out", out, "--workers", 1)[0] == 0
    whole = (out / "predictions.jsonl").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [
        "predict.json", "predictions.csv", "predictions.json", "predictions.jsonl",
    ]  # fmt: skip
    (out / "predictions.jsonl").write_bytes(whole[:1000])
    status, said, err = call(*command, "--out", out, "--json")
    assert status == 0
    assert f"{whole[:1000].count(b'}]')} of 90 images were done before" in err
    assert [entry["image"] for entry in json.loads(said)] == [
        json.loads(line)["image"] for line in whole.splitlines()
    ]
    assert (out / "predictions.csv").read_bytes().count(b"\n") == 91
    status, _, err = call(*command, "--out", out, "--set", "data.eval_resize=40")
    assert status == 2
    assert "--set [] began these predictions, now it is ['data.eval_resize=40']" in err


def test_an_image_that_is_not_there_leaves_no_folder(call: Call, run: Path, tmp_path: Path) -> None:
    status, _, err = call("predict", run, tmp_path / "typo.png", "--out", tmp_path / "out")
    assert status == 2
    assert "typo.png: no such image or folder" in err
    assert not (tmp_path / "out").exists()


def test_what_exists_is_kept(call: Call, run: Path, photos: Path, page: Path, tmp_path: Path) -> None:
    image = photos / "one" / "0.jpg"
    (tmp_path / "notes.txt").write_text("mine")
    for command in (
        ("predict", run, image, "--out", tmp_path),
        ("eval", run, "--out", tmp_path),
        ("train", page, "--out", tmp_path),
        ("train", page, "--out", run),
    ):
        status, out, err = call(*command)
        assert (status, out) == (2, "")
        assert "exists" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert call("predict", run, image, "--out", tmp_path, "--overwrite")[0] == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_resumed_by_its_folder(call: Call, page: Path, tmp_path: Path) -> None:
    assert call("train", page, "--out", tmp_path / "run", "--set", "trainer.steps=2")[0] == 0
    status, out, _ = call("train", "--resume", tmp_path / "run", "--json")
    assert status == 0
    assert json.loads(out)["samples"] == 450


MISTAKES = {
    "no such command": (["trian"], "No such command 'trian'"),
    "no such option": (["models", "--jsn"], "No such option"),
    "nothing to train": (["train"], "give a recipe, or --resume RUN"),
    "unknown recipe": (["train", "digit"], "no recipe 'digit'; did you mean digits?"),
    "unknown model": (
        ["train", "digits", "--set", "model.name=crossformer_smal", "--out", "x"],
        "no model 'crossformer_smal'; did you mean crossformer_small?",
    ),
    "two bad keys": (
        ["train", "digits", "--set", "optim.lrr=1", "--set", "traner.epochs=1"],
        "optim.lrr: unknown key, did you mean lr?; traner: unknown key, did you mean trainer?",
    ),
    "no data": (["train", "folder", "--out", "x"], "pass --data FOLDER"),
    "no such data": (["train", "folder", "--data", "nowhere", "--out", "x"], "nowhere: no such folder"),
    "resume and recipe": (["train", "digits", "--resume", "x"], "give a recipe, or --resume RUN"),
    "resume with settings": (["train", "--resume", "x", "--data", "y"], "the run's own recipe"),
    "resume of nothing": (["train", "--resume", "nowhere"], "nowhere: not a run"),
    "group size 0": (
        ["train", "digits", "--set", "model.options.group_sizes=[0, 4, 2, 1]", "--out", "x"],
        "group size",
    ),
    "eval of nothing": (["eval", "nowhere"], "nowhere: no such run or checkpoint"),
    "predict by nothing": (["predict", "nowhere", "a.png"], "nowhere: no such run or checkpoint"),
    "convert nothing": (
        ["convert", "nowhere.pth", "x.safetensors", "--model", "crossformer_small"],
        "there is no checkpoint nowhere.pth",
    ),
    "convert to an unknown model": (
        ["convert", "nowhere.pth", "x.safetensors", "--model", "crossformer_smal"],
        "did you mean 'crossformer_small'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_status_2(
    call: Call, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("crossformer: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_warnings_to_users_are_one_line(call: Call, tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.warns(UserWarning, match="have no mask") as caught:
        status, out, _ = call("data", "check", tmp_path)
    assert status == 1
    assert "1 have no mask" in out
    said = [warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught]
    text = "1 of 2 images have no mask and are left out, the first is"
    assert said == [f"crossformer: warning: {text} {tmp_path / 'images' / 'b.png'}\n"]
    assert "UserWarning" in warnings.formatwarning("from elsewhere", UserWarning, "/other/package.py", 1)


def test_a_checkpoint_with_code_is_refused_and_not_executed(call: Call, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"model": Code()}, tmp_path / "bad.pth")
    for command in (
        ("predict", tmp_path / "bad.pth", "a.png"),
        ("convert", tmp_path / "bad.pth", tmp_path / "x.safetensors", "--model", "crossformer_small"),
    ):
        status, _, err = call(*command)
        assert status == 2
        assert "refused" in err
    assert not (tmp_path / "exploded").exists()


def test_the_version_and_the_help_of_a_missing_command(call: Call) -> None:
    assert call("--version") == (0, f"crossformerpp {crossformerpp.__version__}\n", "")
    for group in ((), ("analyze",), ("data",)):
        status, out, err = call(*group)
        assert (status, err) == (2, "")
        assert "Usage: " in out


def test_the_package_and_its_help_load_no_trainer() -> None:
    program = (
        "import sys, crossformerpp, crossformerpp.cli\n"
        "heavy = {'pytorch_lightning', 'torchmetrics', 'matplotlib', 'sklearn', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.argv = ['crossformer', '--help']\n"
        "try:\n    crossformerpp.cli.main()\n"
        "finally:\n    assert 'pytorch_lightning' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in ("train", "eval", "predict", "models", "convert"):
        assert command in result.stdout


def test_predicting_needs_no_trainer_and_training_says_that_it_does(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "sys.modules['pytorch_lightning'] = sys.modules['torchmetrics'] = sys.modules['sklearn'] = None\n"
        "from crossformerpp.cli import main\n"
        "for arguments in (sys.argv[1:], ['train', 'digits']):\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit as exit:\n        print('status', exit.code)\n"
    )
    arguments = ["predict", str(run), str(photos / "one" / "0.jpg"), "--out", str(tmp_path / "p")]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert [line for line in result.stdout.splitlines() if "status" in line] == ["status 0", "status 2"]
    assert (
        "this needs pytorch_lightning: pip install '.[train]' in a checkout of crossformerpp" in result.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_in_a_callback_whose_exceptions_python_drops(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = f"""
import os, signal, sys, time, weakref
from crossformerpp import cli

def command(**_):
    class Thing: ...
    thing = Thing()
    reference = weakref.ref(thing, lambda _: (os.kill(os.getpid(), {int(number)}), time.sleep(0)))
    del thing
    for _ in range(2000):
        time.sleep(0.01)

cli.app = command
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
cli.main([])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 128 + number
    assert "Traceback" not in ended.stderr
