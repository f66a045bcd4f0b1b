"""Group size policies by name: those of the released code give its lists, and every one gives a size per block."""

from typing import get_args

import pytest
import timm
import torch

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.layers.group_size import GroupPolicy, linear_group_sizes, policy_group_sizes

SMALL = (2, 2, 18, 2)  # CrossFormer++-S

# of the released code, for images of 224
RELEASED = {
    "linear": ((4, 7), (5, 6), (4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13), (7, 7)),
    "linear_div": ((4, 7), (5, 6), (4, 4, 5, 5, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 14, 14, 14, 14), (7, 7)),
    "alter": ((4, 7), (5, 6), (4, 4, 5, 5, 6, 6, 7, 7, 7, 14, 7, 14, 7, 14, 7, 14, 7, 14), (7, 7)),
    "7_14": ((4, 4), (4, 4), (7,) * 4 + (14,) * 14, (7, 7)),
}


@pytest.mark.parametrize("policy", RELEASED)
def test_released_policies_give_the_released_lists(policy):
    assert policy_group_sizes(policy, SMALL) == RELEASED[policy]


def test_the_papers_words():
    assert policy_group_sizes("constant", SMALL) == ((7, 7), (7, 7), (7,) * 18, (7, 7))
    assert policy_group_sizes("4_14", SMALL) == linear_group_sizes(SMALL, 4, 14)


@pytest.mark.parametrize("policy", get_args(GroupPolicy))
@pytest.mark.parametrize("depths", [(1, 1, 8, 6), (6, 6, 18, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("side", [1, 14, 96])
def test_every_block_has_a_size_for_any_depth_and_map(policy, depths, side):
    sizes = policy_group_sizes(policy, depths, side)
    assert tuple(map(len, sizes)) == depths
    assert all(size >= 1 for stage in sizes for size in stage)


@pytest.mark.parametrize("side", [56, 96, 112])
def test_linear_sizes_grow_in_proportion_to_the_map(side):
    sizes = policy_group_sizes("linear", SMALL, side)
    shares = [
        size / (side / 2**stage)
        for stage, own in enumerate(sizes)
        for size in own
        if size > 4  # 4 is the least
    ]
    rounding = [2**stage / side for stage, own in enumerate(sizes) for size in own if size > 4]
    assert all(b - a > -step for a, b, step in zip(shares, shares[1:], rounding, strict=False))
    assert shares[-1] > 0.9


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(ValueError, match=r"no group size policy 'liner'.*did you mean 'linear'"):
        policy_group_sizes("liner", SMALL)
    with pytest.raises(ValueError, match="4 stages, here are 2"):
        policy_group_sizes("7_14", (1, 1))


def test_a_model_takes_a_policys_name_and_img_size_is_its_map():
    for size in (224, (256, 384)):
        with torch.device("meta"):
            model = timm.create_model("crossformerpp_small", group_sizes="linear", img_size=size)
        side = 56 if size == 224 else 64
        found = tuple(tuple(block.attn.rule.group_size for block in stage.blocks) for stage in model.stages)
        assert found == policy_group_sizes("linear", SMALL, side)
    with pytest.raises(ValueError, match="did you mean 'alter'"):
        timm.create_model("crossformerpp_small", group_sizes="altr")
