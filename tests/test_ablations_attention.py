"""The self-attentions of Table VIII: who can attend to whom, by gradients, as each one's paper has it."""

import pytest
import timm
import torch
from timm.models import davit
from torch import Tensor

from crossformerpp.ablations.build import build_attention
from crossformerpp.ablations.reduced import from_davit
from crossformerpp.layers import GroupRule
from crossformerpp.models import CrossFormer

DIM, HEADS = 32, 2
ATTENTIONS = ["lsda", "swin", "cat", "cat-unbiased", "pvt", "davit", "cswin", "scalablevit"]


def build(attention: str, distance: str = "short", group_size: int = 4, interval=2, **options):
    torch.manual_seed(0)
    position = "none" if attention == "pvt" else "dpb"
    rule = GroupRule(distance, group_size, interval)
    module = build_attention(attention, position, DIM, options.pop("num_heads", HEADS), rule, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.double().eval()


def reach(module, height: int, width: int) -> Tensor:
    """Whether the output at a place depends on the input at a place: (H·W, H·W)."""
    maps = torch.randn(1, height, width, DIM, dtype=torch.double, requires_grad=True)
    out = module(maps).sum(-1).flatten()
    rows = [torch.autograd.grad(y, maps, retain_graph=True)[0].abs().sum(-1).flatten() for y in out]
    return torch.stack(rows) > 1e-12


def cells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of every place, (H·W,) each."""
    return torch.arange(height * width) // width, torch.arange(height * width) % width


def same(*labels: Tensor) -> Tensor:
    """Which pairs of places agree in all labels."""
    return torch.stack([label[:, None] == label for label in labels]).all(0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 5), (3, 10)])
@pytest.mark.parametrize("attention", ["swin", "cat", "cat-unbiased", "davit"])
def test_windows_see_themselves_alone(attention, height, width):
    y, x = cells(height, width)
    assert torch.equal(reach(build(attention), height, width), same(y // 4, x // 4))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 6), (8, 3), (4, 4)])
def test_swins_second_windows_lie_across_the_first(height, width):
    """Windows start M/2 = 2 later along each axis that has several; the cyclic shift joins no opposite ends."""
    y, x = cells(height, width)
    expected = same((y + 2) // 4 if height > 4 else y * 0, (x + 2) // 4 if width > 4 else x * 0)
    assert torch.equal(reach(build("swin", "long"), height, width), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9)])
def test_cats_patches_see_each_other_channel_by_channel(height, width):
    module = build("cat", "long", group_size=2)
    assert reach(module, height, width).all()
    maps = torch.randn(1, height, width, DIM, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(module(maps)[..., 3].sum(), maps)
    assert (grad[..., 3] != 0).all()
    assert not grad[..., :3].any()
    assert not grad[..., 4:].any()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 6), (2, 7)])
def test_cswins_stripes_make_a_cross(height, width):
    y, x = cells(height, width)
    module = build("cswin", group_size=2)
    assert torch.equal(reach(module, height, width), same(y // 2) | same(x // 2))


def test_cswins_halves_are_one_direction_each():
    y, x = cells(6, 6)
    module = build("cswin", group_size=2, num_heads=4)
    with torch.no_grad():  # the output's channels are the heads' own
        module.proj.weight.copy_(torch.eye(DIM))
    maps = torch.randn(1, 6, 6, DIM, dtype=torch.double, requires_grad=True)
    for channels, labels in ((slice(DIM // 2), y), (slice(DIM // 2, DIM), x)):
        outs = module(maps)[..., channels].sum(-1).flatten()
        rows = [torch.autograd.grad(o, maps, retain_graph=True)[0].abs().sum(-1).flatten() for o in outs]
        assert torch.equal(torch.stack(rows) > 1e-12, same(labels // 2))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
@pytest.mark.parametrize(
    ("attention", "distance"), [("pvt", "short"), ("pvt", "long"), ("scalablevit", "long")]
)
def test_reduced_keys_still_cover_the_map(attention, distance, height, width):
    assert reach(build(attention, distance), height, width).all()


@pytest.mark.parametrize(("attention", "distance"), [("pvt", "short"), ("scalablevit", "long")])
def test_reduction_makes_one_key_of_each_patch(attention, distance):
    """With a convolution that averages, the places of a patch can be exchanged unseen by all other tokens."""
    module = build(attention, distance)
    conv = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    assert conv.stride == conv.kernel_size == (2, 2)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.mean((2, 3), keepdim=True).expand_as(conv.weight))
    maps = torch.randn(1, 6, 6, DIM, dtype=torch.double)
    exchanged = maps.clone()
    exchanged[0, 2, 2], exchanged[0, 3, 3] = maps[0, 3, 3], maps[0, 2, 2]
    before, after = module(maps), module(exchanged)
    torch.testing.assert_close(after[0, 2, 2], before[0, 3, 3])
    after[0, 2, 2], after[0, 3, 3] = before[0, 2, 2], before[0, 3, 3]
    torch.testing.assert_close(after, before)


def test_scalablevits_windows_interact_with_their_neighbours_only():
    y, x = cells(12, 12)
    found = reach(build("scalablevit"), 12, 12)
    is_near = ((y[:, None] - y).abs() <= 1) & ((x[:, None] - x).abs() <= 1)
    assert torch.equal(found, same(y // 4, x // 4) | is_near)


def test_scalablevit_widens_queries_and_keys():
    module = build_attention("scalablevit", "none", 64, 2, GroupRule("long", 7, interval=2))
    shapes = [tuple(part.weight.shape) for part in (module.q, module.k, module.v)]
    assert shapes == [(80, 64), (80, 80), (64, 80)]
    assert module.reduce.conv.groups == 64


def test_scalablevits_last_stage_is_plain_attention():
    """With R = 1 nothing is reduced or widened: torch's own multi-head attention with the same weights agrees."""
    module = build("scalablevit", "long", interval=1)
    plain = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.double)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([module.q.weight, module.k.weight, module.v.weight]))
        plain.in_proj_bias.copy_(torch.cat([module.q.bias, module.k.bias, module.v.bias]))
    plain.out_proj.load_state_dict(module.proj.state_dict())
    maps = torch.randn(2, 3, 4, DIM, dtype=torch.double)
    expected, _ = plain(*[maps.flatten(1, 2)] * 3)
    torch.testing.assert_close(module(maps).flatten(1, 2), expected)


