"""The model: any size, the literal implementation's result, timm's contract."""

import copy
import itertools
import warnings

import pytest
import timm
import torch
from benchmarks.literal import LiteralCrossFormer
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

from crossformerpp import VARIANTS, CrossFormer
from crossformerpp.layers import DynamicPositionBias

TINY = {"embed_dim": 32, "depths": (1, 2, 4, 1), "num_heads": (1, 2, 4, 8), "num_classes": 10}
NAMES = sorted(VARIANTS)


def _tiny(name: str = "crossformerpp_small", **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **kwargs}).eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_a_timm_model(name):
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1)
    assert isinstance(model, CrossFormer)
    assert model(torch.empty(2, 1, 224, 224, device="meta")).shape == (2, 7)
    assert model.pretrained_cfg["classifier"] == "head.fc"


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (224, 224), (256, 448)])
def test_equals_the_literal_implementation(name, size):
    model = _tiny(name)
    options = {**VARIANTS[name], **TINY}
    literal = LiteralCrossFormer(**options).eval()
    literal.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), literal(x), atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(
            model.forward_intermediates(x, intermediates_only=True), literal.features(x), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
def test_gradients_equal_the_literal_implementations(name):
    model = _tiny(name)
    literal = LiteralCrossFormer(**{**VARIANTS[name], **TINY}).eval()
    literal.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 96, 160)
    for module in (model, literal):
        module(x).square().sum().backward()
    theirs = dict(literal.named_parameters())
    for parameter_name, ours in model.named_parameters():
        expected = theirs[parameter_name].grad
        torch.testing.assert_close(
            ours.grad, expected, atol=2e-4 * max(1.0, expected.abs().max().item()), rtol=1e-3
        )


