"""Scripted models beside eager ones. Weights and sizes are small; the scripted graph pads, the eager one does not."""

import io

import pytest
import timm
import torch
from torch import Tensor, nn

import crossformerpp  # noqa: F401

SMALL = {"embed_dim": 32, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 4, 8), "num_classes": 10}
SIZES = [(64, 64), (75, 100), (33, 150)]  # maps that divide, that do not, and that are one group


def model(name: str = "crossformerpp_small", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **options}).eval()


def assert_same(a: Tensor | list[Tensor], b: Tensor | list[Tensor]) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "crossformer_tiny"},
        {"features_only": True, "out_indices": (0, 2)},
        {"position": "dpb-residual", "intervals": ("adaptive",) * 4, "cooling_kind": "gated", "cooling": 1},
        {"position": "rpb-online", "position_sizes": (3, 3, 7, 7)},
        {"position": "ape"},
    ],
    ids=["classifier", "features", "residual", "interpolated", "absolute"],
)
@torch.no_grad()
def test_a_scripted_model_gives_the_same_at_any_size(options: dict[str, object]) -> None:
    eager = model(**options)
    scripted = torch.jit.script(eager)
    assert list(scripted.state_dict()) == list(eager.state_dict())
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        assert_same(scripted(x), eager(x))


def test_a_scripted_model_learns_the_same() -> None:
    eager = model().train()
    scripted = torch.jit.script(eager)
    x = torch.randn(2, 3, 75, 100)
    gradients = []
    for network in (eager, scripted):
        eager.zero_grad()
        network(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in eager.parameters()])
    assert_same(*gradients)


@torch.no_grad()
def test_scripted_training_drops_branches() -> None:
    """At a rate of 1 the last block hands its input on."""
    stage = torch.jit.script(model(drop_path_rate=1.0)).stages[3]
    x = torch.randn(2, 8, 8, 128)
    assert not torch.equal(stage(x), stage.embedding(x))
    stage.train()
    assert torch.equal(stage(x), stage.embedding(x))


@torch.no_grad()
def test_a_folded_bias_is_scripted_saved_and_loaded() -> None:
    eager, x = model(), torch.randn(1, 3, 75, 100)
    expected = eager(x)
    eager.fold_position_bias(75, 100)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(eager), file)
    file.seek(0)
    assert_same(torch.jit.load(file)(x), expected)


@torch.no_grad()
def test_scripted_half_precision_has_no_nan() -> None:
    eager, x = model(), torch.randn(1, 3, 75, 100)
    expected = eager(x)
    scripted = torch.jit.script(eager.half())
    torch.testing.assert_close(scripted(x.half()).float(), expected, atol=2e-2, rtol=0)


@torch.no_grad()
def test_scripting_a_model_in_use_leaves_it_as_it_was() -> None:
    eager, x = model(features_only=True), torch.randn(1, 3, 64, 64)
    kinds = [type(module) for module in eager.modules()]
    expected = eager(x)  # biases are remembered from here on
    scripted = torch.jit.script(eager)
    assert [type(module) for module in eager.modules()] == kinds
    assert_same(eager(x), expected)
    for parameter in eager.parameters():
        parameter.mul_(1.1)
    assert_same(scripted(x), eager(x))


def test_a_scripted_model_names_what_it_cannot_take() -> None:
    scripted = torch.jit.script(model())
    for shape, message in [((1, 4, 64, 64), "in_chans"), ((1, 3, 20, 64), "at least 32x32")]:
        with pytest.raises(torch.jit.Error, match=message):
            scripted(torch.randn(*shape))
