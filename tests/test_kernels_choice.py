"""Kernels are chosen by measurement, once per machine and class of shapes."""

import json
import threading
import time

import pytest
import torch
import torch.nn.functional as F

from crossformerpp import kernels
from crossformerpp.kernels import choice
from crossformerpp.layers import Linear, Mlp


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Choices by measurement, kept in a folder of their own; returns the file."""
    monkeypatch.setenv("CROSSFORMERPP_KERNELS", "measured")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choice.forget_choices()
    (tmp_path / "crossformerpp").mkdir()
    yield tmp_path / "crossformerpp" / "kernels.json"
    monkeypatch.undo()
    choice.forget_choices()


def candidates(default, other, calls):
    """Two kernels that take as long as asked, in seconds, and note that they were called."""

    def kernel(name, seconds):
        def call():
            calls.append(name)
            time.sleep(seconds)

        return call

    return lambda: {"default": kernel("default", default), "other": kernel("other", other)}


@pytest.mark.parametrize(("default", "other", "expected"), [(0.02, 0.0, "other"), (0.0, 0.02, "default")])
def test_the_quickest_is_taken_and_measured_once(measured, default, other, expected):
    calls = []
    some = candidates(default, other, calls)
    assert choice.choose(("linear", 16, 8), "other", some) == expected
    number = len(calls)
    assert number > 2
    assert choice.choose(("linear", 16, 8), "other", some) == expected
    choice.forget_choices()  # as in another process
    assert choice.choose(("linear", 16, 8), "other", some) == expected
    assert len(calls) == number
    (of_machine,) = json.loads(measured.read_text()).values()
    assert of_machine == {"linear 16 8": expected}
    choice.choose(("linear", 32, 8), "other", some)
    assert len(calls) > number


def test_a_candidate_may_have_choices_of_its_own(measured):
    """As an MLP has, which multiplies; in a thread, so that waiting for itself would end the test, not hang it."""
    found = []

    def inner():
        found.append(choice.choose(("product", 8), "other", candidates(0.0, 0.02, [])))

    def outer():
        choice.choose(("mlp", 8), "other", lambda: {"default": inner, "other": inner})

    thread = threading.Thread(target=outer, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert set(found) == {"default"}


def test_without_a_file_to_keep_it_in_the_choice_is_the_fixed_one(measured):
    measured.parent.rmdir()
    measured.parent.write_text("a file where the folder should be")
    assert choice.choose(("linear", 16, 8), "other", candidates(0.0, 0.02, [])) == "other"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"machine": 3}'])
def test_a_damaged_file_is_measured_anew_and_replaced(measured, damage):
    measured.write_text(damage)
    assert choice.choose(("linear", 16, 8), "default", candidates(0.02, 0.0, [])) == "other"
    assert [list(kept) for kept in json.loads(measured.read_text()).values()] == [["linear 16 8"]]


def test_an_unknown_choice_is_replaced_and_that_of_another_process_taken(measured):
    machine = f"{choice._machine()}, {torch.get_num_threads()} threads"
    measured.write_text(
        json.dumps({machine: {"linear 16 8": "a kernel of the past", "linear 32 8": "other"}})
    )
    assert choice.choose(("linear", 16, 8), "default", candidates(0.02, 0.0, [])) == "other"
    assert choice.choose(("linear", 32, 8), "default", candidates(0.0, 0.02, [])) == "other"
    assert json.loads(measured.read_text()) == {machine: {"linear 16 8": "other", "linear 32 8": "other"}}
    assert choice._keep(machine, "linear 16 8", "default", {"default", "other"}) == "other"


@pytest.mark.parametrize(("mode", "expected"), [("fixed", "other"), ("default", "default")])
def test_measuring_can_be_switched_off(measured, monkeypatch, mode, expected):
    monkeypatch.setenv("CROSSFORMERPP_KERNELS", mode)
    calls = []
    assert choice.choose(("linear", 16, 8), "other", candidates(0.0, 0.02, calls)) == expected
    assert not calls
    assert not measured.exists()


def test_an_unknown_mode_is_refused(measured, monkeypatch):
    monkeypatch.setenv("CROSSFORMERPP_KERNELS", "quick")
    with pytest.raises(ValueError, match="'quick': choose measured, fixed, default"):
        choice.choose(("linear", 16, 8), "other", candidates(0.0, 0.0, []))


def test_layers_ask_on_a_machine_that_is_not_known_yet(measured):
    torch.manual_seed(0)
    mlp, x = Mlp(16, 32), torch.randn(2, 9, 16)
    with torch.inference_mode():
        expected = F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(mlp(x), expected)
    mlp(x.requires_grad_()).sum().backward()
    (kept,) = json.loads(measured.read_text()).values()
    kinds = {name.partition(" 32 ")[0].rstrip(" 0123456789") for name in kept}
    assert {"linear and gelu", "linear", "weight gradient"} <= kinds
    assert set(kept.values()) <= {"default", "oneDNN"}


@pytest.mark.parametrize("taken", ["default", "oneDNN", "products"])
def test_results_do_not_depend_on_the_choice(measured, monkeypatch, taken):
    torch.manual_seed(0)
    asked = []

    def choose(shapes, fixed, candidates):
        asked.append(shapes[0])
        for call in candidates().values():
            call()
        return taken

    x, qkv, table = torch.randn(2, 9, 16), torch.randn(3, 4, 48), torch.randn(2, 3, 3)
    linear, mlp = Linear(16, 24), Mlp(16, 32)
    expected = F.linear(x, linear.weight, linear.bias)
    expected_mlp = mlp.fc2(F.gelu(mlp.fc1(x)))
    with torch.inference_mode():
        expected_attention = kernels.attention(qkv, table, 2, (2, 2))
    for module in ("products", "attend"):
        monkeypatch.setattr(f"crossformerpp.kernels.{module}.choose", choose)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), expected)
        torch.testing.assert_close(mlp(x), expected_mlp)
        torch.testing.assert_close(kernels.attention(qkv, table, 2, (2, 2)), expected_attention)
    assert {"linear", "linear and gelu", "attention"} <= set(asked)
    (gradient,) = torch.autograd.grad(linear(x).pow(2).sum(), linear.weight)
    torch.testing.assert_close(gradient, 2 * expected.flatten(0, 1).T @ x.flatten(0, 1))
    assert asked[-1] == "weight gradient"
    assert linear.weight.grad is None  # of timing