@pytest.mark.parametrize("size", [(32, 32), (33, 97), (50, 50), (101, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_gives_ceil_maps(size, batch):
    model = _tiny(features_only=True)
    with torch.no_grad():
        maps = model(torch.randn(batch, 3, *size))
    for i, y in enumerate(maps):
        s = 4 * 2**i
        assert y.shape == (batch, 32 * 2**i, -(-size[0] // s), -(-size[1] // s))
        assert y.isfinite().all()


def test_images_of_a_batch_do_not_touch_each_other():
    model, x = _tiny(), torch.randn(3, 3, 72, 100)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x), torch.cat([model(image[None]) for image in x]), atol=1e-5, rtol=1e-4
        )


def test_nothing_is_kept_between_calls():
    """Small image, large image, small image: the first and the last agree (as does another instance)."""
    model = _tiny()
    small, large = torch.randn(1, 3, 48, 48), torch.randn(1, 3, 200, 168)
    with torch.no_grad():
        first = model(small)
        model(large)
        assert torch.equal(first, model(small))
        assert torch.equal(model(large), copy.deepcopy(model)(large))


def test_chunked_equals_whole(monkeypatch):
    model, x = _tiny(), torch.randn(2, 3, 120, 88)
    with torch.no_grad():
        monkeypatch.setattr("crossformerpp.kernels.CHUNK_ELEMENTS", 1 << 30)
        whole = model(x)
        monkeypatch.setattr("crossformerpp.kernels.CHUNK_ELEMENTS", 1000)
        torch.testing.assert_close(model(x), whole, atol=1e-5, rtol=1e-4)


def test_hooks_see_all_tokens_of_a_layer(monkeypatch):
    monkeypatch.setattr("crossformerpp.kernels.CHUNK_ELEMENTS", 100)
    model, seen = _tiny(), []
    model.stages[0].blocks[0].norm1.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert seen == [(1, 16, 16, 32)]


@pytest.mark.parametrize("kind", ["acl", "gated", "limit"])
def test_every_parameter_gets_a_gradient(kind):
    model = _tiny(cooling=3, cooling_kind=kind).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_checkpointing_changes_no_gradient():
    model = _tiny(cooling=3).train()
    x = torch.randn(2, 3, 64, 80)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_features_only_and_out_indices():
    model = _tiny(features_only=True, out_indices=(1, 3))
    assert model.feature_info.channels() == [64, 256]
    assert model.feature_info.reduction() == [8, 32]
    full = _tiny(features_only=True)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        a, b = model(x), full(x)
    assert torch.equal(a[0], b[1])
    assert torch.equal(a[1], b[3])
    assert a[0].is_contiguous()


def test_forward_intermediates():
    model, x = _tiny(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert len(maps) == 4
        (last,) = model.forward_intermediates(
            x, indices=[-1], intermediates_only=True, norm=True, output_fmt="NHWC"
        )
        assert torch.equal(last, final)
        (second,) = model.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
        assert torch.equal(second, maps[1])
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_prune_intermediate_layers():
    model, x = _tiny(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        model.prune_intermediate_layers([1], prune_norm=True)
        assert len(model.stages) == 2
        assert torch.equal(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], expected)


def test_heads_and_pooling():
    model, x = _tiny(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 2, 2, model.num_features)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((1, 2)))
        torch.testing.assert_close(model(x), model.get_classifier()(pooled))
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        assert model.global_pool == ""
        torch.testing.assert_close(
            _tiny(global_pool="max").forward_head(features, pre_logits=True), features.amax((1, 2))
        )


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_name_every_parameter_and_ascend(coarse):
    model = _tiny(cooling=3)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    layer_of = {name: number for number, group in groups.items() for name in group}
    first = layer_of["stages.0.embedding.projections.0.weight"]
    assert first == min(groups)
    assert layer_of["stages.1.blocks.0.norm1.weight"] > layer_of["stages.0.blocks.0.norm1.weight"]
    assert layer_of["stages.1.embedding.norm.weight"] > layer_of["stages.0.blocks.0.norm1.weight"]
    assert layer_of["stages.3.blocks.0.norm1.weight"] > layer_of["stages.2.blocks.3.norm1.weight"]
    assert layer_of["head.fc.weight"] == max(groups)


def test_layer_decay_of_timm():
    groups = param_groups_layer_decay(_tiny(), weight_decay=0.05, layer_decay=0.8)
    scales = [group["lr_scale"] for group in groups]
    assert min(scales) < 0.3
    assert max(scales) == 1.0


def test_group_sizes_change_no_weight():
    base = _tiny("crossformer_small")
    dense = _tiny("crossformer_small", group_sizes=(14, 14, 7, 7), intervals=(16, 8, 2, 1))
    dense.load_state_dict(base.state_dict())
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert not torch.allclose(base(x), dense(x))


def test_group_sizes_per_block_and_other_overrides():
    model = _tiny(
        group_sizes=(4, 4, (4, 5, 6, 7), 7),
        kernel_sizes=((8,), (2,), (2, 4), (2,)),
        cooling=2,
        allocation="equal",
    )
    assert [block.attn.rule.group_size for block in model.stages[2].blocks] == [4, 5, 6, 7]
    assert [block.cooling is not None for block in model.stages[2].blocks] == [False, True, False, False]
    assert [block.attn.rule.distance for block in model.stages[2].blocks] == [
        "short",
        "long",
        "short",
        "long",
    ]
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_lda_of_all_stages_or_of_each():
    per_stage = ("spanning", "regional", "spanning", "regional")
    mixed, spanning, regional = (
        _tiny("crossformer_small", lda=lda) for lda in (per_stage, "spanning", "regional")
    )
    for model, words in ((mixed, per_stage), (spanning, ("spanning",) * 4), (regional, ("regional",) * 4)):
        assert [{block.attn.rule.lda for block in stage.blocks} for stage in model.stages] == [
            {w} for w in words
        ]
        model.load_state_dict(spanning.state_dict())
    small, large = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 224, 352)
    with torch.no_grad():
        assert torch.equal(spanning(small), regional(small))  # G·I is the map's side
        outputs = [model(large) for model in (mixed, spanning, regional)]
    assert not any(torch.allclose(a, b, rtol=1e-4) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize("strides", [(4, 2, 2, 2), (2, 2, 2, 2), (1, 2, 2, 1)])
def test_strides_decide_on_the_maps_and_are_told_to_timm(strides):
    kernels = [(stride, 2 * stride) if stride % 2 == 0 else (1, 3) for stride in strides]
    x = torch.randn(1, 3, 40, 32)
    for options in ({}, {"position": "ape", "img_size": (40, 32)}):
        model = _tiny(strides=strides, kernel_sizes=kernels, **options)
        maps = model.forward_intermediates(x, intermediates_only=True)
        height, width, reductions = 40, 32, []
        for stride, found in zip(strides, maps, strict=True):
            height, width = -(-height // stride), -(-width // stride)
            reductions.append(reductions[-1] * stride if reductions else stride)
            assert found.shape[2:] == (height, width)
        assert [info["reduction"] for info in model.feature_info] == reductions


def test_policies_of_group_sizes_follow_the_stem():
    """The first map of images of 112 is that of 224 with half the stride."""
    one = _tiny(group_sizes="linear", img_size=224)
    two = _tiny(group_sizes="linear", img_size=112, strides=(2, 2, 2, 2), kernel_sizes=((2, 4),) * 4)
    assert one.groups.group_sizes == two.groups.group_sizes


def test_an_interval_larger_than_the_map_makes_groups_of_one_token():
    model = _tiny("crossformer_small", intervals=(100, 100, 100, 100), depths=(2, 2, 2, 2))
    assert [part.sides for part in model.stages[0].blocks[1].attn.rule.on(16, 24).parts] == [(1, 1)]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).isfinite().all()


def test_a_size_that_spanning_groups_do_not_have_is_explained():
    sizes = ((7, 9), (7, 7), (7, 7, 7, 5), 7)
    with pytest.warns(
        UserWarning, match="group size 9 of stage 1, block 2: spanning LDA.*interval 8"
    ) as seen:
        _tiny("crossformer_small", depths=(2, 2, 4, 1), group_sizes=sizes)
    assert len(seen) == 2
    with warnings.catch_warnings(action="error"):
        _tiny("crossformer_small", depths=(2, 2, 4, 1), group_sizes=sizes, lda="regional")
        _tiny("crossformer_small", depths=(2, 2, 4, 1), group_sizes=sizes, intervals=["adaptive"] * 4)


def test_cooling_of_a_variant_can_be_switched_off():
    with_it, without = _tiny(depths=(1, 1, 4, 1)), _tiny(depths=(1, 1, 4, 1), cooling=0)
    assert any("cooling" in key for key in with_it.state_dict())
    assert not any("cooling" in key for key in without.state_dict())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"group_sizes": (0, 4, 14, 7)}, "group size 0"),
        ({"intervals": (4, -1, 1, 1)}, "interval -1"),
        ({"num_heads": (1, 2, 4)}, "num_heads has 3"),
        ({"cooling": -1}, "cooling -1"),
        ({"embed_dim": 36}, "multiple of 8"),
        ({"lda": "spaning"}, "lda 'spaning'.*spanning, regional; the nearest is 'spanning'"),
        ({"lda": ("spanning", "regional")}, "lda has 2 entries for 4 stages"),
    ],
)
def test_arguments_that_do_not_fit(options, match):
    with pytest.raises(ValueError, match=match):
        _tiny(**options)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 31, 64), "31x64.*at least 32x32"),
        ((1, 4, 64, 64), r"\(batch, 3, height, width\)"),
        ((3, 64, 64), "expected"),
    ],
)
def test_inputs_that_do_not_fit(shape, match):
    with pytest.raises(ValueError, match=match):
        _tiny()(torch.randn(shape))


