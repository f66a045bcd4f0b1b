"""Groups: every token in exactly one, as the definitions say; the product equals padding and masking."""

import itertools

import numpy as np
import pytest
import torch

from crossformerpp import kernels
from crossformerpp.layers import DynamicPositionBias, GroupAttention, Grouping, GroupRule
from padded_reference import padded_attention

SIZES = [(8, 8), (14, 14), (15, 9), (9, 23), (4, 30), (3, 3), (17, 17), (28, 20), (1, 1), (1, 9), (11, 2)]
RULES = [
    *(GroupRule("short", G) for G in (1, 4, 7)),
    *(GroupRule("long", G, gap, "regional") for G, gap in ((4, 4), (7, 2), (2, 5), (3, 8), (2, "adaptive"))),
    *(
        GroupRule("long", G, gap, "spanning")
        for G, gap in ((4, 4), (7, 2), (2, 5), (1, 1), (1, 12), (3, "adaptive"))
    ),
]  # an interval larger than the map makes groups of one token
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule)))
every_size = pytest.mark.parametrize(("height", "width"), SIZES)


def _attention(rule: GroupRule, dim: int = 16, heads: int = 2) -> GroupAttention:
    torch.manual_seed(0)
    attn = GroupAttention(dim, heads, DynamicPositionBias(4, heads), rule)
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attn


def _literal(attn: GroupAttention, x: torch.Tensor) -> torch.Tensor:
    if attn.rule.interval == "adaptive":  # the least interval at which G tokens span the map
        longer, G = max(x.shape[1:3]), attn.rule.group_size
        interval = next(gap for gap in range(1, longer + 1) if G * gap >= longer)
        attn.rule = attn.rule._replace(interval=interval)
    return padded_attention(attn, x)


@every_rule
@every_size
def test_equals_padding_and_masking(rule: GroupRule, height: int, width: int) -> None:
    attn, x = _attention(rule), torch.randn(2, height, width, 16)
    with torch.no_grad():
        without_gradients = attn(x)
    with_gradients = attn(x)
    expected = _literal(attn, x)
    torch.testing.assert_close(without_gradients, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(with_gradients, expected, atol=2e-5, rtol=1e-5)


@every_rule
@every_size
def test_gradients_equal_those_of_padding(rule: GroupRule, height: int, width: int) -> None:
    attn, x = _attention(rule), torch.randn(1, height, width, 16, requires_grad=True)
    inputs = [x, *attn.parameters()]
    ours, weight = attn(x), torch.randn(1, height, width, 16)
    theirs = _literal(attn, x)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, b.abs().max().item()), rtol=1e-4)


@every_rule
@every_size
def test_padded_groups_of_exported_graphs_give_the_same(rule: GroupRule, height: int, width: int) -> None:
    attn, x = _attention(rule), torch.randn(2, height, width, 16)
    grouping = rule.padded_on(height, width)
    with torch.no_grad():
        table = attn.offset_biases(grouping.region)
        (groups,) = grouping.split(attn.qkv(grouping.gather(x)))
        out = kernels.attention(groups.tokens, table, 2, groups.sides, groups.mask)
        padded = grouping.scatter(attn.proj(grouping.join([out])))
        torch.testing.assert_close(padded, attn(x), atol=2e-5, rtol=1e-5)


