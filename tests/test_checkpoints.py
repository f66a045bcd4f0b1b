"""Released checkpoints: read without executing them, checked against their variant, written whole."""

import argparse
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor

import crossformerpp  # noqa: F401  (registers the models)
from crossformerpp.checkpoints import convert, from_released, read_checkpoint, recorded_lda, to_released
from released import VARIANTS, drawn_input, released_shapes, released_weights

NAME = "crossformerpp_small"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return released_weights(NAME)


@pytest.fixture
def config_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A class that pickles as `yacs.config.CfgNode` does; yacs itself is not installed."""

    class CfgNode(dict):
        def __init__(self, **items: Any) -> None:
            super().__init__(items)
            self.__dict__.update(__immutable__=True, __deprecated_keys__={"OLD"}, __renamed_keys__={})

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    config = types.ModuleType("yacs.config")
    config.CfgNode = CfgNode  # type: ignore[attr-defined]
    yacs = types.ModuleType("yacs")
    yacs.config = config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", yacs)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    return CfgNode


def forget_yacs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_released_file_is_read_without_yacs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_node: Callable, legacy: bool
) -> None:
    state = OrderedDict(a=torch.randn(3), b=torch.nn.Parameter(torch.randn(2, 2)))
    content = {
        "model": state,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3], "warmup_t": 20},
        "max_accuracy": np.float64(82.5),
        "epoch": 299,
        "config": config_node(MODEL=config_node(NAME="small", DEPTHS=[2, 2]), SIZES=(1, 2)),
        "args": argparse.Namespace(lr=0.1),
    }
    path = save(tmp_path / "released.pth", content, legacy)
    forget_yacs(monkeypatch)
    assert same(read_checkpoint(path), {"a": state["a"], "b": state["b"].detach()})
    assert "yacs" not in sys.modules


class Attack:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, call: Callable, *args: object) -> None:
        self.call = call, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """The file that an executed attack would create."""
    return tmp_path / "executed"


def attacks(victim: Path) -> dict[str, Attack]:
    write = f"open({str(victim)!r}, 'w').close()"
    return {
        "system": Attack(os.system, f"touch {victim}"),
        "exec": Attack(exec, write),
        "eval": Attack(eval, f"__import__('pathlib').Path({str(victim)!r}).touch()"),
        "mknod": Attack(os.mknod, str(victim)),
        "torch.serialization.save": Attack(torch.save, 1, str(victim)),
        "torch.hub": Attack(torch.hub.load, str(victim), "x", "local"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", attacks(Path()))
@pytest.mark.parametrize("place", ["weights", "beside", "config item", "config attribute"])
def test_code_is_refused_and_not_executed(
    tmp_path: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    config_node: Callable,
    attack: str,
    place: str,
    legacy: bool,
) -> None:
    evil = attacks(victim)[attack]
    config = config_node(A=1)
    content: dict[str, Any] = {"model": {"a": torch.ones(1)}, "config": config}
    if place == "weights":
        content["model"]["b"] = evil
    elif place == "beside":
        content["epoch"] = evil
    elif place == "config item":
        config["B"] = [evil]
    else:
        config.__dict__["hidden"] = evil
    path = save(tmp_path / "evil.pth", content, legacy)
    forget_yacs(monkeypatch)
    with pytest.raises(ValueError, match=rf"{attack}.* refused, not executed"):
        read_checkpoint(path)
    assert not victim.exists()


def test_the_attacks_would_work_on_an_unguarded_reader(tmp_path: Path, victim: Path) -> None:
    path = save(tmp_path / "evil.pth", attacks(victim)["exec"])
    torch.load(path, weights_only=False)
    assert victim.exists()


# Calls that start from names which an unpickler of weights must know, written by hand: data.pkl of a zip.
DISGUISED = {
    "method of a container": b"ccollections\nOrderedDict.fromkeys\n((ltR.",
    "module reached through torch": b"ctorch.serialization\nos.system\n(X\x04\x00\x00\x00true\x85R.",
    "name in the stub's module": b"cyacs.config\neval\n(X\x01\x00\x00\x001\x85R.",
    "call of a built object": b"ccollections\nOrderedDict\n)R(X\x01\x00\x00\x001tR.",
    "build on a class": b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsX\x01\x00\x00\x001sb.",
    "stack global of protocol 4": b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "instance of protocol 0": b"(S'true'\nios\nsystem\n.",
}


def save_by_hand(path: Path, opcodes: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes)
        archive.writestr("archive/version", "3\n")
    return path


def test_harmless_pickle_by_hand_is_read(tmp_path: Path) -> None:
    """So that the next test cannot pass for a fault in the file's frame."""
    path = save_by_hand(tmp_path / "empty.pth", b"ccollections\nOrderedDict\n)R.")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", DISGUISED)
