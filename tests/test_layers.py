"""Embedding, cooling and group sizes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from crossformerpp.ablations.build import build_cooling
from crossformerpp.ablations.cooling import AmplitudeLimiter, GatedCoolingLayer
from crossformerpp.layers import (
    AmplitudeCoolingLayer,
    CrossScaleEmbedding,
    GroupAttention,
    GroupRule,
    allocate_dims,
    expand_per_block,
    linear_group_sizes,
)
from crossformerpp.layers.cooling import is_cooled


@pytest.mark.parametrize(
    ("kernels", "expected"), [(1, [96]), (2, [48, 48]), (3, [48, 24, 24]), (4, [48, 24, 12, 12])]
)
def test_halving_allocation_is_figure_3(kernels, expected):
    assert allocate_dims(96, kernels) == expected


def test_equal_allocation_is_table_vii():
    assert allocate_dims(96, 4, "equal") == [24, 24, 24, 24]


@pytest.mark.parametrize(
    ("dim", "kernels", "allocation"), [(100, 4, "halving"), (98, 4, "equal"), (96, 4, "thirds")]
)
def test_allocation_that_does_not_fit(dim, kernels, allocation):
    with pytest.raises(ValueError, match=r"multiple of|unknown allocation"):
        allocate_dims(dim, kernels, allocation)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (35, 64), (100, 37)])
def test_embedding_has_ceil_many_tokens_and_only_zeros_beyond_the_image(height, width):
    embedding = CrossScaleEmbedding(3, 32, (4, 8, 16, 32), 4, norm="after")
    x = torch.randn(1, height, width, 3)
    out = embedding(x)
    assert out.shape == (1, -(-height // 4), -(-width // 4), 32)
    padded = F.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))
    torch.testing.assert_close(out, embedding(padded))


def test_patches_of_a_token_share_their_centre():
    """Fig. 3: all kernels of a token are centred alike."""
    embedding = CrossScaleEmbedding(1, 8, (4, 8, 16, 32), 4, norm="after")
    embedding.norm = torch.nn.Identity()
    x = torch.zeros(1, 64, 64, 1, requires_grad=True)
    for channel in (0, 4, 6, 7):
        (grad,) = torch.autograd.grad(embedding(x)[0, 8, 8, channel], x)
        ys, xs = grad[0, :, :, 0].nonzero(as_tuple=True)
        assert (ys.min() + ys.max()) / 2 == (xs.min() + xs.max()) / 2 == 8 * 4 + 1.5
        assert ys.max() - ys.min() + 1 == {0: 4, 4: 8, 6: 16, 7: 32}[channel]


@pytest.mark.parametrize("kernels", [(2,), (5, 8), ()])
def test_kernels_that_do_not_fit_the_stride(kernels):
    with pytest.raises(ValueError, match="kernel size"):
        CrossScaleEmbedding(3, 32, kernels, 4, norm="after")


def test_later_embeddings_norm_their_input():
    embedding = CrossScaleEmbedding(16, 32, (2, 4), 2, norm="before")
    x = torch.randn(2, 8, 8, 16)
    torch.testing.assert_close(embedding(x), embedding(x * 3 + 1), atol=1e-4, rtol=1e-4)


def test_cooling_bounds_the_amplitude_whatever_comes_in():
    layer = AmplitudeCoolingLayer(16)
    x = torch.randn(2, 9, 7, 16)
    torch.testing.assert_close(layer(x * 1000).std(), layer(x).std(), atol=0.1, rtol=0.1)
    assert layer(x).shape == x.shape


def test_gated_cooling_lies_between_the_stream_and_its_acl():
    layer = GatedCoolingLayer(16)
    x = torch.randn(2, 9, 7, 16) * 100
    torch.testing.assert_close(layer(x), (x + layer.acl(x)) / 2)
    for gate, expected in ((50.0, x), (-50.0, layer.acl(x))):
        torch.nn.init.constant_(layer.gate, gate)
        torch.testing.assert_close(layer(x), expected)


def test_the_limiter_shortens_long_tokens_only():
    layer = AmplitudeLimiter(16)
    torch.nn.init.uniform_(layer.log_limit, -1, 1)
    x = torch.randn(2, 9, 7, 16)
    torch.testing.assert_close(layer(x * 1e-3), x * 1e-3, rtol=1e-4, atol=0)
    relative = layer(x * 1e4) / layer.log_limit.exp()
    torch.testing.assert_close(relative.square().mean(-1), torch.ones(2, 9, 7))
    torch.testing.assert_close(F.cosine_similarity(layer(x), x, dim=-1), torch.ones(2, 9, 7))
    assert layer.half()(x.half() * 3000).isfinite().all()  # an amplitude as in Fig. 5


@pytest.mark.parametrize(("kind", "is_kept"), [("acl", False), ("gated", True), ("limit", True)])
def test_which_cooling_layers_keep_the_residual_connection(kind, is_kept):
    """Without what is learnt in convolution and norm nothing passes an ACL; the stream passes the others."""
    layer = build_cooling(kind, 16, 0, 2, every=1)
    for name, parameter in layer.named_parameters():
        if "conv" in name or "norm" in name:
            torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 5, 5, 16)
    assert (F.cosine_similarity(layer(x), x, dim=-1).min() > 0.99) == is_kept


def test_unknown_cooling():
    with pytest.raises(ValueError, match="cooling_kind 'ice': choose one of acl, gated, limit"):
        build_cooling("ice", 16, 0, 2, every=1)


@pytest.mark.parametrize(
    ("depth", "interval", "expected"),
    [(18, 3, [2, 5, 8, 11, 14]), (6, 3, [2]), (2, 3, []), (4, 1, [0, 1, 2]), (18, None, []), (18, 0, [])],
)
def test_cooling_positions(depth, interval, expected):
    assert [j for j in range(depth) if is_cooled(j, depth, interval)] == expected


def test_linear_group_sizes_grow_from_4_to_14():
    sizes = linear_group_sizes((2, 2, 18, 2))
    flat = [size for stage in sizes[:3] for size in stage]
    assert flat[0] == 4
    assert flat[-1] == 14
    assert flat == sorted(flat)
    assert sizes[3] == (7, 7)
    assert max(b - a for a, b in itertools.pairwise(flat)) == 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ((4, 0, 7, 7), "group size 0"),
        ((4, 4, 7), "3 group sizes"),
        ((4, 4, (4, 7), 7), "18 blocks but 2"),
        ((4, 4, 7.5, 7), "7.5"),
    ],
)
def test_group_sizes_that_do_not_fit(values, match):
    with pytest.raises(ValueError, match=match):
        expand_per_block(values, (2, 2, 18, 2), "group size")


def test_dimension_that_the_heads_do_not_divide():
    with pytest.raises(ValueError, match="64 is no multiple of the 5 heads"):
        GroupAttention(64, 5, None, GroupRule("short", 7))
