"""`set_groups`: the dial of a trained model, which changes no weight."""

import pytest
import timm
import torch

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.layers.group_size import Groups

OPTIONS = {"embed_dim": 16, "depths": (2, 2, 3, 1), "num_heads": (1, 1, 2, 2), "num_classes": 5}
SETTINGS = [
    {"group_sizes": (14, (2, 5), (4, 3, 4), 2)},
    {"intervals": ("adaptive", 3, (1, 2, 1), 1)},
    {"lda": "spanning"},
    {"group_sizes": (7, 7, 7, 7), "intervals": (4, 2, 1, 1), "lda": ["regional", "spanning"] * 2},
]


def create(**more):
    torch.manual_seed(0)
    return timm.create_model("crossformerpp_small", **OPTIONS, **more).eval()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", [(96, 96), (70, 130)])
@torch.inference_mode()
def test_a_model_whose_groups_were_set_is_one_made_with_them(setting, size):
    images = torch.randn(2, 3, *size)
    model, made = create(), create(**setting)
    before, weights = model(images), {key: value.clone() for key, value in model.state_dict().items()}
    own = model.groups
    model.set_groups(**setting)
    assert model.groups == made.groups
    assert torch.equal(model(images), made(images))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    model.set_groups(*own)
    assert torch.equal(model(images), before)
    assert not torch.equal(made(images), before)


def test_gradients_are_those_of_the_groups_that_were_set():
    images = torch.randn(2, 3, 96, 96)
    model, made = create(), create(**SETTINGS[0])
    model.set_groups(**SETTINGS[0])
    for each in (model, made):
        each.train()(images).sum().backward()
    for (name, one), other in zip(model.named_parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@torch.inference_mode()
def test_the_backbone_of_feature_maps_and_a_shortened_one_have_groups_to_set():
    images = torch.randn(1, 3, 96, 96)
    features = timm.create_model(
        "crossformerpp_small", **OPTIONS, features_only=True, feature_cls="getter"
    ).eval()
    made = timm.create_model(
        "crossformerpp_small", **OPTIONS, features_only=True, feature_cls="getter", group_sizes=(3, 3, 3, 3)
    ).eval()
    made.load_state_dict(features.state_dict())
    features.model.set_groups((3, 3, 3, 3))
    assert all(torch.equal(a, b) for a, b in zip(features(images), made(images), strict=True))
    model = create()
    model.prune_intermediate_layers([1])
    model.set_groups((3, 3))
    assert model.groups.group_sizes == ((3, 3), (3, 3))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"group_sizes": (7, 7, 7)}, "3 group sizes given for 4 stages"),
        ({"group_sizes": (7, 7, (7, 7), 7)}, "stage 3 has 3 blocks but 2 group sizes"),
        ({"group_sizes": (7, 7, 7, 0)}, "group size 0 in stage 4"),
        ({"intervals": ("adaptiv", 1, 1, 1)}, "interval 'adaptiv' in stage 1"),
        ({"group_sizes": (3, 3, 3, 3), "lda": "regionl"}, "the nearest is 'regional'"),
    ],
)
def test_what_cannot_be_set_changes_nothing(setting, message):
    model = create()
    own = model.groups
    with pytest.raises(ValueError, match=message):
        model.set_groups(**setting)
    assert model.groups == own


def test_other_attentions_have_no_groups_to_set():
    model = create(attention="swin")
    with pytest.raises(
        ValueError, match=r"of LSDA only, and this model has ShiftedWindowAttention, WindowAttention"
    ):
        model.set_groups((3, 3, 3, 3))


@torch.inference_mode()
def test_a_folded_bias_refuses_larger_groups_and_serves_smaller_ones():
    images = torch.randn(1, 3, 64, 64)
    model = create(group_sizes=(4, 4, 4, 2), intervals=(1, 1, 1, 1))
    model.set_groups((2, 2, 2, 2))
    expected = model(images)
    model.set_groups((4, 4, 4, 2))
    model.fold_position_bias(64, 64)
    model.set_groups((2, 2, 2, 2))
    torch.testing.assert_close(model(images), expected)
    model.set_groups((8, 4, 4, 2))
    with pytest.raises(ValueError, match=r"group"):
        model(images)


def test_options_make_the_same_groups_again():
    rules = create(**SETTINGS[0]).groups
    assert rules.options()["group_sizes"] == [14, [2, 5], [4, 3, 4], 2]
    assert create(**rules.options()).groups == rules
    assert Groups.of(rules.rules()) == rules


def test_a_compiled_model_follows_its_groups():
    images = torch.randn(2, 3, 64, 64)
    model = create()
    compiled = torch.compile(model, backend="eager")  # what it traces, without a compiler of kernels
    with torch.no_grad():
        for setting in SETTINGS[:2]:
            model.set_groups(**setting)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)


def test_an_interpolated_bias_follows_its_groups():
    options = {"position": "rpb-online", "position_sizes": (7, 7, 7, 7)}
    model = create(**options, group_sizes=(7, 7, 7, 7))
    other = create(**options, group_sizes=(4, 4, 4, 2))
    other.load_state_dict(model.state_dict())
    model.set_groups((4, 4, 4, 2))
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_only_groups_can_be_folded():
    with pytest.raises(ValueError, match="groups can be set of LSDA only"):
        create(attention="swin").fold_position_bias()