def test_disguised_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def executed(command: str) -> None:
        raise AssertionError(f"executed {command}")

    monkeypatch.setattr(os, "system", executed)
    path = save_by_hand(tmp_path / "evil.pth", DISGUISED[name])
    with pytest.raises(ValueError, match=r"refused, not executed|no readable checkpoint"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "web page", "plain pickle"])
def test_damaged_file_is_named(tmp_path: Path, weights: dict[str, Tensor], suffix: str, damage: str) -> None:
    path = tmp_path / f"broken{suffix}"
    whole = save(tmp_path / "whole.bin", {"model": {"norm.weight": weights["norm.weight"]}}).read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "web page": b"<!DOCTYPE html><html>quota exceeded</html>",
            "plain pickle": pickle.dumps({"model": 1}),
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"broken{suffix} .*no readable checkpoint"):
        read_checkpoint(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint .*nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"model": {}}, {"model": {"a": 1}}, [torch.ones(1)], torch.ones(1)]
)
def test_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(save(tmp_path / "other.pth", content))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrappers_and_prefixes_are_removed(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {"norm.weight": torch.randn(2), "layers.0.blocks.1.norm1.bias": torch.randn(2)}
    content: Any = {prefix + key: value for key, value in state.items()}
    if wrapper is not None:
        content = {wrapper: content, "epoch": 1}
    assert same(read_checkpoint(save(tmp_path / "wrapped.pt", content)), state)


def test_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "twice.pth", {"norm.weight": torch.ones(1), "module.norm.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"holds norm\.weight twice"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_go_there_and_back(name: str) -> None:
    released = released_shapes(name)
    ours = from_released(released)
    assert len(ours) == len(released)
    assert to_released(ours) == released


@pytest.mark.parametrize(
    "key",
    [
        "layers.0.blocks.0.attn.pos.scale.weight",
        "layers.0.blocks.0.attn.qkv.lora",
        "layers.x.blocks.0.norm1.weight",
        "layers.00.blocks.0.norm1.weight",
        "stages.0.blocks.0.norm1.weight",
        "weight",
        "",
    ],
)
def test_unknown_key_is_listed(key: str) -> None:
    with pytest.raises(ValueError, match=f"1 of 2 keys .*{key}"):
        from_released({"norm.weight": 1, key: 2})


def test_many_unknown_keys_are_counted() -> None:
    with pytest.raises(ValueError, match=r"9 of 9 keys .*: a0, a1, .* and 5 more"):
        from_released({f"a{i}": i for i in range(9)})


def test_conversion_loads_strictly_and_says_what_it_is(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = save(tmp_path / "released.pth", {"model": weights, "epoch": 299})
    destination = tmp_path / "converted.safetensors"
    report = convert(source, destination, NAME)
    model = timm.create_model(NAME, checkpoint_path=str(destination))
    assert same(model.state_dict(), from_released(weights))
    assert (report.num_classes, report.num_tensors, report.dropped) == (1000, len(weights), ())
    assert report.num_params == sum(parameter.numel() for parameter in model.parameters())
    with safe_open(destination, "pt") as file:
        assert file.metadata() == {"format": "pt", "model": NAME, "source": "released.pth", "lda": report.lda}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted.safetensors", "released.pth"]


def as_detector(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The checkpoint of a detector with this backbone, with an older release's buffers."""
    backbone = {
        f"backbone.{key}": value for key, value in weights.items() if not key.startswith(("norm", "head"))
    }
    block = "backbone.layers.0.blocks.0.attn"
    buffers = {f"{block}.biases": torch.ones(49, 2), f"{block}.relative_position_index": torch.ones(16, 16)}
    return {
        "meta": {"epoch": 12},
        "state_dict": {**backbone, **buffers, "bbox_head.conv.weight": torch.ones(1)},
    }


def test_backbone_of_a_detector_gives_the_same_features(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """The documented way into timm's feature extractor takes both kinds of file."""
    image = drawn_input([1, 3, 64, 96], seed=0)
    features = []
    for kind, content in {"classifier": {"model": weights}, "detector": as_detector(weights)}.items():
        destination = tmp_path / f"{kind}.safetensors"
        report = convert(save(tmp_path / f"{kind}.pth", content), destination, NAME)
        model = timm.create_model(
            NAME, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(destination)}
        ).eval()
        with torch.inference_mode():
            features.append(model(image))
    assert report.num_classes is None
    assert [key.rpartition(".")[2] for key in report.dropped] == [
        "biases",
        "relative_position_index",
        "weight",
    ]
    for left, right in zip(*features, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(("lda", "recorded"), [(None, "regional"), ("spanning", "spanning")])
def test_the_grouping_of_the_training_is_recorded(
    tmp_path: Path, weights: dict[str, Tensor], lda: Any, recorded: str
) -> None:
    destination = tmp_path / "backbone.safetensors"
    report = convert(save(tmp_path / "released.pth", as_detector(weights)), destination, NAME, lda=lda)
    assert report.lda == recorded_lda(destination) == recorded


def test_other_head_and_channels_are_kept(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """A fine-tuned checkpoint: ten classes, grey images, half precision."""
    tuned = {key: value.half() for key, value in weights.items()}
    tuned |= {key: value[:10] for key, value in tuned.items() if key.startswith("head.")}
    tuned |= {key: value[:, :1] for key, value in tuned.items() if value.ndim == 4 and "patch_embed" in key}
    destination = tmp_path / "tuned.safetensors"
    report = convert(save(tmp_path / "tuned.pth", tuned), destination, NAME)
    assert report.num_classes == 10
    model = timm.create_model(NAME, num_classes=10, in_chans=1, checkpoint_path=str(destination))
    assert model.get_classifier().weight.shape == (10, 512)


def test_checkpoint_of_another_variant_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source, destination = save(tmp_path / "released.pth", weights), tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=rf"no crossformer_small: \d+ keys differ: .*{NAME} fits exactly"):
        convert(source, destination, "crossformer_small")
    weights = {key: value for key, value in weights.items() if ".ex_ln." not in key}
    with pytest.raises(
        ValueError, match=rf"no {NAME}: .*cooling\.norm\.weight is missing.*{NAME} is nearest"
    ):
        convert(save(source, weights), destination, NAME)
    assert not destination.exists()


def test_unfit_arguments_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = save(tmp_path / "released.pth", weights)
    with pytest.raises(ValueError, match=f"no model 'crossformerpp_smal'.*did you mean '{NAME}'"):
        convert(source, tmp_path / "out.safetensors", "crossformerpp_smal")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert(source, tmp_path / "out.pth", NAME)
    with pytest.raises(ValueError, match="there is no folder"):
        convert(source, tmp_path / "missing" / "out.safetensors", NAME)
    with pytest.raises(ValueError, match=r"swin\.pth is no released .*: 1 of 1 keys .*layers\.0\.swin"):
        convert(
            save(tmp_path / "swin.pth", {"layers.0.swin": torch.ones(1)}), tmp_path / "o.safetensors", NAME
        )


def test_existing_destination_is_kept_unless_asked(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source, destination = save(tmp_path / "released.pth", weights), tmp_path / "out.safetensors"
    destination.write_text("precious")
    with pytest.raises(ValueError, match=r"out\.safetensors exists"):
        convert(source, destination, NAME)
    assert destination.read_text() == "precious"
    convert(source, destination, NAME, overwrite=True)
    assert destination.stat().st_size > 4 * 23_000_000


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = save(tmp_path / "released.pth", weights), tmp_path / "out.safetensors"
    destination.write_text("precious")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        convert(source, destination, NAME, overwrite=True)
    assert destination.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2
