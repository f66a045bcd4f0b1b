"""The smallest recipe that still exercises everything: a tiny CrossFormer++ on the real digits."""

from typing import Any

from crossformerpp.recipes.load import apply_overrides, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe


def tiny_values() -> dict[str, Any]:
    """A fresh copy of the recipe's plain values: 4 steps of 64 images, evaluation after steps 2 and 4."""
    return {
        "task": "classification",
        "model": {
            "name": "crossformerpp_small",
            "options": {
                "embed_dim": 16,
                "depths": [1, 1, 2, 1],
                "num_heads": [1, 1, 1, 1],
                "group_sizes": [4, 4, 2, 1],
                "intervals": [2, 1, 1, 1],
                "drop_path_rate": 0.2,
            },
        },
        "data": {"source": "digits", "size": 32, "eval_resize": 32},
        "augment": {"flip": 0.0, "color_jitter": 0.2, "mixup": 0.2, "random_erasing": 0.2},
        "ema": {"decay": 0.9},
        "schedule": {"warmup_steps": 1},
        "trainer": {
            "steps": 4,
            "batch_size": 64,
            "eval_every": 2,
            "eval_batch_size": 450,
            "workers": 0,
            "accelerator": "cpu",
            "threads": 1,
        },
    }


def tiny_recipe(*overrides: str) -> BaseRecipe:
    """The recipe, with `a.b=value` overrides."""
    values = tiny_values()
    apply_overrides(values, overrides)
    return parse_recipe(values, "tiny")
