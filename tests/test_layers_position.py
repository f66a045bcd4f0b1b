"""Position biases: the table equals the MLP pair by pair, folding is exact, what is remembered is never stale."""

import copy
import threading

import pytest
import torch
from torch import Tensor

from crossformerpp import kernels
from crossformerpp.ablations.position import RelativePositionBias, fold
from crossformerpp.layers import DynamicPositionBias
from crossformerpp.models import CrossFormer
from padded_reference import direct_bias


def _dpb(**kwargs) -> DynamicPositionBias:
    torch.manual_seed(0)
    dpb = DynamicPositionBias(8, 3, **kwargs)
    for parameter in dpb.parameters():
        torch.nn.init.normal_(parameter)
    return dpb.eval()


def bias_of(module: torch.nn.Module, height: int, width: int) -> Tensor:
    """What attention adds in a group, (h, N, N)."""
    table = module(height, width)
    return kernels.spread(table, (height, width), table.dtype)


def assert_is_direct(bias: Tensor, dpb: DynamicPositionBias, *sides: int) -> None:
    torch.testing.assert_close(bias, direct_bias(dpb, *sides), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5), (1, 6), (14, 2)])
@pytest.mark.parametrize("residual", [False, True])
def test_table_equals_the_mlp_on_every_pair(size, residual):
    dpb = _dpb(residual=residual)
    assert_is_direct(bias_of(dpb, *size), dpb, *size)


def test_a_larger_table_serves_smaller_groups():
    dpb = _dpb()
    table = dpb(7, 9)
    assert table.shape == (3, 13, 17)
    for size in [(7, 9), (3, 7), (7, 2), (1, 1)]:
        assert_is_direct(kernels.spread(table, size, torch.float32), dpb, *size)


def test_replicas_without_parameters_have_weights():
    """What `nn.DataParallel` runs: modules whose weights are plain attributes."""
    dpb = _dpb()
    expected, replica = dpb(3, 5), copy.deepcopy(dpb)
    for module in replica.modules():
        for name in list(module._parameters):
            module.__dict__[name] = module._parameters.pop(name).detach()
    assert not list(replica.parameters())
    with torch.no_grad():
        torch.testing.assert_close(replica(3, 5), expected)


def test_remembered_in_evaluation_and_not_in_training():
    dpb, calls = _dpb(), []
    compute, dpb._table = dpb._table, lambda *sides: calls.append(sides) or compute(*sides)
    with torch.no_grad():
        first, second = dpb(4, 4), dpb(4, 4)
        assert first is second
        assert kernels.spread(first, (4, 4), torch.float32) is kernels.spread(first, (4, 4), torch.float32)
        dpb.train()(4, 4)
        dpb(4, 4)
    assert calls == [(4, 4)] * 3


def test_many_sizes_are_right_though_only_some_are_remembered():
    dpb = _dpb()
    with torch.no_grad():
        for width in range(1, 30):
            assert_is_direct(bias_of(dpb, 2, 2), dpb, 2, 2)
            assert bias_of(dpb, 1, width).shape == (3, width, width)
        first = dpb(1, 1)
        assert dpb(1, 29) is dpb(1, 29)
        assert dpb(1, 1) is first


@pytest.mark.parametrize("size", [(7, 7), (4, 6)])
def test_folding_is_exact_up_to_the_size(size):
    dpb = _dpb()
    folded = fold(dpb, 7, 7)
    assert isinstance(folded, RelativePositionBias)
    torch.testing.assert_close(bias_of(folded, *size), bias_of(dpb, *size))
    with pytest.raises(ValueError, match=r"8x7 exceeds.*7x7.*DynamicPositionBias"):
        folded(8, 7)


