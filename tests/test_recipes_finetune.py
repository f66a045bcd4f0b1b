"""The 384 page and the ImageNet-22k pair: they start from weights of another size or other classes."""

from pathlib import Path

import pytest

from crossformerpp import engine
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.saved import open_saved
from test_docs import class_folders

SMALL = (
    "model.options={embed_dim: 16, depths: [1, 1, 2, 1], num_heads: [1, 1, 1, 1]}",
    "trainer.epochs=null",
    "trainer.steps=2",
    "trainer.eval_every=2",
    "trainer.batch_size=8",
    "trainer.eval_batch_size=20",
    "trainer.workers=0",
    "schedule.warmup_epochs=0",
    "data.size=64",
    "data.eval_resize=64",
)


@pytest.fixture(scope="module")
def synsets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-22k's layout: a folder per synset, nothing else."""
    folder = tmp_path_factory.mktemp("data") / "IMAGENET22K"
    class_folders(folder, ("n00004475", "n00005787", "n00006024", "n01440764"), 8)
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "IMAGENET"
    for which, images in (("train", 8), ("val", 2)):
        class_folders(folder / which, ("n01440764", "n01443537"), images)
    return folder


@pytest.fixture(scope="module")
def pretrained(synsets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "22k"
    metrics = engine.train(load_recipe("imagenet22k/pretrain", SMALL, synsets), run)
    assert metrics["samples"] == 4  # at least one of each class
    return run


def test_the_22k_pair_hands_everything_on_but_the_head(pretrained: Path, imagenet: Path) -> None:
    recipe = load_recipe("imagenet22k/finetune", [*SMALL, f"model.checkpoint={pretrained}"], imagenet)
    module = find_task("classification").module(recipe, ["n01440764", "n01443537"])
    assert module.started_from is not None
    assert set(module.started_from.keys("fresh")) == {"head.fc.weight", "head.fc.bias"}
    before = open_saved(pretrained).weights
    own = module.model.state_dict()
    assert all((own[key] == value).all() for key, value in before.items() if not key.startswith("head."))


def test_the_22k_pair_runs(pretrained: Path, imagenet: Path, tmp_path: Path) -> None:
    recipe = load_recipe("imagenet22k/finetune", [*SMALL, f"model.checkpoint={pretrained}"], imagenet)
    assert engine.train(recipe, tmp_path / "run")["samples"] == 4


def test_weights_of_224_load_at_384_and_groups_keep_their_share(pretrained: Path, imagenet: Path) -> None:
    full = load_recipe("imagenet/finetune_384")
    sides, groups = (96, 48, 24, 12), full.model.options["group_sizes"]
    before = (4 / 56, 4 / 28, 1, 1)
    assert full.data.size == 384  # type: ignore[attr-defined]
    assert [round(share * side) for share, side in zip(before, sides, strict=True)] == groups
    recipe = load_recipe("imagenet/finetune_384", [*SMALL, f"model.checkpoint={pretrained}"], imagenet)
    module = find_task("classification").module(recipe, ["a", "b", "c", "d"])
    assert module.started_from is not None
    assert module.started_from.keys("fresh") == []
