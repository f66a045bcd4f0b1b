"""Exactness: with the same weights, the models answer what the released implementation answers."""

import pytest
import timm
import torch
from torch import Tensor

import crossformerpp  # noqa: F401  (registers the models)
from crossformerpp.checkpoints import from_released, to_released
from released import (
    VARIANTS,
    drawn_input,
    released_outputs,
    released_shapes,
    released_weights,
    spanning_outputs,
)

TOLERANCE = 2e-6  # of the largest magnitude
OUTPUTS = released_outputs()


def dense_cases() -> list:
    """(model, options, case) of both released codes: regional LDA (2023) and spanning LDA (2021)."""
    renamed = {"group_size": "group_sizes", "crs_interval": "intervals"}
    cases = []
    for name, answers in OUTPUTS.items():
        for case in answers.get("dense", []):
            options = {renamed[key]: value for key, value in case["override"].items()}
            cases.append((name, {**options, "lda": "regional"}, case))
    for name, answers in spanning_outputs().items():
        for case in answers:
            groups = {key: case[key] for key in ("group_sizes", "intervals")}
            cases.append((name, {**groups, "lda": "spanning"}, case))
    return [
        pytest.param(*case, id=f"{case[0]}-{case[1]['lda']}-{'x'.join(map(str, case[2]['input'][2:]))}")
        for case in cases
    ]


def check(actual: Tensor, expected: dict) -> None:
    """Compare a tensor with the recorded shape, statistics and samples."""
    assert list(actual.shape) == expected["shape"]
    atol = TOLERANCE * expected["absmax"]
    indices, values = zip(*expected["samples"], strict=True)
    samples = actual.flatten()[torch.tensor(indices)]
    torch.testing.assert_close(samples, torch.tensor(values), rtol=0, atol=atol)
    statistics = torch.stack([actual.mean(), actual.std(), actual.abs().max()])
    recorded = torch.tensor([expected["mean"], expected["std"], expected["absmax"]])
    torch.testing.assert_close(statistics, recorded, rtol=0, atol=atol)


@pytest.mark.parametrize("name", VARIANTS)
def test_released_keys_and_shapes_are_ours(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert from_released(released_shapes(name)) == ours
    assert to_released(ours) == released_shapes(name)


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_agree_with_the_released_implementation(name: str) -> None:
    expected = OUTPUTS[name]["classification"]
    model = timm.create_model(name).eval()
    model.load_state_dict(from_released(released_weights(name)), strict=True)
    with torch.inference_mode():
        logits = model(drawn_input([2, 3, 224, 224], seed=0))
    check(logits, expected["logits"])
    first = torch.tensor(expected["logits_first8"])
    torch.testing.assert_close(logits[:, :8], first, rtol=0, atol=TOLERANCE * expected["logits"]["absmax"])


@pytest.mark.parametrize(("name", "options", "case"), dense_cases())
def test_dense_features_agree_with_the_released_implementation(name: str, options: dict, case: dict) -> None:
    """Maps that groups do not divide, and the larger groups of the detection configurations."""
    weights = from_released(released_weights(name))
    model = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": weights}, **options
    ).eval()
    x = drawn_input(case["input"], seed=1)
    with torch.inference_mode():
        features = model(x)
    assert len(features) == len(case["stages"])
    for feature, expected in zip(features, case["stages"], strict=True):
        check(feature, expected)


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_small"])
def test_the_default_grouping_is_the_one_that_the_weights_were_trained_with(name: str) -> None:
    """Dense CrossFormer: spanning, the code of 2021; CrossFormer++: regional, the code of 2023."""
    model = timm.create_model(name)
    ldas = {block.attn.rule.lda for stage in model.stages for block in stage.blocks}
    assert ldas == {"regional" if "pp" in name else "spanning"}
