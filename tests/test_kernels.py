"""Kernels equal plain PyTorch, with gradients, in whatever portions they work."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crossformerpp import kernels
from crossformerpp.kernels.bias import add_query_rows, query_rows
from crossformerpp.layers import Linear, Mlp
from crossformerpp.layers.attention import attention_weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 4, 12), (0, 12), (40, 4), (40, 7)])
def test_projection_equals_torch_linear_with_gradients(bias, shape):
    ours = Linear(shape[-1], 7, bias=bias)
    theirs = torch.nn.Linear(shape[-1], 7, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(*shape[:-1], 7)
    a = torch.autograd.grad((ours(x) * weight).sum(), [x, *ours.parameters()])
    b = torch.autograd.grad((theirs(x) * weight).sum(), [x, *theirs.parameters()])
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(a, b)
    for layer in (ours, theirs):
        layer(x).sum().backward()  # one gradient for all outputs, which is not spread in memory
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    assert all(p.grad.is_contiguous() for p in ours.parameters())


def test_projection_can_be_differentiated_twice():
    ours, x = Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    (first,) = torch.autograd.grad(ours(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), ours.weight)
    (expected,) = torch.autograd.grad(
        torch.autograd.grad(F.linear(x, ours.weight, ours.bias).pow(3).sum(), x, create_graph=True)[0].sum(),
        ours.weight,
    )
    torch.testing.assert_close(second, expected)


def test_projection_is_seen_by_counters_transforms_and_autocast():
    ours, x = Linear(4, 3), torch.randn(5, 4)
    with FlopCounterMode(display=False) as counter:
        ours(x)
    assert counter.get_total_flops() == 2 * 5 * 4 * 3
    torch.testing.assert_close(torch.vmap(ours)(x), ours(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("autocast", [False, True])
def test_mlp_equals_its_layers_with_gradients(shape, autocast):
    mlp, x = Mlp(12, 48), torch.randn(shape, requires_grad=True)
    results = []
    for run in (mlp, torch.nn.Sequential(mlp.fc1, mlp.act, mlp.fc2)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = run(x)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), [x, *mlp.parameters()])])
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            results.append([run(x)])
    (ours, inference, theirs, other) = results
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if autocast else {}
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(inference, other, **tolerance)


def test_mlp_keeps_one_wide_tensor_in_training():
    """GELU's output is computed again in the backward pass."""
    mlp, x, kept = Mlp(12, 48), torch.randn(5, 12, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mlp(x)
    assert kept.count((5, 48)) == 1


def test_mlp_can_be_differentiated_twice():
    mlp = Mlp(4, 6).double()
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(mlp, x)


class Doubled(torch.nn.Linear):
    """As adapters are: a layer in another one's place, which must not be passed over."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_adapters_hooks_and_patched_layers_are_called(mode):
    mlp, x, seen = Mlp(4, 6), torch.randn(3, 4), []
    with mode():
        expected = mlp(x)
        handle = mlp.act.register_forward_pre_hook(lambda module, args: seen.append(module))
        torch.testing.assert_close(mlp(x), expected)
        handle.remove()
        assert seen == [mlp.act]
        patched = mlp.fc2.forward
        mlp.fc2.forward = lambda hidden: 3 * patched(hidden)
        torch.testing.assert_close(mlp(x), 3 * expected)
        del mlp.fc2.forward
        doubled = Doubled(6, 4)
        doubled.load_state_dict(mlp.fc2.state_dict())
        mlp.fc2 = doubled
        torch.testing.assert_close(mlp(x), 2 * expected)


def eq1(qkv: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Eq. 1 as it is written, in float64."""
    q, k, v = qkv.double().unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = attention_weights(q, k, None if bias is None else bias.double())
    return (weights @ v).transpose(1, 2).flatten(2)


# (groups, sides, heads), of which the last do not fit in one portion
CASES = [(3, (7, 7), 2), (1, (1, 5), 2), (30, (14, 14), 2), (2, (26, 28), 3)]


@pytest.mark.parametrize(("groups", "sides", "heads"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("max_scores", [1 << 20, 5000])
def test_attention_is_eq1(monkeypatch, dtype, tolerance, groups, sides, heads, has_bias, max_scores):
    monkeypatch.setattr("crossformerpp.kernels.attend._MAX_SCORES", max_scores)
    torch.manual_seed(0)
    qkv = torch.randn(groups, sides[0] * sides[1], 3 * 16 * heads).to(dtype)
    table = torch.randn(heads, 2 * sides[0] + 1, 2 * sides[1] + 3).to(dtype) if has_bias else None
    bias = None if table is None else kernels.spread(table, sides, dtype)
    expected = eq1(qkv, bias, heads)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            out = kernels.attention(qkv, table, heads, sides)
        assert out.dtype == dtype
        assert (out.double() - expected).abs().max() < tolerance


@pytest.mark.parametrize(("groups", "sides", "heads"), CASES)
@pytest.mark.parametrize("max_scores", [1 << 20, 5000])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_of_attention_are_those_of_eq1(monkeypatch, groups, sides, heads, max_scores, has_bias):
    monkeypatch.setattr("crossformerpp.kernels.attend._MAX_SCORES", max_scores)
    torch.manual_seed(0)
    qkv = torch.randn(groups, sides[0] * sides[1], 3 * 16 * heads, requires_grad=True)
    inputs = [qkv]
    table = bias = None
    if has_bias:
        table = torch.randn(heads, 2 * sides[0] + 1, 2 * sides[1] + 3, requires_grad=True)
        bias = kernels.spread(table, sides, torch.float32)
        inputs.append(table)
    weight = torch.randn(groups, sides[0] * sides[1], 16 * heads)
    ours = torch.autograd.grad((kernels.attention(qkv, table, heads, sides) * weight).sum(), inputs)
    theirs = torch.autograd.grad((eq1(qkv, bias, heads) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4 * max(1.0, b.abs().max().item()), rtol=1e-3)


@pytest.mark.parametrize(("table_sides", "sides"), [((3, 4), (3, 4)), ((5, 4), (2, 3)), ((1, 6), (1, 2))])
def test_query_rows_are_offsets_and_their_gradient_is_the_adjoint(table_sides, sides):
    heads, (gh, gw) = 2, sides
    rows, columns = (2 * side - 1 for side in table_sides)
    table = torch.randn(heads, rows, columns, dtype=torch.double)
    for first in range(gh):
        for last in range(first + 1, gh + 1):
            bias = query_rows(table, sides, first, last)
            for query in range((last - first) * gw):
                for key in range(gh * gw):
                    dy, dx = first + query // gw - key // gw, query % gw - key % gw
                    assert torch.equal(bias[:, query, key], table[:, rows // 2 + dy, columns // 2 + dx])
            grad, total = torch.randn_like(bias), torch.zeros_like(table)
            add_query_rows(total, grad, sides, slice(first * gw, last * gw))
            torch.testing.assert_close((total * table).sum(), (grad * bias).sum())


def test_attention_can_be_differentiated_twice():
    qkv = torch.randn(2, 6, 12, requires_grad=True)
    table = torch.randn(2, 3, 5, requires_grad=True)
    results = []
    for attend in (
        lambda: kernels.attention(qkv, table, 2, (2, 3)),
        lambda: eq1(qkv, kernels.spread(table, (2, 3), torch.float32), 2),
    ):
        grads = torch.autograd.grad(attend().pow(3).sum(), (qkv, table), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), (qkv, table)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3 * theirs.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "groups", "sides", "is_fused"),
    [
        (torch.float32, 3, (7, 7), True),
        (torch.bfloat16, 3, (7, 7), False),
        (torch.bfloat16, 1, (26, 28), True),  # the scores of one group exceed a portion
    ],
)
def test_which_kernel_attends_in_inference(dtype, groups, sides, is_fused):
    """On a CPU bfloat16 is multiplied in portions, all else goes to PyTorch's fused kernel."""
    qkv = torch.randn(groups, sides[0] * sides[1], 3 * 64).to(dtype)
    table = torch.randn(2, 2 * sides[0] - 1, 2 * sides[1] - 1).to(dtype)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        kernels.attention(qkv, table, 2, sides)
    names = {event.key for event in profile.key_averages()}
    assert any("flash_attention_for_cpu" in name for name in names) == is_fused


def test_no_attention_map_is_kept_for_the_backward_pass():
    qkv, table, kept = (
        torch.randn(2, 49, 96, requires_grad=True),
        torch.randn(1, 13, 13, requires_grad=True),
        [],
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        kernels.attention(qkv, table, 1, (7, 7))
    assert max(kept) <= qkv.numel()