def test_hooks_and_adapters_see_every_call():
    """Also where a result is remembered: a layer within that is listened to is called each time."""
    dpb, seen = _dpb(), []
    with torch.no_grad():
        before = dpb(4, 4)
        handle = dpb.layers[2][2].register_forward_hook(
            lambda module, args, out: seen.append(out.shape) or out + 1
        )
        for _ in range(2):
            assert not torch.allclose(dpb(4, 4), before)
        assert seen == [(7, 7, 3)] * 2
        handle.remove()
        torch.testing.assert_close(dpb(4, 4), before)

        class Doubled(torch.nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        doubled = Doubled(8, 3)
        doubled.load_state_dict(dpb.layers[2][2].state_dict())
        dpb.layers[2][2] = doubled
        torch.testing.assert_close(dpb(4, 4), 2 * before)


def _load(dpb):
    dpb.load_state_dict({k: v + 1 for k, v in dpb.state_dict().items()})


def _edit(dpb):
    with torch.no_grad():
        dpb.layers[2][2].weight.mul_(2)


def _edit_data_and_forget(dpb):
    dpb.layers[1][0].bias.data.add_(1)  # which moves no version counter
    kernels.forget(dpb)


def _edit_data_and_change_mode(dpb):
    dpb.layers[1][0].bias.data.add_(1)
    dpb.train().eval()


def _replace(dpb):
    dpb.embed.weight = torch.nn.Parameter(dpb.embed.weight * 3)


def _assign_data(dpb):
    dpb.embed.bias.data = dpb.embed.bias.data * 2


def _round(dpb):
    dpb.half().float()


def _train_step(dpb):
    optimizer = torch.optim.SGD(dpb.parameters(), lr=0.1)
    dpb.train()
    dpb(4, 4).square().sum().backward()
    optimizer.step()
    dpb.eval()


CHANGES = [
    _load,
    _edit,
    _edit_data_and_forget,
    _edit_data_and_change_mode,
    _replace,
    _assign_data,
    _round,
    _train_step,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_of_weights_is_seen(change, mode):
    dpb = _dpb()
    with mode():
        before = bias_of(dpb, 4, 4).clone()
    change(dpb)
    with mode():
        after = bias_of(dpb, 4, 4)
    assert_is_direct(after, dpb, 4, 4)
    assert not torch.equal(before, after)


def test_a_change_of_a_learnt_table_is_seen():
    rpb = RelativePositionBias((4, 4), 3).eval()
    with torch.no_grad():
        before = bias_of(rpb, 4, 4).clone()
        rpb.table.add_(1)
        torch.testing.assert_close(bias_of(rpb, 4, 4), before + 1)


def test_precision_is_the_weights():
    dpb = _dpb()
    with torch.no_grad():
        full = dpb(4, 4)
        half = dpb.half()(4, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(dpb.float()(4, 4), full, atol=2e-2, rtol=2e-2)
            assert dpb(4, 4).dtype == torch.float32
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, atol=2e-2, rtol=2e-2)


def test_copies_do_not_share_what_is_remembered():
    dpb = _dpb()
    with torch.no_grad():
        before = dpb(4, 4)
        other = copy.deepcopy(dpb)
        _edit(other)
        assert_is_direct(bias_of(other, 4, 4), other, 4, 4)
        torch.testing.assert_close(dpb(4, 4), before)


def test_training_after_inference_mode():
    dpb = _dpb()
    with torch.inference_mode():
        dpb(4, 4)
    with torch.no_grad():
        bias = bias_of(dpb, 4, 4)
    assert not bias.is_inference()
    query = torch.randn(3, 16, 16, requires_grad=True)
    (query * bias).sum().backward()  # an inference tensor would be refused here
    dpb.train()(4, 4).sum().backward()
    assert dpb.embed.weight.grad is not None


def test_module_made_in_inference_mode():
    with torch.inference_mode():
        dpb = DynamicPositionBias(8, 3).eval()
        assert_is_direct(bias_of(dpb, 3, 3), dpb, 3, 3)
        dpb.embed.weight.mul_(2)
        assert_is_direct(bias_of(dpb, 3, 3), dpb, 3, 3)


def test_gradients_in_evaluation_mode():
    dpb = _dpb()
    with torch.no_grad():
        dpb(4, 4)
    dpb(4, 4).square().sum().backward()
    assert all(p.grad is not None for p in dpb.parameters())


def test_threads_agree():
    dpb, sizes, wrong = _dpb(), [(h, w) for h in range(2, 8) for w in range(2, 8)], []
    expected = {size: direct_bias(dpb, *size).detach() for size in sizes}

    def work(offset: int) -> None:
        with torch.inference_mode():
            for i in range(len(sizes)):
                size = sizes[(i + offset) % len(sizes)]
                if not torch.allclose(bias_of(dpb, *size), expected[size], atol=1e-5):
                    wrong.append(size)

    threads = [threading.Thread(target=work, args=(i * 7,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_function_transforms_and_meta():
    dpb = _dpb()
    changed = {name: p * 2 for name, p in dpb.named_parameters()}
    with torch.no_grad():
        before = dpb(3, 3).clone()
        after = torch.func.functional_call(dpb, changed, (3, 3))
        assert not torch.allclose(before, after)
        torch.testing.assert_close(dpb(3, 3), before)
        stacked = {name: torch.stack([p, p * 2]) for name, p in dpb.named_parameters()}
        both = torch.vmap(lambda p: torch.func.functional_call(dpb, p, (3, 3)))(stacked)
        torch.testing.assert_close(both, torch.stack([before, after]), atol=1e-5, rtol=1e-5)
        assert dpb.to("meta")(3, 3).shape == (3, 5, 5)


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_relative_position_bias_depends_on_the_offset_alone(size):
    rpb = RelativePositionBias((7, 7), 2)
    bias, (height, width) = bias_of(rpb, *size), size
    for i in range(height * width):
        for j in range(height * width):
            dy, dx = i // width - j // width, i % width - j % width
            assert torch.equal(bias[:, i, j], rpb.table[:, 6 + dy, 6 + dx])


def test_a_bias_of_no_width_is_refused():
    with pytest.raises(ValueError, match="embed_dim must be at least 16"):
        CrossFormer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
