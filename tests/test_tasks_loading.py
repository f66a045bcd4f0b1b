"""The load report: every tensor of model and file has one fate, told in one table."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.loading import load_weights, start

TINY = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
FILE = Path("file.safetensors")


def tiny(**options: object) -> nn.Module:
    return timm.create_model("crossformerpp_small", **{**TINY, "num_classes": 5, **options}).eval()


def test_whole_load_says_so() -> None:
    model = tiny()
    report = load_weights(tiny(), model.state_dict(), FILE)
    assert report.keys("loaded") == list(model.state_dict())
    assert [row[:2] for row in report.rows()] == [("loaded", str(len(model.state_dict())))]
    assert report.to_json()["loaded"] == len(model.state_dict())


def test_partial_and_resized_load_names_every_tensor_once() -> None:
    source, model = tiny(), tiny(num_classes=3, in_chans=1)
    head = model.head.fc.weight.detach().clone()
    weights = {**source.state_dict(), "head.old": torch.ones(2)}
    del weights["head.fc.bias"]
    report = load_weights(model, weights, FILE, may_differ=("head.",), skipped=["neck.weight"])
    assert report.keys("fresh") == ["head.fc.weight", "head.fc.bias"]
    assert report.keys("skipped") == ["head.old", "neck.weight"]
    assert report.keys("resized") == [f"stages.0.embedding.projections.{i}.weight" for i in range(4)]
    every = [tensor.key for tensor in report.tensors]
    assert sorted(every) == sorted({*model.state_dict(), "head.old", "neck.weight"})
    assert torch.equal(model.head.fc.weight, head)
    grey = torch.randn(1, 1, 40, 48)
    with torch.no_grad():
        expected = source.forward_features(grey.expand(1, 3, 40, 48))
        torch.testing.assert_close(model.forward_features(grey), expected, atol=1e-5, rtol=1e-4)
    text = str(report)
    assert "head.fc.weight (5, 128) -> (3, 128)" in text
    assert "stages.0.embedding.projections.0.weight (8, 3, 4, 4) -> (8, 1, 4, 4)" in text


@pytest.mark.parametrize("channels", [3, 2])
def test_unfit_weights_change_nothing(channels: int) -> None:
    """Neither is a wider model resized, nor are input channels other than colours fitted."""
    other = tiny(in_chans=channels, embed_dim=32 if channels == 3 else 16)
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"weights of another model, \d+ keys differ: stages\.0\.embedding"):
        load_weights(model, other.state_dict(), FILE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_group_sizes_are_noted(tmp_path: Path) -> None:
    options = {"intervals": [8, 4, 2, 1], "group_sizes": [4, 4, 14, 7]}
    section = ModelSection(name="crossformerpp_small", options=options)
    model = tiny()
    file = tmp_path / "converted.safetensors"
    save_file(model.state_dict(), file, {"model": "crossformerpp_small"})
    named = section.model_copy(update={"checkpoint": file})
    report = start(named, lambda path: load_weights(model, model.state_dict(), path))
    assert report is not None
    assert report.notes == (
        "intervals [8, 4, 2, 1] here, trained with [4, 2, 1, 1]: the weights fit either, the outputs differ",
    )
    assert start(section, lambda path: pytest.fail("nothing to load")) is None


@pytest.mark.parametrize("lda", ["spanning", "regional"])
def test_the_grouping_that_a_dense_file_was_trained_with_is_told(tmp_path: Path, lda: str) -> None:
    model = tiny(num_classes=0)
    file = tmp_path / "backbone.safetensors"
    save_file(model.state_dict(), file, {"model": "crossformerpp_small", "lda": lda})
    section = ModelSection(name="crossformerpp_small", checkpoint=file)  # its own default is regional
    report = start(section, lambda path: load_weights(model, model.state_dict(), path))
    assert report is not None
    note = "lda regional here, trained with spanning: the weights fit either, the outputs differ"
    assert report.notes == ((note,) if lda == "spanning" else ())
    assert (note in str(report)) == (lda == "spanning")
