"""benchmarks/elastic.py and search_space.py: budgets that differ, and tables of what was run."""

import timm
import torch
from benchmarks import elastic, search_space

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.group_costs import GroupCosts
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.elastic import Elastic


def test_the_budgets_of_a_study_differ_in_groups_and_in_cost() -> None:
    for study in elastic.STUDIES.values():
        model = timm.create_model("crossformerpp_small", num_classes=10, **elastic.NETWORK).eval()
        images = torch.zeros(1, 3, study.side, study.side)
        costs = GroupCosts(model, lambda model=model, images=images: model(images))
        keys = []
        for sizes in study.budgets.values():
            model.set_groups(sizes)
            keys.append(costs.key(model.groups))
        assert len(set(keys)) == 3
        spent = [elastic.gmacs(study, sizes) for sizes in study.budgets.values()]
        assert spent == sorted(spent)
        assert spent[-1] > 1.5 * spent[0]


def test_every_budget_lies_in_the_range_that_is_trained() -> None:
    for study in elastic.STUDIES.values():
        texts = elastic._texts(
            {"model.options": elastic.NETWORK, "model.elastic": {"group_sizes": study.ranges}}
        )
        recipe = load_recipe(study.recipe, texts)
        model = timm.create_model("crossformerpp_small", **recipe.model.options)
        trained = Elastic(recipe.model.elastic, model, seed=0)
        assert list(trained.smallest.groups.options()["group_sizes"]) == study.budgets["small"]
        assert list(trained.largest.groups.options()["group_sizes"]) == study.budgets["large"]
        for choices, size in zip(study.ranges, study.budgets["medium"], strict=True):
            assert size in choices


def test_the_table_has_means_and_spreads_and_says_what_was_not_run() -> None:
    rows = [
        {
            "data": "digits",
            "seed": seed,
            "arm": "small",
            "budget": budget,
            "score": score,
            "train_seconds": 20,
        }
        for seed, score in ((0, 0.9), (1, 0.94))
        for budget in ("small", "medium", "large")
    ]
    table = elastic.markdown(rows).splitlines()
    assert "| small | 2 | 20 | 92.00 ± 2.83 | 92.00 ± 2.83 | 92.00 ± 2.83 |" in table
    assert sum("not run" in line for line in table) == 6 + 6 + 5 - 1


def test_spaces_are_counted_once_for_maps_that_they_group_alike() -> None:
    options = {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    model = timm.create_model("crossformerpp_small", **options, intervals="adaptive").eval()
    images = torch.zeros(1, 3, 64, 64)  # maps of 16, 8, 4 and 2 tokens a side
    costs = GroupCosts(model, lambda: model(images))
    assert search_space.row("s3", model.groups, search_space.S3, costs).startswith(
        "| s3 | 4 |"
    )  # 7 or 14; 7 or 8
    ours = search_space.row("ours", model.groups, (4, 7, 8, 12), costs)
    assert ours.startswith("| ours | 12 |")  # 4, 7, 8 or 12; 4, 7 or 8
