"""`crossformer replay` shows what training saw, to the last bit."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import test_tasks_detection_run as detection
import test_tasks_segmentation_run as segmentation
from crossformerpp import cli, engine
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.engine import replay
from crossformerpp.engine.files import RunFolder
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.classification.module import ClassificationModule
from crossformerpp.tasks.detection.module import DetectionModule
from crossformerpp.tasks.elastic import find_backbone
from crossformerpp.tasks.segmentation.module import SegmentationModule
from tiny import tiny_recipe


class Recorder:
    """Per step the loaded batches, what the backbone was given (augmented, mixed, normalised), and the losses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: dict[int, list[tuple[Any, list[torch.Tensor], dict[str, float]]]] = {}
        for kind in (ClassificationModule, DetectionModule, SegmentationModule):
            monkeypatch.setattr(kind, "loss", self._recorded(kind.loss))

    def _recorded(self, real: Any) -> Any:
        def loss(module: Any, batch: Any) -> dict[str, torch.Tensor]:
            loaded, given = copy.deepcopy(batch), []
            hook = find_backbone(module.model).register_forward_pre_hook(
                lambda _, inputs: given.append(inputs[0].detach().clone())
            )
            losses = real(module, batch)
            hook.remove()
            values = {name: float(value) for name, value in losses.items()}
            self.steps.setdefault(module.global_step + 1, []).append((loaded, given, values))
            return losses

        return loss


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def recipe_of(task: str, root: Path) -> BaseRecipe:
    scenes = root / "scenes"
    if task != "classification" and not scenes.exists():
        write_digit_scenes(scenes, train=8, val=2, size=96)
    if task == "classification":
        return tiny_recipe("trainer.accumulate=2")
    if task == "segmentation":
        for room in ("images", "masks"):
            for half in ("train", "val"):
                (root / "folder" / room).mkdir(parents=True, exist_ok=True)
                (root / "folder" / room / half).symlink_to(scenes / room / half)
        (root / "folder" / "classes.txt").write_bytes((scenes / "classes.txt").read_bytes())
        page = segmentation.recipe(root / "folder", "semantic_fpn", 4).model_dump()
    else:
        page = detection.recipe(scenes, task, 4).model_dump()
    page["model"]["options"]["drop_path_rate"] = 0.2
    page["schedule"]["warmup_steps"] = 1
    page["trainer"] |= {"steps": 4, "eval_every": 2, "batch_size": 4}
    return engine.parse_recipe(page, "test")


@pytest.mark.parametrize("task", ["classification", "retinanet", "mask_rcnn", "segmentation"])
def test_a_replayed_step_is_the_one_of_training(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        trained = Recorder(patch)
        engine.train(recipe_of(task, tmp_path), run)
    # from scratch to the second, and from best.ckpt or last.ckpt to the others
    (run / "checkpoints" / "best.ckpt").unlink()
    for step, from_start in ((1, False), (3, True)):
        with monkeypatch.context() as patch:
            recorder = Recorder(patch)
            found = replay.replay(run, step, from_start=from_start)
        assert found.why_not is None
        assert same(recorder.steps[step], trained.steps[step])
        assert [batch.losses for batch in found.batches] == [losses for _, _, losses in trained.steps[step]]
    # without weights: the same batch, without losses
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        found = replay.replay(run, 3)
    assert "no checkpoint before step 3; pass --from-start" in str(found.why_not)
    shown = [(batch, given) for batch, given, _ in recorder.steps[1]]  # no trainer counts steps
    assert same(shown, [(batch, given) for batch, given, _ in trained.steps[3]])
    assert {row["loss"] for row in found.rows()} == {""}


def test_a_step_after_a_checkpoint_is_trained_up_to_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", RunFolder.keep_as_best
    with monkeypatch.context() as patch:
        trained = Recorder(patch)
        # best.ckpt stays that of the first evaluation
        patch.setattr(RunFolder, "keep_as_best", lambda folder: folder.best.exists() or real(folder))
        engine.train(tiny_recipe("trainer.steps=6"), run)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        found = replay.replay(run, 5)
    assert found.trained_from == 2
    assert sorted(recorder.steps) == [3, 4, 5]
    assert all(same(recorder.steps[step], trained.steps[step]) for step in recorder.steps)


def test_losses_of_samples_are_those_of_their_batch(tmp_path: Path) -> None:
    """Independently: the mean over the samples is the loss of the batch where samples count alike."""
    engine.train(tiny_recipe("trainer.steps=2"), tmp_path / "run")
    (batch,) = replay.replay(tmp_path / "run", 1).batches
    assert len(batch.seen.losses) == 64
    assert sum(batch.seen.losses) / 64 == pytest.approx(batch.losses["loss"], rel=1e-5)
    assert batch.seen.partners == list(range(63, -1, -1))  # of Mixup


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_an_image_alone_in_its_batch_has_the_loss_of_its_batch(detector: str, tmp_path: Path) -> None:
    page = recipe_of(detector, tmp_path).model_dump()
    page["trainer"] |= {"batch_size": 1, "steps": 2}
    engine.train(engine.parse_recipe(page, "test"), tmp_path / "run")
    (batch,) = replay.replay(tmp_path / "run", 1).batches
    assert batch.seen.losses == [pytest.approx(batch.losses["loss"], rel=1e-5)]


def test_the_command_writes_pictures_and_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine.train(tiny_recipe("trainer.accumulate=2", "trainer.steps=2"), run)
    result = CliRunner().invoke(cli.app, ["replay", str(run), "--step", "1"])
    assert result.exit_code == 0, result.output
    folder = run / "replay" / "step-1"
    with (folder / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["batch"] for row in rows] == ["0"] * 32 + ["1"] * 32
    assert rows[0]["sample"].startswith("digits/train/")
    assert rows[0]["mixed_with"] == rows[31]["sample"]
    assert (folder / "batch-0-0.png").stat().st_size > 0
    page = json.loads((folder / "step.json").read_text())
    assert page["trained_from_step"] == 0
    assert page["batches"][1]["losses"]["loss"] > 0
    noted = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(noted | {"processes": 2}))
    found = replay.replay(run, 1)  # the same samples, spread over two processes
    assert "had 2 processes" in str(found.why_not)
    assert [len(batch.draws) for batch in found.batches] == [16] * 4
    assert sorted(row["sample"] for row in found.rows()) == sorted(row["sample"] for row in rows)
    with pytest.raises(ValueError, match="--step 9: the run has steps 1 to 2"):
        replay.replay(run, 9)
    with pytest.raises(ValueError, match="not a run with a checkpoint"):
        replay.replay(tmp_path, 1)