@every_rule
@every_size
def test_every_token_is_in_one_group_and_no_padding_is_carried(
    rule: GroupRule, height: int, width: int
) -> None:
    grouping = rule.on(height, width)
    positions = np.concatenate([part.positions.ravel() for part in grouping.parts])
    assert sorted(positions) == list(range(height * width))
    maps = torch.arange(3 * height * width).view(3, height, width, 1)
    rows = grouping.gather(maps)
    assert torch.equal(grouping.scatter(rows), maps)
    for groups, part in zip(grouping.split(rows), grouping.parts, strict=True):
        members = groups.tokens[..., 0]
        assert (members // (height * width) == members[:, :1] // (height * width)).all()  # one image
        expected = torch.from_numpy(part.positions).repeat(3, 1)
        assert torch.equal(members % (height * width), expected)
    assert torch.equal(grouping.join([groups.tokens for groups in grouping.split(rows)]), rows)


@every_rule
@every_size
def test_tokens_of_a_group_are_those_of_the_definition(rule: GroupRule, height: int, width: int) -> None:
    """Sec. 3.2.1: SDA takes neighbours, LDA every I-th token of the map or of a region."""
    distance, G, interval, lda = rule
    interval = -(-max(height, width) // G) if interval == "adaptive" else interval
    interval = 1 if distance == "short" else interval
    region = height * width * interval if (distance, lda) == ("long", "spanning") else G * interval
    number_of = np.empty(height * width, dtype=int)
    count = itertools.count()
    for part in rule.on(height, width).parts:
        assert part.positions.shape[1] == part.sides[0] * part.sides[1]
        for members in part.positions:
            number_of[members] = next(count)
    groups: dict[tuple[int, ...], set[int]] = {}
    for position, number in enumerate(number_of):
        y, x = divmod(position, width)
        key = (y // region, x // region, y % interval, x % interval)
        groups.setdefault(() if min(height, width) <= G else key, set()).add(int(number))
    assert all(len(found) == 1 for found in groups.values())
    assert len(groups) == next(count)


@every_rule
@every_size
def test_no_group_exceeds_the_sides_that_biases_are_made_for(
    rule: GroupRule, height: int, width: int
) -> None:
    gh, gw = rule.sides(height, width)
    sides = [part.sides for part in rule.on(height, width).parts]
    assert max(h for h, _ in sides) <= gh
    assert max(w for _, w in sides) <= gw


def test_both_ways_agree_where_one_region_is_the_map():
    for G, interval in ((7, 8), (7, 4), (14, 1)):
        side = G * interval
        spanning, regional = (GroupRule("long", G, interval, lda) for lda in ("spanning", "regional"))
        ours, theirs = spanning.on(side, side).parts, regional.on(side, side).parts
        assert [part.sides for part in ours] == [part.sides for part in theirs]
        assert all(np.array_equal(a.positions, b.positions) for a, b in zip(ours, theirs, strict=True))


def test_spanning_groups_grow_with_the_map():
    """Table XI's "at most 41×41": 1333 pixels, stride 4, interval 8."""
    assert GroupRule("long", 7, 8, "spanning").sides(200, 334) == (25, 42)
    assert GroupRule("long", 7, 8, "spanning").sides(56, 56) == (7, 7)
    assert GroupRule("long", 7, 8, "regional").sides(200, 334) == (7, 7)


def test_small_map_is_one_group_also_for_lda():
    for lda in ("spanning", "regional"):
        grouping = GroupRule("long", 7, 4, lda).on(7, 20)
        assert [part.sides for part in grouping.parts] == [(7, 20)]
        maps = torch.randn(2, 7, 20, 3)
        assert grouping.gather(maps).data_ptr() == maps.data_ptr()  # and nothing is copied


def test_gradient_of_gathering_is_the_inverse():
    grouping = GroupRule("long", 2, 3, "regional").on(9, 11)
    maps = torch.randn(2, 9, 11, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(grouping.gather, maps)
    rows = torch.randn(2 * 99, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(grouping.scatter, rows)


def test_order_made_in_inference_mode_serves_training():
    grouping = GroupRule("short", 4).on(13, 10)
    maps = torch.randn(1, 13, 10, 2, requires_grad=True)
    with torch.inference_mode():
        grouping.gather(maps)
    grouping.gather(maps).sum().backward()
    assert maps.grad is not None


@pytest.mark.parametrize("max_rows", [1, 30, 10_000])
@pytest.mark.parametrize("rule", [GroupRule("long", 4, 4), GroupRule("long", 20, 4)])
def test_chunks_cover_all_tokens_with_whole_groups(rule: GroupRule, max_rows: int) -> None:
    grouping = rule.on(18, 15)
    maps = torch.arange(3 * 18 * 15).view(3, 18, 15, 1)
    found = []
    for place, (gh, gw) in grouping.chunks(3, maps.device, max_rows):
        tokens = maps.flatten(0, 2)[place]
        assert len(tokens) % (gh * gw) == 0
        assert len(tokens) <= max(max_rows, gh * gw)
        found.append(tokens)
    assert torch.equal(torch.cat(found), grouping.gather(maps))


def test_groupings_of_one_rule_are_equal_and_hashable():
    rule = GroupRule("long", 7, 8, "spanning")
    assert isinstance(rule.on(60, 80), Grouping)
    assert len({rule.on(60, 80), rule.on(60, 80), rule.on(60, 81)}) == 2
