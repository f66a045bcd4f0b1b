"""Classification: losses are timm's, an evaluation counts right, what is saved is what is opened."""

import csv
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.real_labels import RealLabelsImagenet

import crossformerpp
from crossformerpp import engine
from crossformerpp.data.classification import LabelledImages, TransformedImages
from crossformerpp.data.devkit import read_real_labels
from crossformerpp.data.sampling import seed_generators
from crossformerpp.data.split import Split
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.classification import Classification, eval_transform, train_transform
from crossformerpp.tasks.classification import module as classification
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.module import ClassificationModule, Predictions
from crossformerpp.tasks.classification.predictor import readable
from crossformerpp.tasks.optim import Plan, build_optimizer
from crossformerpp.tasks.saved import open_saved
from tiny import tiny_recipe


def module_with(*overrides: str) -> ClassificationModule:
    recipe = tiny_recipe("model.options.drop_path_rate=0", "augment.mixup=0", *overrides)
    module = Classification().module(recipe, ["a", "b", "c", "d"])
    assert isinstance(module, ClassificationModule)
    return module


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 3, 32, 32), torch.arange(8) % 4, torch.arange(8)


def test_plain_and_smoothed_losses() -> None:
    images, labels, _ = batch()
    for smoothing in (0.0, 0.1):
        module = module_with(f"label_smoothing={smoothing}")
        expected = F.cross_entropy(module.model(images), labels, label_smoothing=smoothing)
        torch.testing.assert_close(module.loss(batch())["loss"], expected)


@pytest.mark.parametrize(
    "overrides", [("label_smoothing=0.1",), ("augment.mixup=0.2",), ("loss.name=focal",)]
)
def test_losses_are_of_full_precision_under_autocast(overrides: tuple[str, ...]) -> None:
    module = module_with(*overrides)
    images, labels = module._mixed(batch())
    logits = torch.randn(8, 4).bfloat16()
    expected = module._losses(images, labels, logits.float())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module._losses(images, labels, logits)["loss"], expected)


