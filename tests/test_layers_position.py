"""Position biases: the table equals the MLP pair by pair, folding is exact, what is remembered is never stale."""

import copy
import threading

import pytest
import torch

from crossformerpp.layers import DynamicPositionBias, RelativePositionBias
from padded_reference import direct_bias


def _dpb(**kwargs) -> DynamicPositionBias:
    torch.manual_seed(0)
    dpb = DynamicPositionBias(8, 3, **kwargs)
    for parameter in dpb.parameters():
        torch.nn.init.normal_(parameter)
    return dpb.eval()


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5), (1, 6), (14, 2)])
@pytest.mark.parametrize("residual", [False, True])
def test_table_equals_the_mlp_on_every_pair(size, residual):
    dpb = _dpb(residual=residual)
    torch.testing.assert_close(dpb([size])[0], direct_bias(dpb, *size), atol=1e-5, rtol=1e-5)


def test_replicas_without_parameters_have_weights():
    """What `nn.DataParallel` runs: modules whose weights are plain attributes."""
    dpb = _dpb()
    assert all(a is b for a, b in zip(dpb.weights(), dpb.parameters(), strict=True))
    expected, replica = dpb([(3, 5)])[0], copy.deepcopy(dpb)
    for module in replica.modules():
        for name in list(module._parameters):
            module.__dict__[name] = module._parameters.pop(name).detach()
    assert not list(replica.parameters())
    torch.testing.assert_close(replica([(3, 5)])[0], expected)


def test_sizes_share_one_table():
    dpb = _dpb()
    together = dpb([(7, 7), (3, 7), (7, 2)])
    for bias, size in zip(together, [(7, 7), (3, 7), (7, 2)], strict=True):
        torch.testing.assert_close(bias, dpb([size])[0], atol=1e-5, rtol=1e-5)


def test_evaluated_once_per_forward_in_training():
    dpb, calls = _dpb().train(), []
    dpb.table, table = (lambda *size: calls.append(size) or table(*size)), dpb.table
    dpb([(7, 7), (3, 7), (7, 2)])
    assert calls == [(7, 7)]


def test_remembered_in_evaluation():
    dpb = _dpb()
    with torch.no_grad():
        first, second = dpb([(4, 4)])[0], dpb([(4, 4)])[0]
    assert first.data_ptr() == second.data_ptr()


def test_many_sizes_are_right_though_only_some_are_remembered():
    dpb = _dpb()
    with torch.no_grad():
        dpb([(2, 2)])
        for width in range(1, 30):
            first, last = dpb([(2, 2), (1, width)])
            torch.testing.assert_close(first, direct_bias(dpb, 2, 2), atol=1e-5, rtol=1e-5)
            assert last.shape == (3, width, width)
    assert len(dpb._memory._kept[1]) < 30


@pytest.mark.parametrize("size", [(7, 7), (4, 6)])
def test_folding_is_exact_up_to_the_size(size):
    dpb = _dpb()
    folded = dpb.fold(7, 7)
    assert isinstance(folded, RelativePositionBias)
    torch.testing.assert_close(folded([size])[0], dpb([size])[0])
    with pytest.raises(ValueError, match=r"8x7 exceeds.*7x7.*DynamicPositionBias"):
        folded([(8, 7)])


def _load(dpb):
    dpb.load_state_dict({k: v + 1 for k, v in dpb.state_dict().items()})


def _edit(dpb):
    with torch.no_grad():
        dpb.layers[2][2].weight.mul_(2)


def _edit_data(dpb):
    dpb.layers[1][0].bias.data.add_(1)


def _replace(dpb):
    dpb.embed.weight = torch.nn.Parameter(dpb.embed.weight * 3)


def _assign_data(dpb):
    dpb.embed.bias.data = dpb.embed.bias.data * 2


def _train_step(dpb):
    optimizer = torch.optim.SGD(dpb.parameters(), lr=0.1)
    dpb.train()
    dpb([(4, 4)])[0].square().sum().backward()
    optimizer.step()
    dpb.eval()


