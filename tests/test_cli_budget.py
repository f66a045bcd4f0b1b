"""`analyze budget` and `analyze cascade` on real digits, and the dial that they leave in a run."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from crossformerpp.analysis.conformal import Promise
from crossformerpp.cli import main
from crossformerpp.data.digits import load_digits
from crossformerpp.engine.budget import Judge
from crossformerpp.recipes.load import dump_recipe, load_recipe
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification.promise import read_promise, write_promise
from crossformerpp.tasks.points import open_at, overrides_at, parse_budget, read_front, recipe_at
from crossformerpp.tasks.saved import KEY, open_saved, pack
from tiny import tiny_recipe

BUDGET = [
    "--evaluations",
    7,
    "--group-size",
    2,
    "--group-size",
    8,
    "--size",
    32,
    "--size",
    48,
    "--randoms",
    2,
]


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(list(map(str, arguments)))
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """90 real digits in class folders."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = load_digits("val", 48)
    for number, (image, label) in enumerate(zip(images[:90], labels[:90], strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        image.save(root / str(label) / f"{number:03}.png")
    return root


def make_run(folder):
    """A run as training leaves it, with weights so large that every setting answers differently."""
    recipe = tiny_recipe("ema=null", "data.size=48", "data.eval_resize=48", "trainer.eval_batch_size=90")
    torch.manual_seed(1)
    model = create_model(recipe.model, num_classes=10)
    for name, weight in model.state_dict().items():
        if name.endswith("qkv.weight") or name == "head.fc.weight":
            weight.mul_(20)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    names = [str(number) for number in range(10)]
    content = {KEY: pack(dump_recipe(recipe), names, 4), "state_dict": state}
    for name in ("best", "last"):
        torch.save(content, folder / "checkpoints" / f"{name}.ckpt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """With a front and a cascade."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    with pytest.raises(SystemExit) as exit_:
        main(["analyze", "budget", str(folder), "--data", str(digits), *map(str, BUDGET)])
    assert exit_.value.code == 0
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_front_is_written_in_every_form(run) -> None:
    folder = run / "budget"
    front = json.loads((folder / "front.json").read_text())
    points, measured = front["points"], rows(folder / "budget.csv")
    assert (front["step"], front["metric"]) == (4, "top1")
    assert len(measured) == 7
    assert len({row["macs"] for row in measured}) > 3
    assert sum(int(row["is_front"]) for row in measured) == len(points) >= 2
    assert [p["macs"] for p in points] == sorted(p["macs"] for p in points)
    for number, found in enumerate(points, start=1):
        assert found["low"] <= found["held_out"] <= found["high"]
        recipe = load_recipe(str(folder / "recipes" / f"point-{number}.yaml"))
        assert recipe.model.checkpoint == (run / "checkpoints" / "best.ckpt").resolve()
        assert recipe.data.size == found["setting"]["size"]
        for key in ("group_sizes", "intervals", "lda"):
            assert recipe.model.options[key] == found["setting"][key]
    assert Image.open(folder / "budget.png").width > 800
    rivals = rows(folder / "rivals.csv")
    assert {"published", "attention kept", "random"} == {row["rival"] for row in rivals}
    assert all(int(row["macs"]) <= int(row["budget"]) for row in rivals)


def test_plain_eval_counts_every_point_again(run, digits, call, tmp_path) -> None:
    points = read_front(run, open_saved(run)).points
    assert len({point.score for point in points}) > 1
    for number, point in enumerate(points):
        settings = overrides_at(open_saved(run).recipe, point.setting.model_dump())
        arguments = [
            part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        out = tmp_path / str(number)
        status, printed, err = call("eval", run, "--data", digits, "--out", out, "--json", *arguments)
        assert status == 0, err
        assert json.loads(printed)["top1"] == point.score
        with (out / "predictions.csv").open() as file:  # and once more without our arithmetic
            answers = [row["label"] == row["predicted"] for row in csv.DictReader(file)]
        assert sum(answers) / len(answers) == pytest.approx(point.score, abs=1e-6)
        assert len(answers) == 90


def test_a_killed_study_goes_on_as_if_nothing_had_happened(run, digits, call, tmp_path, monkeypatch) -> None:
    other = make_run(tmp_path / "run")
    log, whole = other / "budget" / "evaluations.jsonl", (run / "budget" / "evaluations.jsonl").read_bytes()
    log.parent.mkdir()
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]) + lines[5][:30])  # killed in the middle of a line
    evaluated = []
    evaluate = Judge.evaluate
    monkeypatch.setattr(Judge, "evaluate", lambda *a: evaluated.append(a[1]) or evaluate(*a))
    status, _, err = call("analyze", "budget", other, "--data", digits, *BUDGET)
    assert status == 0, err
    assert log.read_bytes().startswith(b"".join(lines[:5]))
    ours, theirs = ([json.loads(line) for line in text.splitlines()] for text in (log.read_bytes(), whole))
    assert len(evaluated) == len(theirs) - 5  # what the log had was not evaluated again
    for one, other_one in zip(ours, theirs, strict=True):
        assert {k: v for k, v in one.items() if k != "ms"} == {
            k: v for k, v in other_one.items() if k != "ms"
        }
    evaluated.clear()
    status, _, err = call("analyze", "budget", other, "--data", digits, *BUDGET, "--json")
    assert (status, evaluated) == (0, []), err
    status, _, err = call("analyze", "budget", other, "--data", digits, *BUDGET, "--resamples", 3)
    assert status == 2
    assert "with other --resamples; pass --overwrite" in err
    log.write_bytes(whole + b'{"setting": {}}\n')
    status, _, err = call("analyze", "budget", other, "--data", digits, *BUDGET)
    assert status == 2
    assert f"line {len(lines) + 1} is no measurement of a setting" in err


def test_predict_takes_the_most_accurate_point_within_a_budget(run, digits, call, tmp_path) -> None:
    points = read_front(run, open_saved(run)).points
    for point in points:
        within = [other for other in points if other.macs <= point.macs]
        best = max(within, key=lambda other: other.search)
        saved = open_at(run, f"{point.macs / 1e6:.6f}MMACs")
        assert saved.recipe == recipe_at(open_saved(run).recipe, best.setting.model_dump())
    slowest = max(point.ms for point in points)
    assert open_at(run / "checkpoints" / "best.ckpt", f"{slowest}ms").recipe.model.options["lda"]
    image = next((digits / "3").iterdir())
    shares = set()
    for budget in (f"{points[0].macs}MACs", f"{points[-1].macs}"):
        out = tmp_path / budget
        status, printed, err = call("predict", run, image, "--budget", budget, "--out", out, "--json")
        assert status == 0, err
        shares.add(json.loads(printed)[0]["top"][0]["probability"])
    assert len(shares) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1KMACs"], "costs so little; the cheapest takes 0.00"),
        (["--budget", "0.0001ms"], "costs so little; the cheapest takes"),
        (["--budget", "fast"], "--budget fast: give milliseconds, such as 30ms"),
        (["--budget", "0"], "--budget 0: give milliseconds"),
        (["--budget", "1G", "--cascade"], "pass one of them"),
    ],
)
def test_budgets_that_cannot_be_met_are_one_line(run, digits, call, tmp_path, arguments, message) -> None:
    image = next((digits / "3").iterdir())
    status, _, err = call("predict", run, image, "--out", tmp_path / "out", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_budgets_are_read_in_all_their_units() -> None:
    assert parse_budget("30ms") == ("ms", 30.0)
    assert parse_budget("1.5 ms") == ("ms", 1.5)
    assert parse_budget("2.1GMACs") == parse_budget("2100M") == ("macs", 2.1e9)
    assert parse_budget("380mmacs") == parse_budget("380e6".replace("e6", "M")) == ("macs", 380e6)
    assert str(parse_budget("2.1G")) == "2.1 GMACs"
    for text in ("0ms", "1e999", "1e999ms", "-1G", "nan"):
        with pytest.raises(ValueError, match="give milliseconds"):
            parse_budget(text)


def test_a_front_of_another_checkpoint_or_a_damaged_one_is_refused(run, digits, call, tmp_path) -> None:
    other = make_run(tmp_path / "run")
    image = next((digits / "3").iterdir())

    def answer():
        return call("predict", other, image, "--budget", "1G", "--out", tmp_path / "out", "--overwrite")

    assert "no front measured yet; `crossformer analyze budget" in answer()[2]
    assert "has none yet; `crossformer analyze cascade" in call("predict", other, image, "--cascade")[2]
    front = json.loads((run / "budget" / "front.json").read_text())
    (other / "budget").mkdir()
    for change, message in (
        ({"step": 8}, "measured after 8 steps and"),
        ({"points": []}, "damaged (points:"),
        ({"points": [{**front["points"][0], "macs": "many"}]}, "damaged (points.0.macs"),
    ):
        (other / "budget" / "front.json").write_text(json.dumps(front | change))
        status, _, err = answer()
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


def test_a_cascade_asks_the_large_setting_where_the_small_one_is_unsure(run, digits, call, tmp_path) -> None:
    status, printed, err = call("analyze", "cascade", run, "--data", digits, "--json")
    assert status == 0, err
    found = json.loads(printed)
    assert found == json.loads((run / "budget" / "cascade.json").read_text())
    assert found["small_macs"] < found["large_macs"]
    assert found["macs"] == pytest.approx(found["small_macs"] + found["share"] * found["large_macs"])
    curve = rows(run / "budget" / "cascade.csv")
    assert (float(curve[0]["share"]), float(curve[-1]["share"])) == (0.0, 1.0)
    images = sorted(digits.glob("*/*.png"))[:30]
    answers = {}
    for name, macs in (("small", found["small_macs"]), ("large", found["large_macs"])):
        arguments = ["predict", run, *images, "--budget", f"{macs}MACs", "--out", tmp_path / name, "--json"]
        answers[name] = json.loads(call(*arguments)[1])
    arguments = [
        "predict",
        run,
        *images,
        "--cascade",
        "--workers",
        1,
        "--out",
        tmp_path / "cascade",
        "--json",
    ]
    status, printed, err = call(*arguments)
    assert status == 0, err
    again = 0
    for ours, small, large in zip(json.loads(printed), answers["small"], answers["large"], strict=True):
        is_unsure = small["top"][0]["probability"] < found["threshold"]
        again += is_unsure
        wanted = (large if is_unsure else small)["top"]
        assert [entry["class"] for entry in ours["top"]] == [entry["class"] for entry in wanted]
        for entry, other in zip(ours["top"], wanted, strict=True):  # a batch of other images rounds otherwise
            assert entry["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert f"cascade: {again} of 30 images went on to the large setting" in err
    best = max(read_front(run, open_saved(run)).points, key=lambda point: point.search)
    assert found["large"] == best.setting.model_dump()


def test_an_export_is_of_the_point(run, digits, call, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    point = read_front(run, open_saved(run)).points[0]
    file = tmp_path / "small.onnx"
    status, _, err = call("export", run, "--out", file, "--budget", f"{point.macs}MACs")
    assert status == 0, err
    size = point.setting.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    (found,) = onnxruntime.InferenceSession(str(file)).run(None, {"images": images.numpy()})
    saved = open_saved(run)
    options = saved.recipe.model.options | {
        key: getattr(point.setting, key) for key in ("group_sizes", "intervals", "lda")
    }
    model = create_model(saved.recipe.model.model_copy(update={"options": options}), num_classes=10)
    model.load_state_dict(saved.weights)
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    # its certificate compares it with the run at this point
    status, printed, err = call("eval", file, "--checkpoint", run, "--data", digits, "--json")
    assert status == 0, err
    metrics = json.loads(printed)
    assert metrics["agreement"] == 1
    assert metrics["drift_largest"] < 1e-4
    assert metrics["top1"] == pytest.approx(metrics["checkpoint_top1"])
    status, _, err = call("predict", file, run, "--budget", "1G")
    assert status == 2
    assert "groups of an exported model are fixed" in err


def test_a_promise_of_the_own_setting_is_not_used_at_a_point(run) -> None:
    file = write_promise(open_saved(run), Promise(0.9, 0.5, 90))
    try:
        promise = read_promise(open_saved(run))
        assert promise is not None
        assert promise.coverage == 0.9
        with pytest.warns(UserWarning, match="not used at a point of its front"):
            assert read_promise(open_at(run, "1G")) is None
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget", "RUN", "--interval", "wide"], "--interval wide: give a whole number"),
        (["budget", "no_such_run"], "no such run or checkpoint"),
        (["cascade", "RUN", "--large", 99], "--large 99: the front has"),
        (["cascade", "RUN", "--small", 1, "--large", 1], "both are number 1"),
    ],
)
def test_mistakes_are_one_line(run, digits, call, arguments, message) -> None:
    texts = [run if text == "RUN" else text for text in arguments]
    status, _, err = call("analyze", *texts, "--data", digits)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_resnet_has_no_groups(tmp_path, call) -> None:
    recipe = tiny_recipe("ema=null", "model.name=resnet18", "model.options={}")
    weights = create_model(recipe.model, num_classes=10).state_dict()
    names = [str(number) for number in range(10)]
    state = {f"model.{key}": value for key, value in weights.items()}
    torch.save({KEY: pack(dump_recipe(recipe), names, 4), "state_dict": state}, tmp_path / "last.ckpt")
    status, _, err = call("analyze", "budget", tmp_path / "last.ckpt")
    assert status == 2
    assert "no CrossFormer in it" in err
