"""Amplitudes of blocks: what is found in which model, against outputs taken by hand."""

import itertools
import math

import pytest
import timm
import torch
from torch import nn

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.amplitude import block_amplitudes, find_blocks

TINY = {"embed_dim": 16, "depths": (1, 2, 3, 1), "num_heads": (1, 1, 2, 2), "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "blocks_per_stage"),
    [
        ("crossformerpp_small", [2, 2, 18, 2]),
        ("swin_tiny_patch4_window7_224", [2, 2, 6, 2]),
        ("twins_svt_small", [2, 2, 10, 4]),
        ("convnext_atto", [2, 2, 6, 2]),
        ("resnet18", [2, 2, 2, 2]),
    ],
)
def test_blocks_of_hierarchical_models(name, blocks_per_stage):
    with torch.device("meta"):
        blocks = find_blocks(timm.create_model(name))
    stages = [block.stage for block in blocks]
    assert [stages.count(stage) for stage in sorted(set(stages))] == blocks_per_stage
    assert all(
        block.number == 1 or block.number == before.number + 1 for before, block in itertools.pairwise(blocks)
    )


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match="Linear has no stages of blocks"):
        find_blocks(nn.Linear(2, 2))


def test_amplitudes_are_those_of_the_outputs_over_all_batches():
    torch.manual_seed(0)
    model = timm.create_model("crossformerpp_small", cooling=2, **TINY).eval()
    images = torch.randn(3, 3, 64, 96)
    found = block_amplitudes(model, images.split([2, 1]))
    outputs = {}
    for stage in range(4):
        for number, block in enumerate(model.stages[stage].blocks):
            (block.cooling or block).register_forward_hook(
                lambda _, __, out, key=(stage + 1, number + 1): outputs.update({key: out})
            )
    with torch.no_grad():
        model(images)
    assert [(a.stage, a.block) for a in found] == list(outputs)
    for amplitude in found:
        expected = outputs[amplitude.stage, amplitude.block].abs()
        assert amplitude.maximum == pytest.approx(expected.max().item(), rel=1e-5)
        assert amplitude.mean == pytest.approx(expected.mean().item(), rel=1e-5)


def test_amplitude_is_taken_after_cooling():
    """Of a block with an ACL it is the ACL's output; of cooling by a hook, what the hook returns."""
    torch.manual_seed(0)
    model = timm.create_model("crossformerpp_small", cooling=2, **TINY).eval()
    images = torch.randn(1, 3, 64, 64)
    cooling = model.stages[2].blocks[1].cooling
    nn.init.constant_(cooling.norm.weight, 0.0)
    nn.init.constant_(cooling.norm.bias, 0.25)
    found = {(a.stage, a.block): a for a in block_amplitudes(model, [images])}
    assert (found[3, 2].maximum, found[3, 2].mean) == (0.25, 0.25)
    before = block_amplitudes(model, [images])[-1]
    model.stages[3].blocks[0].register_forward_hook(lambda module, inputs, output: output / 100)
    assert block_amplitudes(model, [images])[-1].mean == pytest.approx(before.mean / 100, rel=1e-5)


def test_no_hook_stays_behind_even_after_an_error():
    model = timm.create_model("crossformerpp_small", **TINY).eval()
    with pytest.raises(ValueError, match="at least 32"):
        block_amplitudes(model, [torch.randn(1, 3, 8, 8)])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_block_that_gives_nan_says_so():
    model = timm.create_model(
        "crossformer_tiny", embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]
    ).eval()
    with torch.no_grad():
        model.stages[1].blocks[0].norm2.bias.fill_(torch.nan)
    found = [one.maximum for one in block_amplitudes(model, [torch.randn(1, 3, 64, 64)])]
    assert [math.isnan(value) for value in found] == [False, True, True, True]