@pytest.mark.parametrize("change", [_load, _edit, _edit_data, _replace, _assign_data, _train_step])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_of_weights_is_seen(change, mode):
    dpb = _dpb()
    with mode():
        before = dpb([(4, 4)])[0].clone()
    change(dpb)
    with mode():
        after = dpb([(4, 4)])[0]
    torch.testing.assert_close(after, direct_bias(dpb, 4, 4), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, after)


def test_dtype_and_requested_precision_are_respected():
    dpb = _dpb()
    with torch.no_grad():
        full = dpb([(4, 4)])[0]
        assert dpb([(4, 4)], torch.bfloat16)[0].dtype == torch.bfloat16
        assert dpb([(4, 4)])[0].dtype == torch.float32
        half = dpb.half()([(4, 4)])[0]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, atol=2e-2, rtol=2e-2)


def test_copies_do_not_share_what_is_remembered():
    dpb = _dpb()
    with torch.no_grad():
        before = dpb([(4, 4)])[0]
        other = copy.deepcopy(dpb)
        _edit(other)
        torch.testing.assert_close(other([(4, 4)])[0], direct_bias(other, 4, 4), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dpb([(4, 4)])[0], before)


def test_training_after_inference_mode():
    dpb = _dpb()
    with torch.inference_mode():
        dpb([(4, 4)])
    with torch.no_grad():
        bias = dpb([(4, 4)])[0]
    assert not bias.is_inference()
    query = torch.randn(3, 16, 16, requires_grad=True)
    (query * bias).sum().backward()  # an inference tensor would be refused here
    dpb.train()([(4, 4)])[0].sum().backward()
    assert dpb.embed.weight.grad is not None


def test_module_made_in_inference_mode():
    with torch.inference_mode():
        dpb = DynamicPositionBias(8, 3).eval()
        torch.testing.assert_close(dpb([(3, 3)])[0], direct_bias(dpb, 3, 3), atol=1e-5, rtol=1e-5)
        dpb.embed.weight.mul_(2)
        torch.testing.assert_close(dpb([(3, 3)])[0], direct_bias(dpb, 3, 3), atol=1e-5, rtol=1e-5)


def test_gradients_in_evaluation_mode():
    dpb = _dpb()
    with torch.no_grad():
        dpb([(4, 4)])
    dpb([(4, 4)])[0].square().sum().backward()
    assert all(p.grad is not None for p in dpb.parameters())


def test_threads_agree():
    dpb, sizes, wrong = _dpb(), [(h, w) for h in range(2, 8) for w in range(2, 8)], []
    expected = {size: direct_bias(dpb, *size).detach() for size in sizes}

    def work(offset: int) -> None:
        with torch.inference_mode():
            for i in range(len(sizes)):
                size = sizes[(i + offset) % len(sizes)]
                if not torch.allclose(dpb([size])[0], expected[size], atol=1e-5):
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
        before = dpb([(3, 3)])[0].clone()
        after = torch.func.functional_call(dpb, changed, ([(3, 3)],))[0]
        assert not torch.allclose(before, after)
        torch.testing.assert_close(dpb([(3, 3)])[0], before)
        stacked = {name: torch.stack([p, p * 2]) for name, p in dpb.named_parameters()}
        both = torch.vmap(lambda p: torch.func.functional_call(dpb, p, ([(3, 3)],))[0])(stacked)
        torch.testing.assert_close(both, torch.stack([before, after]), atol=1e-5, rtol=1e-5)
        assert dpb.to("meta")([(3, 3)])[0].shape == (3, 9, 9)


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_relative_position_bias_depends_on_the_offset_alone(size):
    rpb = RelativePositionBias((7, 7), 2)
    (bias,), (height, width) = rpb([size]), size
    for i in range(height * width):
        for j in range(height * width):
            dy, dx = i // width - j // width, i % width - j % width
            assert torch.equal(bias[:, i, j], rpb.table[:, 6 + dy, 6 + dx])
