"""The automatic group size policy: shares of attention, budgets, and the model that comes of it."""

import itertools
import random

import pytest
import timm
import torch

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.attention_maps import block_attentions
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.group_choice import GroupSizeOption, choose_group_sizes, choose_groups, kept_share
from crossformerpp.layers import GroupRule

TINY = {"embed_dim": 16, "depths": (2, 2, 3, 1), "num_heads": (1, 1, 2, 2), "num_classes": 3}


def _random_options(rng: random.Random) -> list[list[GroupSizeOption]]:
    return [
        [GroupSizeOption(size, rng.randint(1, 40), rng.random()) for size in range(2, 6)] for _ in range(4)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_within_the_budget_is_better_by_a_step(seed):
    rng = random.Random(seed)
    options = _random_options(rng)
    least = sum(min(option.macs for option in own) for own in options)
    budget = least + rng.randint(0, 60)
    chosen = choose_group_sizes(options, budget + 7, fixed_macs=7)
    assert sum(option.macs for option in chosen) <= budget
    best = max(
        sum(option.kept for option in combination)
        for combination in itertools.product(*options)
        if sum(option.macs for option in combination) <= budget
    )
    largest_step = max(b.kept - a.kept for own in options for a, b in itertools.permutations(own, 2))
    assert best - largest_step <= sum(option.kept for option in chosen) <= best + 1e-9
    spare = budget - sum(option.macs for option in chosen)
    for own, now in zip(options, chosen, strict=True):
        assert not [option for option in own if option.kept > now.kept and option.macs - now.macs <= spare]


def test_a_large_budget_keeps_most_and_a_larger_one_changes_nothing():
    options = _random_options(random.Random(0))
    chosen = choose_group_sizes(options, 10**9)
    assert [option.kept for option in chosen] == [max(option.kept for option in own) for own in options]


def test_a_budget_that_cannot_be_met_names_the_nearest():
    options = [[GroupSizeOption(2, 10**9, 0.5), GroupSizeOption(4, 2 * 10**9, 1.0)]] * 2
    with pytest.raises(
        ValueError,
        match=r"budget of 2,500.0M.*cannot be met; the nearest is 3,000.0M, with group sizes \[2\]",
    ):
        choose_group_sizes(options, 5 * 10**9 // 2, fixed_macs=10**9)
    assert [option.size for option in choose_group_sizes(options, 3 * 10**9, 10**9)] == [2, 2]


def test_kept_share():
    even = torch.full((16, 16), 1 / 16)
    assert kept_share(even, GroupRule("short", 4).on(4, 4)) == pytest.approx(1)
    assert kept_share(even, GroupRule("short", 2).on(4, 4)) == pytest.approx(1 / 4)
    assert kept_share(even, GroupRule("short", 3).on(4, 4)) == pytest.approx(
        (81 + 9 + 9 + 1) / 256
    )  # groups of 3×3, 3×1, 1×3, 1×1
    assert kept_share(torch.eye(16), GroupRule("short", 1).on(4, 4)) == pytest.approx(1)
    far = torch.zeros(4, 4, 4, 4)
    for y, x in itertools.product(range(4), range(4)):
        far[y, x, y, (x + 2) % 4] = 1.0
    assert kept_share(far.view(16, 16), GroupRule("short", 2).on(4, 4)) == 0
    assert kept_share(far.view(16, 16), GroupRule("long", 2, 2).on(4, 4)) == 1


def test_chosen_sizes_make_the_model_that_was_promised():
    torch.manual_seed(0)
    options = {**TINY, "intervals": (4, 2, 1, 1)}
    model = timm.create_model("crossformerpp_small", group_sizes=(4, 4, 4, 2), **options).eval()
    measured = timm.create_model("crossformerpp_small", group_sizes=(6, 6, 6, 6), **options).eval()
    attentions = block_attentions(measured, torch.randn(1, 3, 96, 96).split(1))
    costs = {
        G: count_complexity(
            timm.create_model("crossformerpp_small", group_sizes=(G,) * 4, **options), (3, 96, 96)
        ).macs
        for G in (2, 6)
    }
    budget = (costs[2] + costs[6]) // 2
    found = choose_groups(model, attentions, 96, smallest=2, largest=6, budget=budget)
    rebuilt = timm.create_model("crossformerpp_small", group_sizes=found.group_sizes, **options)
    assert found.macs == count_complexity(rebuilt, (3, 96, 96)).macs <= budget
    assert found.macs_before == count_complexity(model, (3, 96, 96)).macs
    assert [len(stage) for stage in found.group_sizes] == list(TINY["depths"])
    assert {choice.size for choice in found.blocks} - {2, 6}  # between the extremes
    assert any("over the budget" in choice.reason for choice in found.blocks)
    assert model.stages[0].blocks[0].attn.rule.group_size == 4  # it was only looked at
