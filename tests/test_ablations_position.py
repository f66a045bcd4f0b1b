"""The other position representations of Tables X and XI: what each of them keeps, and what they cost."""

import pytest
import timm
import torch

import crossformerpp  # noqa: F401  (registers the models)
from crossformerpp import kernels
from crossformerpp.ablations.position import (
    AbsolutePositionEmbedding,
    EnlargedPositionBias,
    InterpolatedPositionBias,
    RelativePositionBias,
    enlarge_tables,
    resize_table,
)
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.models import CrossFormer

POSITIONS = ["dpb", "dpb-residual", "rpb", "rpb-offline", "rpb-online", "ape", "none"]
TINY = {
    "embed_dim": 64,
    "depths": (2, 2),
    "num_heads": (1, 2),
    "group_sizes": (4, 4),
    "intervals": (2, 1),
    "kernel_sizes": ((4, 8), (2, 4)),
    "num_classes": 3,
}


def bias_of(module: torch.nn.Module, sides: tuple[int, int]) -> torch.Tensor:
    """What attention adds in a group, (h, N, N)."""
    table = module(*sides)
    return kernels.spread(table, sides, table.dtype)


def tiny(**options) -> CrossFormer:
    torch.manual_seed(0)
    return CrossFormer(**{**TINY, **options})


# millions of parameters; Table X prints 30.9 for APE and 30.7 for the others, Tables XI and X no more
@pytest.mark.parametrize(
    ("position", "params"), [("ape", 30.9), ("rpb", 30.7), ("dpb", 30.7), ("dpb-residual", 30.7)]
)
def test_costs_are_those_of_table_x(position, params):
    with torch.device("meta"):
        model = timm.create_model("crossformer_small", position=position)
    cost = count_complexity(model, (3, 224, 224))
    assert round(cost.params / 1e6, 1) == params
    assert round(cost.macs / 1e9, 1) == 4.9


@pytest.mark.parametrize("position", POSITIONS)
def test_every_parameter_gets_a_gradient_and_none_of_position_decays(position):
    model = tiny(position=position, img_size=32)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    of_position = {n for n, _ in model.named_parameters() if "position." in n or n.endswith(".table")}
    assert model.no_weight_decay() == of_position


@pytest.mark.parametrize("position", POSITIONS)
def test_only_without_position_is_the_place_of_a_token_unknown(position):
    """With the group's tokens reversed, attention without position gives the same, reversed."""
    model = tiny(position=position, img_size=32).double()
    for name, parameter in model.named_parameters():
        if "position" in name:
            torch.nn.init.normal_(parameter)
    stage = model.stages[0]
    tokens = torch.randn(1, 4, 4, 64, dtype=torch.double)  # the map is one group
    stage.embedding = torch.nn.Identity()
    same = torch.allclose(stage(tokens.flip(1, 2)).flip(1, 2), stage(tokens))
    assert same == (position == "none")


def test_a_table_refuses_larger_groups_and_says_what_serves_them():
    model = tiny(position="rpb", group_sizes=(8, 4), position_sizes=(4, 4))
    with pytest.raises(ValueError, match=r"8x8 exceeds.*4x4.*'dpb'.*'rpb-online'.*position_sizes"):
        model(torch.randn(1, 3, 64, 64))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown position 'rope': choose one of dpb"):
        tiny(position="rope")


def test_online_interpolation_keeps_trained_values_and_a_linear_table_linear():
    online = InterpolatedPositionBias((3, 3), 2, group_size=3)
    plain = RelativePositionBias((3, 3), 2)
    plain.load_state_dict(online.state_dict())
    for size in [(3, 3), (2, 3)]:
        torch.testing.assert_close(bias_of(online, size), bias_of(plain, size))

    offsets = torch.arange(-2.0, 3)  # a bias that grows with Δy, from −1 to 1 at the rim
    with torch.no_grad():
        online.table.copy_((offsets / 2)[:, None].expand(5, 5))
    bias = bias_of(online, (5, 3))
    y = torch.arange(15) // 3
    torch.testing.assert_close(bias[0], (y[:, None] - y) / 4.0)


def test_online_interpolation_gives_rim_groups_the_offsets_of_full_ones():
    online = InterpolatedPositionBias((3, 3), 2, group_size=6)
    torch.testing.assert_close(bias_of(online, (2, 6)), bias_of(online, (6, 6))[:, :12, :12])


def test_online_interpolation_is_differentiable():
    online = InterpolatedPositionBias((3, 3), 2, group_size=7)
    bias_of(online, (7, 7)).square().sum().backward()
    assert (online.table.grad != 0).all()


def test_offline_interpolation_enlarges_once_when_weights_are_loaded():
    small = tiny(position="rpb")
    large = tiny(position="rpb-offline", group_sizes=(8, 8), position_sizes=(8, 8))
    fitted = enlarge_tables(large, small.state_dict())
    large.load_state_dict(fitted)
    online = tiny(position="rpb-online", group_sizes=(8, 8), position_sizes=(4, 4))
    online.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 100, 70)
    torch.testing.assert_close(large(x), online(x))  # until the first step they are one function
    assert all(m.table.shape[1:] == (15, 15) for m in large.modules() if isinstance(m, EnlargedPositionBias))
    assert enlarge_tables(small, small.state_dict()).keys() == small.state_dict().keys()


def test_absolute_positions_are_resized_to_other_maps():
    ape = AbsolutePositionEmbedding(4, 4, 2)
    x = torch.zeros(1, 4, 4, 2)
    assert torch.equal(ape(x), ape.embedding)
    with torch.no_grad():
        ape.embedding.fill_(3.0)
    torch.testing.assert_close(ape(torch.zeros(2, 6, 9, 2)), torch.full((2, 6, 9, 2), 3.0))


def test_a_resized_table_keeps_the_offset_0_in_its_centre():
    table = torch.randn(2, 13, 13)
    for height, width in ((1, 1), (1, 7), (4, 1), (14, 14), (5, 3)):
        resized = resize_table(table, height, width)
        assert resized.shape == (2, 2 * height - 1, 2 * width - 1)
        torch.testing.assert_close(resized[:, height - 1, width - 1], table[:, 6, 6])
