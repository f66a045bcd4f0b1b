"""What timm asks of its own models, of each of the eight; weights are shrunk, or on the meta device."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from crossformerpp import VARIANTS

SHRUNK = {"embed_dim": 32, "depths": (1, 1, 4, 1), "num_heads": (1, 2, 4, 8), "num_classes": 10}
SIZE = (75, 100)

each = pytest.mark.parametrize("name", VARIANTS)


def shrunk(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SHRUNK, **options}).eval()


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@each
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = shrunk(name, drop_path_rate=0.1).train()
    torch.manual_seed(1)
    model(torch.randn(4, 3, *SIZE)).square().sum().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@each
def test_default_config_fits_the_whole_model(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    config, keys = model.default_cfg, model.state_dict().keys()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {f"{conv}.weight" for conv in config["first_conv"]} | {"head.fc.weight"} <= keys
    assert config["classifier"] == "head.fc"
    x = torch.empty(2, *config["input_size"], device="meta", dtype=torch.bfloat16)
    features = model.forward_features(x)
    assert model.output_fmt == "NHWC"
    assert features.shape == (2, *config["pool_size"], model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, config["num_classes"])
    with pytest.raises(TypeError):
        timm.create_model(name, device="meta", not_an_option=1)


@each
def test_features_of_the_whole_model_are_pyramids_in_nchw(name: str) -> None:
    model = timm.create_model(name, features_only=True, device="meta")
    maps = model(torch.empty(1, 3, *SIZE, device="meta"))
    info = model.feature_info
    assert info.reduction() == [4, 8, 16, 32]
    expected = [
        (1, channels, -(-SIZE[0] // stride), -(-SIZE[1] // stride))
        for channels, stride in zip(info.channels(), info.reduction(), strict=True)
    ]
    assert [tuple(x.shape) for x in maps] == expected


@each
@torch.no_grad()
def test_four_ways_to_the_same_maps(name: str) -> None:
    """features_only, forward_intermediates, a pruned model and fx feature extraction."""
    model, x = shrunk(name), torch.randn(2, 3, *SIZE)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    for ours, theirs in zip(shrunk(name, features_only=True)(x), maps, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(shrunk(name, features_only=True, feature_cls="fx")(x), maps, strict=True):
        assert_same(ours.permute(0, 3, 1, 2), theirs)  # of the stages as they are: NHWC
    for stage, expected in enumerate(maps):
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([stage], prune_norm=True)
        assert_same(pruned.forward_intermediates(x, indices=taken, intermediates_only=True)[0], expected)
        assert_same(pruned.forward_features(x).permute(0, 3, 1, 2), expected)


@each
def test_fx_graph_gives_the_same_output_and_gradients(name: str) -> None:
    model, x = shrunk(name), torch.randn(2, 3, *SIZE)
    graph = timm.models.create_feature_extractor(copy.deepcopy(model), {"head": "logits", "stages.2": "c4"})
    expected, logits = model(x), graph(x)["logits"]
    assert_same(logits, expected)
    for output in (expected, logits):
        output.square().sum().backward()
    theirs = {key: p.grad for key, p in graph.named_parameters()}
    for key, parameter in model.named_parameters():
        assert_same(theirs[key], parameter.grad)


@each
def test_a_new_head_is_where_and_as_the_old_one_was(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64).eval().requires_grad_(False)
    model.reset_classifier(0)
    assert not [key for key, p in model.named_parameters() if p.requires_grad]
    assert model(torch.empty(1, 3, 64, 64, device="meta", dtype=torch.float64)).shape[1] == model.num_features
    model.reset_classifier(7)
    weight = model.get_classifier().weight
    assert (weight.shape[0], weight.device.type, weight.dtype) == (7, "meta", torch.float64)
    assert not model.get_classifier().training
    model.reset_classifier(0, "")
    assert model(torch.empty(1, 3, 64, 64, device="meta", dtype=torch.float64)).shape == (
        1, 2, 2, model.num_features
    )  # fmt: skip


@each
@torch.no_grad()
def test_colour_weights_serve_other_channels(name: str, tmp_path: Path) -> None:
    colour, grey = shrunk(name), torch.randn(1, 1, *SIZE)
    file = tmp_path / "colour.safetensors"
    save_file(colour.state_dict(), file)
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "num_classes": 10}}
    assert_same(shrunk(name, in_chans=1, **options)(grey), colour(grey.expand(1, 3, *SIZE)))
    four = shrunk(name, in_chans=4, **options)
    assert four(torch.randn(1, 4, *SIZE)).shape == (1, 10)
    assert torch.equal(four.stages[1].embedding.norm.weight, colour.stages[1].embedding.norm.weight)


@each
def test_checkpointing_in_a_feature_extractor_changes_no_gradient(name: str) -> None:
    model, x = shrunk(name, features_only=True), torch.randn(1, 3, 64, 96)
    gradients = []
    for is_on in (False, True):
        model.model.set_grad_checkpointing(is_on)
        model.zero_grad()
        sum(y.square().sum() for y in model(x)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert [stage.grad_checkpointing for stage in model.model.stages] == [True] * 4
    for a, b in zip(*gradients, strict=True):
        assert_same(a, b)


@each
def test_layers_far_from_the_head_learn_more_slowly(name: str) -> None:
    model = timm.create_model(name, device="meta")
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.9)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert set(scale_of) == {id(p) for p in named.values()}
    blocks = [
        scale_of[id(named[f"stages.{i}.blocks.{j}.attn.qkv.weight"])]
        for i, stage in enumerate(model.stages)
        for j in range(len(stage.blocks))
    ]
    assert blocks == sorted(set(blocks))
    assert scale_of[id(named["stages.0.embedding.projections.0.weight"])] == min(scale_of.values())
    assert scale_of[id(named["head.fc.weight"])] == 1.0
    assert {decay_of[id(p)] for p in named.values() if p.ndim == 1} == {0.0}
    assert {decay_of[id(p)] for p in named.values() if p.ndim > 1} == {0.05}


@each
def test_weights_made_on_the_meta_device_can_be_drawn_later(name: str) -> None:
    model = shrunk(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert not [key for key, p in model.named_parameters() if not p.isfinite().all()]
    assert not [key for key, _ in model.named_buffers()], "a buffer would need init_non_persistent_buffers()"
    assert model.get_parameter("norm.weight").eq(1).all()
    assert model.get_parameter("stages.1.embedding.projections.0.weight").std() > 0


@pytest.mark.parametrize("name", ["crossformer_tiny", "crossformerpp_huge"])  # a table row of each kind
@torch.no_grad()
def test_exported_and_compiled_models_give_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, x = shrunk(name, depths=(1, 1, 1, 1), cooling=None), torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert_same(torch.export.export(model, (x,)).module()(x), expected)
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@each
def test_timms_transform_follows_from_the_config(name: str) -> None:
    model = timm.create_model(name, device="meta")
    config = resolve_data_config(model=model)
    assert config["input_size"] == (3, 224, 224)
    assert (config["interpolation"], config["crop_pct"]) == ("bicubic", 0.875)
    resize = create_transform(**config).transforms[0]
    assert resize.size == 256