def test_scalablevit_in_crossformer_small_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        model = timm.create_model("crossformer_small", attention="scalablevit")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(31.82, abs=0.005)


def test_cats_own_attention_across_patches_has_no_position_bias():
    biased, own = build("cat", "long"), build("cat-unbiased", "long")
    assert biased.position_bias is not None
    assert own.position_bias is None
    assert build("cat-unbiased").position_bias is not None  # within patches it has one
    maps = torch.randn(1, 8, 8, DIM, dtype=torch.double)
    biased.position_bias = None
    biased.load_state_dict(own.state_dict())
    torch.testing.assert_close(biased(maps), own(maps))


def test_davits_weights_give_davits_outputs_after_reordering():
    torch.manual_seed(0)
    original = davit.ChannelAttention(DIM, HEADS, qkv_bias=True).double()
    ours = build("davit", "long")
    ours.load_state_dict(from_davit(original.state_dict()))
    maps = torch.randn(2, 5, 6, DIM, dtype=torch.double)
    torch.testing.assert_close(ours(maps).flatten(1, 2), original(maps.flatten(1, 2)))


def test_davits_channels_attend_within_their_head_over_the_whole_map():
    module = build("davit", "long")
    assert reach(module, 5, 6).all()
    with torch.no_grad():
        module.proj.weight.copy_(torch.eye(DIM))
        head = module.qkv.weight.view(3, HEADS, DIM // HEADS, DIM)
        head[:, 0, :, DIM // 2 :] = 0.0  # head 0 reads the first half of the channels, head 1 the second
        head[:, 1, :, : DIM // 2] = 0.0
    maps = torch.randn(1, 5, 6, DIM, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(module(maps)[..., : DIM // 2].sum(), maps)
    assert (grad[..., : DIM // 2] != 0).all()
    assert not grad[..., DIM // 2 :].any()
    # a channel is a token: no order among places, so shuffled places give the shuffled result
    order = torch.randperm(30)
    shuffled = maps.flatten(1, 2)[:, order].view_as(maps)
    torch.testing.assert_close(module(shuffled).flatten(1, 2), module(maps).flatten(1, 2)[:, order])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("distance", ["short", "long"])
def test_images_of_a_batch_stay_apart_and_every_parameter_learns(attention, distance):
    module = build(attention, distance)
    maps = torch.randn(3, 6, 9, DIM, dtype=torch.double)
    if attention != "lsda":  # whose rows are in a grouping's order
        alone = torch.cat([module(image[None]) for image in maps])
        torch.testing.assert_close(module(maps), alone)
    module(maps).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_models_take_any_size_alike_with_and_without_chunks(attention):
    torch.manual_seed(0)
    model = CrossFormer(
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 2),
        group_sizes=(4, 4),
        intervals=(2, 1),
        kernel_sizes=((4, 8), (2, 4)),
        num_classes=3,
        attention=attention,
        position="none" if attention == "pvt" else "dpb",
        drop_path_rate=0.1,
    )
    x = torch.randn(9, 3, 133, 141)
    with torch.no_grad():
        model.eval()
        in_chunks = model(x)
    torch.testing.assert_close(in_chunks, model(x), atol=1e-4, rtol=1e-4)
    assert model.train()(x[:1, :, :40]).shape == (1, 3)


@pytest.mark.parametrize(
    ("attention", "options", "match"),
    [
        ("linformer", {}, "unknown attention 'linformer': choose one of lsda"),
        ("pvt", {"interval": "adaptive"}, "'pvt' reduces maps by the interval.*'adaptive'"),
        ("cswin", {"num_heads": 1}, "num_heads must be 2 or more"),
    ],
)
def test_what_does_not_fit_is_refused(attention, options, match):
    with pytest.raises(ValueError, match=match):
        build(attention, **options)


def test_pvt_refuses_a_position_bias():
    with pytest.raises(ValueError, match="'pvt' has no place for position 'dpb': choose 'none' or 'ape'"):
        build_attention("pvt", "dpb", DIM, HEADS, GroupRule("short", 4, 2))
