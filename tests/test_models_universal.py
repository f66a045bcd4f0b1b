"""CEL, PGS and ACL in timm's models: where they stand, what they keep, that they train."""

import copy

import pytest
import timm
import torch

import crossformerpp  # noqa: F401  (registers the models)
from crossformerpp.models import add_cooling, use_cross_scale_embedding

SMALL = {
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 24,
        "depths": (1, 4, 2, 1),
        "img_size": 64,
        "window_size": 4,
    },
    "davit_tiny": {"embed_dims": (24, 48), "depths": (1, 4), "num_heads": (1, 2)},
    "pvt_v2_b0": {"depths": (1, 4, 1, 1)},
    "convnext_atto": {"depths": (1, 4, 1, 1), "dims": (8, 16, 24, 32)},
}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **SMALL[name]).eval()


@pytest.mark.parametrize("name", SMALL)
def test_cooling_stands_after_every_kth_block_and_keeps_the_keys(name):
    plain, cooled = build(name), add_cooling(build(name), every=2)
    new = cooled.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= cooled.state_dict().keys()
    # of stages 2 and 3 of four blocks the second alone: never the last
    (stage,) = {key.rpartition(".cooling.1.")[0] for key in new}
    assert stage == cooled.feature_info[1]["module"]
    missing = cooled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert set(missing) == new

    side = 64 if "img_size" in SMALL[name] else 96
    x = torch.randn(2, 3, side, side)
    assert not torch.allclose(cooled(x), plain(x))
    cooled.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in cooled.parameters())


def test_a_cooled_block_gives_what_the_layer_makes_of_its_output():
    model = build("swin_tiny_patch4_window7_224")
    stage, x = model.layers[1], torch.randn(1, 8, 8, 48)
    block = stage.blocks[1]
    before = block(x)
    add_cooling(model, every=2)
    torch.testing.assert_close(block(x), stage.cooling["1"](before))
    copied = copy.deepcopy(model).layers[1]
    torch.nn.init.zeros_(copied.cooling["1"].norm.weight)
    assert not copied.blocks[1](x).any()  # the copy cools with its own layer
    torch.testing.assert_close(block(x), stage.cooling["1"](before))


def test_tokens_of_an_oblong_map_are_cooled_as_a_map():
    model = build("pvt_v2_b0")
    plain = copy.deepcopy(model)
    add_cooling(model, every=2)
    cooling = model.stages[1].cooling["1"]
    torch.nn.init.zeros_(cooling.conv.weight)
    cooling.conv.weight.data[:, 0, 1, 2] = 1.0  # every token becomes its right neighbour
    cooling.norm = torch.nn.Identity()
    x, size = torch.randn(1, 8 * 4, 64), (8, 4)
    shifted = torch.nn.functional.pad(plain.stages[1].blocks[1](x, size).view(1, 8, 4, 64), (0, 0, 0, 1))[
        :, :, 1:
    ]
    found = model.stages[1].blocks[1](x, size).view(1, 8, 4, 64)
    torch.testing.assert_close(found, shifted + cooling.conv.bias)


@pytest.mark.parametrize("name", SMALL)
def test_cross_scale_embedding_keeps_the_rest_of_the_model(name):
    plain = build(name)
    conv = plain.pretrained_cfg["first_conv"]
    model = use_cross_scale_embedding(build(name))
    changed = plain.state_dict().keys() ^ model.state_dict().keys()
    assert all(key.startswith(f"{conv}.") for key in changed)
    projection = model.get_submodule(conv)
    assert [p.kernel_size[0] for p in projection.projections] == [4, 8, 16, 32]
    side = 64 if "img_size" in SMALL[name] else 96
    maps = projection(torch.randn(1, 3, side, side))
    assert maps.shape == plain.get_submodule(conv)(torch.randn(1, 3, side, side)).shape
    assert model(torch.randn(1, 3, side, side)).shape == (1, 3)


def _on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def test_what_does_not_fit_is_refused():
    model = build("pvt_v2_b0")
    with pytest.raises(ValueError, match="cooling every 0 blocks"):
        add_cooling(model, every=0)
    with pytest.raises(ValueError, match="Linear has no stages with blocks"):
        add_cooling(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"kernel size 3 does not fit stride 4"):
        use_cross_scale_embedding(model, (3, 8))
    with pytest.raises(ValueError, match="no patch embedding by one convolution"):
        use_cross_scale_embedding(_on_meta("vgg11"))


@pytest.mark.parametrize(("name", "is_cooled"), [("swin_tiny_pgs", False), ("swin_tiny_pgs_acl", True)])
def test_swins_of_table_ix(name, is_cooled):
    model, swin_t = _on_meta(name), _on_meta("swin_tiny_patch4_window7_224")
    sides = [
        round(stage.blocks[0].attn.relative_position_bias_table.shape[0] ** 0.5) for stage in model.layers
    ]
    assert sides == [7, 7, 27, 13]  # 2·4−1, 2·4−1, 2·14−1, 2·7−1
    assert [n for n, _ in model.named_modules() if n.endswith(".cooling.2")] == (
        ["layers.2.cooling.2"] if is_cooled else []
    )
    same = {k for k, v in swin_t.state_dict().items() if model.state_dict()[k].shape == v.shape}
    assert all(k.endswith("relative_position_bias_table") for k in swin_t.state_dict().keys() - same)
    assert [tuple(f.shape) for f in model(torch.zeros(1, 3, 224, 224, device="meta"))[None]] == [(1, 1000)]


def test_pyramid_of_swin_is_cooled_too():
    options = {"embed_dim": 24, "depths": (1, 1, 4, 1), "img_size": 64, "window_size": (4, 4, 4, 2)}
    pyramid = timm.create_model("swin_tiny_pgs_acl", features_only=True, **options).eval()
    assert [tuple(f.shape) for f in pyramid(torch.randn(1, 3, 64, 64))] == [
        (1, 16, 16, 24),
        (1, 8, 8, 48),
        (1, 4, 4, 96),
        (1, 2, 2, 192),
    ]
    assert sum(n.endswith(".conv") for n, _ in pyramid.named_modules()) == 1


def test_cooling_takes_the_models_type_and_is_added_once():
    model = add_cooling(
        timm.create_model("swin_tiny_patch4_window7_224", depths=[1, 1, 1, 1], embed_dim=24).bfloat16()
    )
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 224, 224).bfloat16()).isfinite().all()
    with pytest.raises(ValueError, match="has cooling layers already"):
        add_cooling(model)
