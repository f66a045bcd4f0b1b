"""Groups: every token in exactly one, as the definition says; the product equals padding and masking."""

import pytest
import torch

from crossformerpp.layers import (
    DynamicPositionBias,
    GroupAttention,
    Grouping,
    PaddedGrouping,
    map_order,
    regroup,
)
from padded_reference import padded_attention

SIZES = [(8, 8), (14, 14), (15, 9), (9, 23), (4, 30), (3, 3), (17, 17), (28, 20)]
SETTINGS = [(4, 1), (4, 4), (7, 1), (7, 2), (2, 5), (3, 8)]


def _attention(dim: int = 16, heads: int = 2) -> GroupAttention:
    torch.manual_seed(0)
    attn = GroupAttention(dim, heads, DynamicPositionBias(4, heads))
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attn


def _run(attn: GroupAttention, x: torch.Tensor, grouping: Grouping | PaddedGrouping) -> torch.Tensor:
    in_map_order = map_order(*x.shape[:3])
    rows = regroup(x.flatten(0, 2), in_map_order, grouping)
    return regroup(attn(rows, grouping), grouping, in_map_order).view(x.shape)


@pytest.mark.parametrize(("group_size", "interval"), SETTINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", [Grouping, PaddedGrouping])
def test_equals_padding_and_masking(kind, height, width, group_size, interval):
    attn, x = _attention(), torch.randn(2, height, width, 16)
    grouping = kind(2, height, width, group_size, interval)
    expected = padded_attention(attn, x, group_size, interval)
    with torch.no_grad():
        torch.testing.assert_close(_run(attn, x, grouping), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(_run(attn, x, grouping), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("group_size", "interval"), SETTINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gradients_equal_those_of_padding(height, width, group_size, interval):
    attn, x = _attention(), torch.randn(1, height, width, 16, requires_grad=True)
    inputs = [x, *attn.parameters()]
    ours = _run(attn, x, Grouping(1, height, width, group_size, interval))
    theirs = padded_attention(attn, x, group_size, interval)
    weight = torch.randn_like(x)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, b.abs().max().item()), rtol=1e-4)


@pytest.mark.parametrize(("group_size", "interval"), SETTINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_token_is_in_one_group_and_no_padding_is_carried(height, width, group_size, interval):
    grouping = Grouping(3, height, width, group_size, interval)
    rows = torch.arange(3 * height * width)[:, None]
    grouped = regroup(rows, map_order(3, height, width), grouping)
    assert len(grouped) == 3 * height * width
    assert torch.equal(grouped.flatten().sort().values, rows.flatten())
    assert sum(part.tokens for part in grouping.parts) == height * width
    assert torch.equal(regroup(grouped, grouping, map_order(3, height, width)), rows)
    for groups in grouping.split(grouped):
        images = groups.tokens // (height * width)
        assert (images == images[:, :1]).all()  # a group never mixes images


def test_groups_are_what_the_paper_draws():
    """Sec. 3.2.1, Fig. 2: SDA takes neighbours, LDA every I-th token."""
    height = width = 12
    where = torch.arange(height * width)[:, None]
    short = Grouping(1, height, width, 3, 1)
    first = short.split(regroup(where, map_order(1, height, width), short))[0].tokens[0].flatten()
    assert first.tolist() == [0, 1, 2, 12, 13, 14, 24, 25, 26]
    long = Grouping(1, height, width, 4, 3)
    first = long.split(regroup(where, map_order(1, height, width), long))[0].tokens[0].flatten()
    assert first.tolist() == [y * 12 + x for y in (0, 3, 6, 9) for x in (0, 3, 6, 9)]


def test_small_map_is_one_group_also_for_lda():
    grouping = Grouping(2, 7, 20, group_size=7, interval=4)
    assert grouping.parts == ((1, 7, 20),)
    rows = torch.randn(280, 3)
    assert regroup(rows, map_order(2, 7, 20), grouping) is rows  # and nothing is copied


def test_regrouping_between_groupings_equals_the_way_over_the_map():
    a, b = Grouping(2, 18, 15, 4, 1), Grouping(2, 18, 15, 4, 4)
    rows, in_map_order = torch.randn(2 * 18 * 15, 5), map_order(2, 18, 15)
    assert torch.equal(regroup(rows, a, b), regroup(regroup(rows, a, in_map_order), in_map_order, b))


def test_gradient_of_regrouping_is_the_inverse():
    a, b = Grouping(2, 9, 11, 4, 1), Grouping(2, 9, 11, 2, 3)
    rows = torch.randn(2 * 99, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: regroup(r, a, b), rows)


def test_index_made_in_inference_mode_serves_training():
    a, b = Grouping(1, 13, 10, 4, 1), Grouping(1, 13, 10, 3, 2)
    rows = torch.randn(130, 2, requires_grad=True)
    with torch.inference_mode():
        regroup(rows, a, b)
    regroup(rows, a, b).sum().backward()
    assert rows.grad is not None


@pytest.mark.parametrize("max_rows", [1, 30, 10_000])
def test_chunks_cover_all_rows_with_whole_groups(max_rows):
    grouping = Grouping(3, 18, 15, 4, 4)
    end = 0
    for start, stop, part in grouping.chunks(max_rows):
        assert start == end
        assert (stop - start) % (part.height * part.width) == 0
        assert stop - start <= max(max_rows, part.height * part.width)
        end = stop
    assert end == 3 * 18 * 15


def test_value_per_row_is_its_images():
    grouping = Grouping(3, 6, 5, 4, 1)
    images = regroup(torch.arange(3).repeat_interleave(30)[:, None], map_order(3, 6, 5), grouping)
    assert torch.equal(grouping.per_row(torch.arange(3)), images)
