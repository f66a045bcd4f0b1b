"""Attention maps: they reproduce the attention's own output, and know where in the map tokens lie."""

import pytest
import timm
import torch
from timm.models.swin_transformer import WindowAttention

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.attention_maps import (
    block_attentions,
    group_attention,
    window_attention,
)
from crossformerpp.layers import DynamicPositionBias, GroupAttention, GroupRule

TINY = {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (1, 1, 2, 2), "num_classes": 3}
RULES = [
    (GroupRule("short", 4), (2, 8, 8)),
    (GroupRule("long", 2, 4), (2, 8, 8)),
    (GroupRule("long", 3, 2), (1, 9, 7)),  # four kinds of groups and more
    (GroupRule("long", 2, 2, "spanning"), (1, 9, 7)),
    (GroupRule("long", 7, 4), (2, 5, 9)),  # one group
]


def _attention(rule: GroupRule, bias: bool = True) -> GroupAttention:
    torch.manual_seed(0)
    attention = GroupAttention(32, 2, DynamicPositionBias(4, 2) if bias else None, rule).eval()
    attention.qkv.weight.data *= 20  # attention that is far from even
    return attention


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rule", "size"), RULES)
def test_weights_times_values_are_the_output(rule, size, bias):
    attention = _attention(rule, bias)
    x, grouping = torch.randn(*size, 32), rule.on(*size[1:])
    with torch.no_grad():
        maps = group_attention(attention, x)
        values = [groups.tokens[..., 64:] for groups in grouping.split(attention.qkv(grouping.gather(x)))]
        out = [
            (own.weights @ v.unflatten(-1, (2, 16)).transpose(1, 2)).transpose(1, 2).flatten(2)
            for own, v in zip(maps, values, strict=True)
        ]
        ours = grouping.scatter(attention.proj(grouping.join(out)))
        torch.testing.assert_close(ours, attention(x), atol=1e-3, rtol=1e-3)
    assert max(own.weights.max() for own in maps) > 0.5


@pytest.mark.parametrize(("rule", "size"), RULES)
def test_distances_are_those_in_the_map(rule, size):
    maps = group_attention(_attention(rule), torch.randn(*size, 32))
    for own, part in zip(maps, rule.on(*size[1:]).parts, strict=True):
        for members in torch.from_numpy(part.positions):
            places = torch.stack([members // size[2], members % size[2]], dim=-1).float()
            torch.testing.assert_close(own.distances(), torch.cdist(places, places))


@pytest.mark.parametrize("shifted", [False, True])
def test_swin_too(shifted):
    torch.manual_seed(0)
    attention = WindowAttention(32, 2, window_size=(3, 4)).eval()
    x = torch.randn(2 * 6, 12, 32) * 5
    mask = torch.where(torch.rand(6, 12, 12) < 0.3, -100.0, 0.0) if shifted else None
    with torch.no_grad():
        (maps,) = window_attention(attention, x, mask)
        values = attention.qkv(x)[..., 64:].unflatten(-1, (2, 16)).transpose(1, 2)
        out = attention.proj((maps.weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, attention(x, mask))
    assert (maps.height, maps.width) == (3, 4)


def test_even_attention_is_as_far_as_even_attention():
    model = timm.create_model("crossformerpp_small", group_sizes=(4, 3, 4, 2), **TINY).eval()
    for block in (block for stage in model.stages for block in stage.blocks):
        for parameter in (*block.attn.qkv.parameters(), *block.attn.position_bias.parameters()):
            torch.nn.init.zeros_(parameter)
    found = block_attentions(model, torch.randn(2, 3, 80, 112).split(1))
    assert [(block.stage, block.block) for block in found] == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1)]
    assert [(block.height, block.width) for block in found[:2]] == [(4, 4), (3, 3)]
    assert [block.stride for block in found] == [4, 8, 8, 16, 16, 32]
    for block in found:
        torch.testing.assert_close(
            block.head_distances, torch.full_like(block.head_distances, block.uniform_distance)
        )
        torch.testing.assert_close(block.mean_map, torch.full_like(block.mean_map, 1 / len(block.mean_map)))


def test_the_average_is_over_images_groups_and_heads():
    torch.manual_seed(0)
    model = timm.create_model("crossformer_tiny", group_sizes=(4, 4, 4, 2), **TINY).eval()
    model.stages[0].blocks[0].attn.qkv.weight.data *= 30
    images = torch.randn(3, 3, 64, 64)
    together, apart = (block_attentions(model, images.split(step))[0] for step in (3, 1))
    torch.testing.assert_close(together.mean_map, apart.mean_map)
    torch.testing.assert_close(together.head_distances, apart.head_distances)
    seen = []
    attention = model.stages[0].blocks[0].attn
    attention.register_forward_pre_hook(lambda module, args: seen.append(group_attention(module, *args)[0]))
    with torch.no_grad():
        model(images)
    torch.testing.assert_close(apart.mean_map, seen[0].weights.flatten(0, 1).mean(0))
    place, own = apart.token_map(0.4, 1.0)
    assert place == (1, 3)
    torch.testing.assert_close(own.flatten(), seen[0].weights[:, :, 1 * 4 + 3].mean((0, 1)))


def test_what_cannot_be_looked_into():
    with pytest.raises(ValueError, match="ResNet: attention maps"):
        block_attentions(timm.create_model("resnet18"), [])