def test_drop_path_drops_whole_branches_of_an_image():
    model = _tiny(depths=(1, 1, 1, 1), drop_path_rate=0.9).train()
    block = model.stages[3].blocks[0]
    x = torch.randn(64, 2, 2, 256)
    kept = (block(x) != x).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1))
    assert 0 < kept.any(1).sum() < 64
    first = model.stages[0].blocks[0]  # its rate is 0
    assert (first(torch.randn(64, 4, 4, 32)) != 0).any()
    assert isinstance(first.drop_path, torch.nn.Identity)


def test_initialisation():
    model = timm.create_model("crossformerpp_small", depths=(1, 1, 1, 1))
    fc = model.stages[2].blocks[0].mlp.fc1
    assert fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fc.bias.any()


def test_folded_position_bias_changes_nothing_up_to_its_size():
    model = _tiny("crossformer_small")
    folded = copy.deepcopy(model)
    folded.fold_position_bias(224, 192)
    assert not any(isinstance(m, DynamicPositionBias) for m in folded.modules())
    with torch.no_grad():
        for size in [(224, 192), (100, 64)]:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"cooling": 1, "cooling_kind": "gated"}]
)  # whose maps autocast leaves float32
def test_half_precision_is_finite_and_close(options):
    model, x = _tiny(**options), torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        full = model(x)
        half = copy.deepcopy(model).bfloat16()(x.bfloat16()).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x).float()
    for other in (half, mixed):
        assert other.isfinite().all()
        torch.testing.assert_close(other, full, atol=0.05 * full.abs().max().item(), rtol=0.05)


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
def test_bfloat16_is_as_exact_as_the_literal_implementation_in_it(name):
    model = _tiny(name)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # attention that is far from uniform
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    literal = LiteralCrossFormer(**{**VARIANTS[name], **TINY}).eval()
    literal.load_state_dict(model.state_dict())
    x = torch.randn(16, 3, 224, 224)
    with torch.inference_mode():
        exact = model(x)
        ours, theirs = ((each.bfloat16()(x.bfloat16()) - exact).square().mean() for each in (model, literal))
    assert 0 < ours < 1.3 * theirs