def test_what_processes_exchange_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are kept on the CPU, where NCCL, which GPUs talk by, cannot fetch them."""

    def gather(values: torch.Tensor, group: Any) -> list[torch.Tensor]:
        assert values.device.type == "meta"
        return [torch.full(values.shape, rank) for rank in range(2)]

    monkeypatch.setattr(classification, "gather_all_tensors", gather)
    seen = Predictions().to("meta")
    seen.update(torch.arange(3), torch.arange(3), torch.ones(3, 4))
    seen.sync(seen.dist_sync_fn, distributed_available=lambda: True)
    numbers, _, probabilities = Predictions.compute(seen)
    assert numbers.tolist() == [0, 0, 0, 1, 1, 1]
    assert probabilities.shape == (6, 4)


def test_a_run_without_its_metric_is_refused() -> None:
    module = module_with()
    for metrics in ({}, {"top1": float("nan")}):
        module.last_evaluation = SimpleNamespace(metrics=metrics)
        with pytest.raises(ValueError, match="so that there is no top1"):
            _ = module.result


def test_mixup_pairs_the_batch_with_its_mirror_and_mixes_the_targets_alike() -> None:
    module = module_with("augment.mixup=0.8", "label_smoothing=0.1")
    seed_generators(4)
    found = module.loss(batch())["loss"]
    seed_generators(4)
    images, labels, _ = batch()
    mixed, targets = module.mix(images, labels)  # type: ignore[misc]
    assert targets.shape == (8, 4)
    torch.testing.assert_close(found, -(targets * module.model(mixed).log_softmax(1)).sum(1).mean())
    seed_generators(5)
    assert module.loss(batch())["loss"] != found


def test_an_evaluation_gathers_every_sample_in_order_and_starts_afresh() -> None:
    module = module_with()
    images, labels, numbers = batch()
    model = module.judged.eval()
    with torch.no_grad():
        for part in (slice(5, 8), slice(0, 5)):  # as two processes might deliver them
            module.evaluate_batch(model, (images[part], labels[part], numbers[part]))
        expected = model(images).softmax(1)
    found = module.evaluation()
    assert found.numbers.tolist() == list(range(8))
    torch.testing.assert_close(found.probabilities, expected)
    assert found.metrics["top1"] == pytest.approx((expected.argmax(1) == labels).float().mean().item())
    assert found.metrics["loss"] == pytest.approx(F.nll_loss(expected.log(), labels).item(), rel=1e-5)
    module.evaluate_batch(model, (images[:3], labels[:3], numbers[:3]))
    assert module.evaluation().metrics["samples"] == 3


def test_metrics_and_files_of_a_known_case(tmp_path: Path) -> None:
    names = [f"class{k}" for k in range(6)]
    labels = torch.tensor([0, 0, 0, 1, 5])
    probabilities = torch.full((5, 6), 0.02)
    for row, guess in enumerate([0, 0, 1, 1, 4]):
        probabilities[row, guess] = 0.9
    probabilities[4, 5] = 0.0  # the true class comes last: not among the first five
    found = ClassificationEvaluation(torch.arange(5), labels, probabilities, names)
    assert found.metrics["top1"] == pytest.approx(3 / 5)
    assert found.metrics["top5"] == pytest.approx(4 / 5)
    assert found.metrics["mean_class_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.confusion[0].tolist() == [2, 1, 0, 0, 0, 0]
    assert found.confusion[5, 4] == 1
    images = [Image.new("RGB", (40, 40), (40 * k, 0, 0)) for k in range(5)]
    source = LabelledImages(images, labels.tolist(), names, [f"sample{k}" for k in range(5)])
    found.write(tmp_path, Split(TransformedImages(source, lambda image: torch.zeros(1)), names))
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == ["class0", "class0", "class1", "class1", "class4"]
    assert rows[4] | {"confidence": ""} == {
        "sample": "sample4", "label": "class5", "predicted": "class4", "confidence": "", "correct": "0",
    }  # fmt: skip
    assert Image.open(tmp_path / "predictions.png").width > 8 * 100
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "class0.png",
        "class1.png",
        "class5.png",
    }


def test_views_have_the_recipes_size_whatever_the_image_was() -> None:
    recipe = load_recipe("folder")
    assert isinstance(recipe, ClassificationRecipe)
    for size in ((400, 300), (33, 700)):
        image = Image.new("RGB", size, "white")
        assert (
            train_transform(recipe)(image).shape == eval_transform(recipe.data)(image).shape == (3, 224, 224)
        )
    white = eval_transform(recipe.data)(Image.new("RGB", (256, 256), "white"))
    torch.testing.assert_close(
        white[:, 0, 0], (1 - torch.tensor(recipe.data.mean)) / torch.tensor(recipe.data.std)
    )


def test_any_timm_model_can_be_named() -> None:
    module = module_with("model.name=resnet10t", "model.options={}", "model.grad_checkpointing=true")
    assert module.loss(batch())["loss"].isfinite()


def test_imagenets_numbers_are_put_in_words() -> None:
    assert readable(["n01440764", "n02123045"]) == ["tench, Tinca tinca", "tabby, tabby cat"]
    assert readable(["n01440764", "cat"]) == ["n01440764", "cat"]


def write_checkpoint(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_files_that_are_no_checkpoints_are_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="refused, for it holds more than weights"):
        open_saved(write_checkpoint(tmp_path / "bomb.ckpt", {"state_dict": Bomb()}))
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(
        ValueError, match="not a checkpoint of `crossformer train`; weights of the authors' release"
    ):
        open_saved(write_checkpoint(tmp_path / "other.pth", {"model": {}}))
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt: (refused|not a readable checkpoint)"):
        open_saved(tmp_path / "text.ckpt")
    with pytest.raises(ValueError, match="gone: no such run or checkpoint"):
        open_saved(tmp_path / "gone")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: no checkpoints/best\.ckpt in it"):
        open_saved(tmp_path / "folder")


def test_a_converted_file_is_a_classifier_of_imagenet(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("crossformer_tiny").eval()
    path = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), path, {"format": "pt", "model": "crossformer_tiny"})
    saved = open_saved(path)
    assert saved.class_names[0] == "n01440764"
    predictor = Classification().predictor(saved, top_k=2)
    image = Image.new("RGB", (300, 200), "green")
    found = predictor(image).to_json()["top"]
    with torch.no_grad():
        expected = model(eval_transform(saved.recipe.data)(image)[None]).softmax(1)  # type: ignore[attr-defined]
    assert found[0]["probability"] == pytest.approx(expected.max().item(), rel=1e-4)
    assert json.dumps(found)
    save_file(model.state_dict(), path)
    with pytest.raises(ValueError, match="not a classifier written by `crossformer convert`"):
        open_saved(path)
    assert crossformerpp.VARIANTS


def test_a_linear_probe_learns_the_head_and_leaves_all_else_as_it_is() -> None:
    module = module_with("frozen_backbone=true", "model.name=resnet10t", "model.options={}")
    module.train()
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    module.plan = Plan(steps=10, steps_per_epoch=10)
    optimizer = build_optimizer(module.model, module.recipe)
    module.loss(batch())["loss"].backward()
    optimizer.step()
    changed = {key for key, value in module.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_linear_probe_trains_no_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trainer, which leaves the module's mode to the module, and after an evaluation."""
    modes: list[bool] = []
    loss = ClassificationModule.loss
    monkeypatch.setattr(
        ClassificationModule,
        "loss",
        lambda self, batch: modes.append(self.model.training) or loss(self, batch),
    )
    frozen = ("frozen_backbone=true", "model.name=resnet10t", "model.options={}", "ema=null")
    engine.train(tiny_recipe(*frozen, "trainer.steps=3", "trainer.eval_every=2"), tmp_path / "run")
    assert modes == [False] * 3
    weights = open_saved(tmp_path / "run").weights
    assert all(not value.any() for key, value in weights.items() if key.endswith("running_mean"))


