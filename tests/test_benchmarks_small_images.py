"""benchmarks/small_images.py: splits without a common pixel, and arms that differ where they say so."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from benchmarks import small_images
from PIL import Image

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.recipes.load import load_recipe


def test_no_pixel_is_in_both_splits() -> None:
    """A picture whose pixels are their own numbers."""
    numbers = np.arange(300 * 420, dtype=np.int32).reshape(300, 420)
    patches = small_images._patches(Image.fromarray(numbers))
    assert all(patches.values())
    seen = {
        split: {n for patch in own for n in np.asarray(patch).ravel().tolist()}
        for split, own in patches.items()
    }
    assert not seen["train"] & seen["val"]
    assert all(patch.size == (32, 32) for own in patches.values() for patch in own)


def test_patches_are_of_every_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_images, "PHOTOGRAPHS", ("camera", "china.jpg"))
    folder = small_images.write_patches(tmp_path / "patches")
    for name in ("camera", "china"):
        assert len(list((folder / "train" / name).iterdir())) == small_images.TRAIN
        assert len(list((folder / "val" / name).iterdir())) == small_images.VAL


@pytest.mark.parametrize("arm", small_images.ARMS)
def test_arms_are_recipes(arm: str) -> None:
    recipe = load_recipe("small_images", small_images._texts(small_images._SHORT | small_images.ARMS[arm]))
    model = timm.create_model(recipe.model.name, **recipe.model.options)
    maps = model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert [found.shape[-1] for found in maps] == ([8, 4, 2, 1] if "paper" in arm else [16, 8, 4, 2])
    assert (recipe.optim.lr > 5e-3) == ("rate × 10" in arm)
    assert (recipe.schedule.warmup_epochs == 0) == ("no warm-up" in arm)


def test_the_table_counts_collapsed_seeds() -> None:
    rows = [
        {"arm": "recipe", "seed": s, "top1": t, "train_loss": 1.5, "largest_share": share, "cpu_seconds": 80}
        for s, t, share in ((0, 0.5, 0.1), (1, 0.0667, 1.0))
    ]
    table = small_images.markdown(rows).splitlines()
    assert "| recipe | 50.0, 6.7 | 1.50 | 1 of 2 |" in table
    assert sum("not run" in line for line in table) == len(small_images.ARMS) - 1