def _scale_branches(block):
    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    block.drop_path = Double()


def _tanh(block):
    block.mlp.act = torch.nn.GELU(approximate="tanh")
    for layer in (block.mlp.fc1, block.mlp.fc2):  # or the two kinds differ by rounding only
        torch.nn.init.normal_(layer.weight)


def _without_bias(block):
    block.norm1 = torch.nn.LayerNorm(block.norm1.normalized_shape, bias=False)
    block.norm2 = torch.nn.LayerNorm(block.norm2.normalized_shape, elementwise_affine=False)


@pytest.mark.parametrize("change", [_scale_branches, _tanh, _without_bias])
def test_a_changed_block_computes_in_inference_what_its_layers_say(change):
    block = _tiny().stages[0].blocks[0]
    change(block)
    x = 3 * torch.randn(1, 8, 8, *block.norm1.normalized_shape)
    mlp = block.mlp
    expected = x + block.drop_path(block.attn(block.norm1(x)))
    expected = expected + block.drop_path(mlp.fc2(mlp.act(mlp.fc1(block.norm2(expected)))))
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected.detach(), atol=1e-5, rtol=1e-6)


def test_dropped_paths_are_drawn_where_only_they_are_in_training():
    model, x = _tiny(drop_path_rate=0.5), torch.randn(1, 3, 64, 64)
    for stage in model.stages:
        for block in stage.blocks:
            block.drop_path.train()
    torch.manual_seed(0)
    with torch.no_grad():
        assert len({model(x).sum().item() for _ in range(8)}) > 1


def test_a_learnt_table_is_never_kept():
    model, x = _tiny(position="rpb"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
        for name, parameter in model.named_parameters():
            if name.endswith("position_bias.table"):
                parameter.data.normal_()  # which no version counter shows
        changed = model(x)
    torch.testing.assert_close(changed, model(x).detach(), atol=1e-5, rtol=1e-4)


def test_a_layer_of_one_s_own_in_the_position_bias_is_called_every_time():
    class Scaled(torch.nn.Linear):
        scale = 1.0

        def forward(self, x):
            return self.scale * super().forward(x)

    bias = DynamicPositionBias(16, 2).eval()
    own = bias.layers[-1][-1] = Scaled(bias.layers[-1][-1].in_features, 2)
    with torch.no_grad():
        first = bias(4, 4)
        own.scale = 2.0
        torch.testing.assert_close(bias(4, 4), 2 * first)