def test_unreadable_images_are_counted_but_not_judged() -> None:
    module = module_with()
    images, labels, numbers = batch()
    numbers[3] = ~3
    with torch.no_grad():
        module.evaluate_batch(module.judged.eval(), (images, labels, numbers))
    found = module.evaluation()
    assert found.numbers.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert (found.metrics["samples"], found.metrics["unreadable"]) == (7, 1)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    probabilities = torch.tensor([[0.9, 0.1]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4)  # 90% sure, 60% right
    found = ClassificationEvaluation(torch.arange(10), labels, probabilities, ["a", "b"])
    assert found.metrics["calibration_error"] == pytest.approx(0.3, abs=1e-5)


def test_real_labels_count_as_timms_evaluator_counts_them(tmp_path: Path) -> None:
    real = [[0], [1, 2], [], [3]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    names = [f"val/n0/ILSVRC2012_val_{number:08d}.JPEG" for number in (4, 3, 1, 2)]  # in another order
    assert read_real_labels(tmp_path / "real.json", names) == [[3], [], [0], [1, 2]]
    torch.manual_seed(1)
    probabilities = torch.eye(6)[[3, 0, 5, 2]]
    found = ClassificationEvaluation(
        torch.arange(4), torch.zeros(4, dtype=torch.long), probabilities, list("abcdef"),
        real_labels=read_real_labels(tmp_path / "real.json", names),
    )  # fmt: skip
    reference = RealLabelsImagenet(names, str(tmp_path / "real.json"))
    reference.add_result(probabilities)
    assert (
        found.metrics["real_top1"] == pytest.approx(reference.get_accuracy(1) / 100) == pytest.approx(2 / 3)
    )
    assert found.metrics["real_samples"] == 3
    with pytest.raises(ValueError, match=r"cat\.jpg is not one of the 4 images"):
        read_real_labels(tmp_path / "real.json", ["cat.jpg"])
    assert len(read_real_labels("imagenet", ["ILSVRC2012_val_00050000.JPEG"])) == 1


def test_augmentation_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment\.auto_augment: 'rand-x9'"):
        train_transform(tiny_recipe("augment.auto_augment=rand-x9"))  # type: ignore[arg-type]


def test_small_images_under_a_recipe_for_large_ones_are_pointed_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40 + number, 60)).save(tmp_path / "photos" / name / f"{number}.png")
        (tmp_path / "photos" / name / "broken.png").write_bytes(b"no image")
    recipe = load_recipe("folder", [f"data.root={tmp_path / 'photos'}"])
    with pytest.warns(UserWarning, match=r"about 4\d pixels.*enlarged to 224.*--set data.size=4\d"):
        Classification().split(recipe, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classification().split(
            load_recipe("folder", [f"data.root={tmp_path / 'photos'}", "data.size=64"]), "train"
        )
