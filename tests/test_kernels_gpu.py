"""The attention kernel for GPUs: in Triton's interpreter everywhere, on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from benchmarks.literal import LiteralCrossFormer

from crossformerpp import VARIANTS, kernels
from crossformerpp.layers.grouping import GroupRule

HERE = Path(__file__).parent
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}  # rounding alone, with products summed in float32


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_kernel_and_its_gradients_equal_plain_attention_in_the_interpreter():
    pytest.importorskip("triton")
    done = run(str(HERE / "gpu_kernel_on_cpu.py"))
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 7
    off = {
        case: error
        for case, error in errors.items()
        if error > TOLERANCE[case.split("torch.")[1].split(",")[0]]
    }
    assert not off


def test_kernel_is_for_gpus_and_small_groups_of_divided_maps():
    x = torch.empty(1, 8, 8, 64, device="meta")
    assert not kernels.takes_maps(x, 2, 4, 4)
    assert not kernels.takes_maps(torch.empty(1, 8, 8, 64), 2, 4, 4)


@pytest.mark.parametrize("shape", [(8, 8), (9, 11)])
def test_cells_are_the_largest_group_and_its_interval(shape):
    for rule in (GroupRule("short", 4), GroupRule("long", 4, 2), GroupRule("long", 4, 2, "spanning")):
        gh, gw, interval = rule.cells(*shape)
        grouping = rule.on(*shape)
        assert ((gh, gw), interval) == (grouping.region, grouping.interval)
    assert GroupRule("short", 9).cells(*shape) == (*shape, 1)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_in_small(tmp_path):
    done = run(
        *("-m", "benchmarks.gpu", "--device", "cpu", "--small", "--out", str(tmp_path), "--only"),
        *("parity: crossformer_tiny", "attention", "dense inference"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    parity = results["parity: crossformer_tiny"]
    assert {(row["lda"], row["dtype"], row["what"]) for row in parity if row["ok"]} == {
        (lda, dtype, what)
        for lda in ("regional", "spanning")
        for dtype in ("float32", "bfloat16")
        for what in ("inference", "logits", "gradients")
    }
    assert all(row["plain, ms"] > 0 for row in results["attention"])
    assert [row["model"] for row in results["dense inference"]] == ["crossformerpp_small", "literal"] * 2
    assert "| crossformerpp_small |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lda", ["regional", "spanning"])
@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
def test_models_equal_the_literal_implementation_on_a_gpu(name, lda):
    torch.manual_seed(0)
    product = timm.create_model(name, lda=lda).cuda()
    literal = LiteralCrossFormer(**{**VARIANTS[name], "lda": lda}).cuda()
    literal.load_state_dict(product.state_dict())
    x = torch.randn(2, 3, 160, 224, device="cuda")
    torch.testing.assert_close(product(x), literal(x), rtol=1e-4, atol=1e-4)
    product(x).square().sum().backward()
    literal(x).square().sum().backward()
    theirs = dict(literal.named_parameters())
    for key, parameter in product.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-3, atol=1e-3)
