"""The authors' released checkpoints as weights of this package's models, and back.

A released file is a `torch.save` dictionary with the weights under `model` and training leftovers beside
them, among these a yacs `CfgNode`. Reading one neither executes pickled code nor needs yacs. `convert` checks
the weights against the variant they are said to belong to and writes safetensors, which cannot hold code:

    report = convert("crossformer-s.pth", "crossformer_small.safetensors", "crossformer_small")
    timm.create_model("crossformer_small", checkpoint_path="crossformer_small.safetensors")
    timm.create_model("crossformer_small", features_only=True, checkpoint_path="crossformer_small.safetensors")

The second takes the file of a backbone only, too (from a detector or a segmenter). `checkpoints.download` finds the
weights by a model's name.
"""

import difflib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from torch import Tensor

from crossformerpp.checkpoints.names import from_released, rename, some, to_released
from crossformerpp.data.tensors import refuse_compressed, refuse_unsound
from crossformerpp.data.writing import replacing
from crossformerpp.layers.grouping import Lda
from crossformerpp.models import VARIANTS

__all__ = [
    "ConversionReport",
    "check_destination",
    "convert",
    "find_variant",
    "find_weights",
    "from_released",
    "is_old_buffer",
    "read_checkpoint",
    "read_file",
    "recorded",
    "recorded_lda",
    "rename",
    "some",
    "to_released",
    "write_weights",
]

# Where a training script keeps the weights beside other things; averaged weights first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")

# Tables that older releases stored with the weights; they follow from the group size and are not needed.
_OLD_BUFFERS = ("biases", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` wrote.

    Attributes:
        model: timm name of the variant that the weights belong to.
        source: the file that was read.
        destination: the safetensors file that was written.
        num_tensors: tensors written.
        num_params: numbers in them.
        num_classes: classes of the classification head; None where the file holds a backbone only.
        dropped: keys of the source that were left out: parts of a detector or segmenter other than its
            backbone, and tables that are computed from the weights.
        lda: the long-distance grouping that the weights were trained with, as the file records it.
    """

    model: str
    source: Path
    destination: Path
    num_tensors: int
    num_params: int
    num_classes: int | None
    dropped: tuple[str, ...]
    lda: Lda


def convert(
    source: str | Path,
    destination: str | Path,
    model_name: str,
    *,
    lda: Lda | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the weights of a released checkpoint as safetensors under this package's names.

    Every key and shape is compared with the variant first (on the meta device, so without its memory); the
    head may have any number of classes and the first convolutions any number of channels. The file appears
    whole or not at all.

    Args:
        source: a checkpoint of the authors' classification, detection or segmentation code, `.pth` (or `.pt`,
            `.bin`, `.safetensors` with the same keys).
        destination: the file to write; its folder must exist.
        model_name: timm name of the variant, such as `crossformerpp_small`.
        lda: the long-distance grouping that the weights were trained with (see `CrossFormer`), recorded in the file;
            default: the variant's, "spanning" of CrossFormer and "regional" of CrossFormer++. It changes no weight,
            and at 224 pixels no CrossFormer's output; on dense maps it does.
        overwrite: replace an existing destination.

    Raises:
        ValueError: the model is unknown, the source cannot be read, holds code or belongs to another variant,
            or the destination exists, is no `.safetensors` or has no folder.
    """
    source, destination = Path(source), Path(destination)
    _check_model_name(model_name)
    check_destination(destination, overwrite)
    released, dropped = _split(find_weights(read_file(source), source), source)
    try:
        weights = from_released(released)
    except ValueError as error:
        raise ValueError(f"{source} is no released CrossFormer checkpoint: {error}") from error
    _check_variant(weights, model_name, source)
    lda = lda or VARIANTS[model_name]["lda"]
    metadata = {"format": "pt", "model": model_name, "source": source.name, "lda": lda}
    write_weights(weights, destination, metadata)
    return ConversionReport(
        model=model_name,
        source=source,
        destination=destination,
        num_tensors=len(weights),
        num_params=sum(tensor.numel() for tensor in weights.values()),
        num_classes=weights["head.fc.weight"].shape[0] if "head.fc.weight" in weights else None,
        dropped=dropped,
        lda=lda,
    )


def check_destination(destination: Path, overwrite: bool) -> None:
    """
    Raises:
        ValueError: the file to write exists, is no `.safetensors` or has no folder.
    """
    if destination.suffix != ".safetensors":
        raise ValueError(f"{destination} must end in .safetensors, the format that is written")
    if not destination.parent.is_dir():
        raise ValueError(f"{destination} cannot be written: there is no folder {destination.parent}")
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists and is kept; name another file or ask to overwrite it")


def recorded(path: Path) -> dict[str, str]:
    """What `convert` noted in a file about its weights; nothing where there is no such file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as content:
            return content.metadata() or {}
    except safetensors.SafetensorError:  # damaged: reading its weights says so
        return {}


def recorded_lda(path: Path) -> Lda | None:
    """The long-distance grouping that `convert` recorded in a file; None where there is no record."""
    return cast(Lda | None, recorded(path).get("lda"))


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The backbone's weights in a checkpoint, on the CPU, under the names that the file gives them.

    Unwraps `{"model": ...}` and its like, strips `module.` and `backbone.`, keeps only the backbone of a
    detector or segmenter, and leaves out old buffers. Executes nothing that the file may hold.

    Raises:
        ValueError: the file is missing, damaged, holds code or no weights.
    """
    path = Path(path)
    return _split(find_weights(read_file(path), path), path)[0]


class _Inert:
    """Takes the place of an object that does not matter here, and does nothing with what it is given."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What checkpoints of training scripts hold beside tensors. Torch's restricted unpickler builds the stand-ins
# instead and never imports the modules. A CfgNode is a dict, so its stand-in must take items.
_STAND_INS: list[Any] = [
    (OrderedDict, "yacs.config.CfgNode"),
    (_Inert, "argparse.Namespace"),
    (_Inert, "numpy.dtype"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray.scalar"),
]


def read_file(path: Path) -> Any:
    """What the file holds, read without executing any of it.

    Raises:
        ValueError: the file is missing, damaged or holds code.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    refuse_compressed(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # torch's warnings about unusual files would only repeat what the error says
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) (?:was not|whose)|(?:function|but got) (<.+>)", str(error))
        if refused is None:
            raise _unreadable(path) from error
        raise ValueError(
            f"{path} holds {refused[1] or refused[2]}, which is code or no weights: refused, not executed"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        raise _unreadable(path) from error


def _unreadable(path: Path) -> ValueError:
    with path.open("rb") as file:
        start = file.read(12)
    return ValueError(
        f"{path} ({path.stat().st_size} bytes, starting with {start!r}) is no readable checkpoint: "
        "damaged, incomplete, a web page saved in its place, or of a pickle protocol other than 2"
    )


def find_weights(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a training script saved.

    Raises:
        ValueError: there are none.
    """
    if isinstance(checkpoint, Mapping):
        inner = [checkpoint[name] for name in _WRAPPERS if isinstance(checkpoint.get(name), Mapping)]
        state = inner[0] if inner else checkpoint
        if state and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
            refuse_unsound(state, path)
            return dict(state)
    raise ValueError(f"{path} holds no weights, neither as such nor under {', '.join(_WRAPPERS)}")


def _split(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The backbone's weights without prefixes, and the keys that are left out."""
    is_part = any(key.removeprefix("module.").startswith("backbone.") for key in state)
    kept: dict[str, Tensor] = {}
    dropped = []
    for key, value in state.items():
        name = key.removeprefix("module.")
        if (is_part and not name.startswith("backbone.")) or is_old_buffer(name):
            dropped.append(key)
            continue
        name = name.removeprefix("backbone.")
        if name in kept:
            raise ValueError(f"{path} holds {name} twice, with and without a prefix")
        kept[name] = value
    return kept, tuple(dropped)


def is_old_buffer(key: str) -> bool:
    """Whether a key is that of a table that older releases stored with the weights."""
    return key.rpartition(".")[2] in _OLD_BUFFERS


def _check_model_name(model_name: str) -> None:
    if model_name not in VARIANTS:
        nearest = difflib.get_close_matches(model_name, VARIANTS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no model {model_name!r}; did you mean {nearest!r}? Known: {', '.join(VARIANTS)}"
        )


def find_variant(weights: Mapping[str, Tensor], path: Path) -> str:
    """timm name of the variant that backbone weights under this package's names belong to.

    Raises:
        ValueError: they fit none exactly; says which is nearest and what differs.
    """
    differing = {name: _differences(weights, name) for name in VARIANTS}
    best = min(differing, key=lambda name: len(differing[name]))
    if differing[best]:
        raise ValueError(
            f"{path} holds no backbone of {', '.join(VARIANTS)}: {best} is nearest, with "
            f"{len(differing[best])} keys differing: {some(differing[best], '; ')}"
        )
    return best


def _check_variant(weights: Mapping[str, Tensor], model_name: str, path: Path) -> None:
    """Raise a ValueError unless the weights are exactly those of the variant."""
    differing = _differences(weights, model_name)
    if not differing:
        return
    differences = {name: len(_differences(weights, name)) for name in VARIANTS}
    best = min(differences, key=lambda name: differences[name])
    fit = "fits exactly" if differences[best] == 0 else f"is nearest, with {differences[best]} keys differing"
    raise ValueError(
        f"{path} is no {model_name}: {len(differing)} keys differ: {some(differing, '; ')}. {best} {fit}"
    )


def _differences(weights: Mapping[str, Tensor], model_name: str) -> list[str]:
    """What keeps the weights from loading strictly, one line a key; the head's width may be any."""
    head, stem = weights.get("head.fc.weight"), weights.get("stages.0.embedding.projections.0.weight")
    with torch.device("meta"):
        model = timm.create_model(
            model_name,
            num_classes=0 if head is None else head.shape[0],
            in_chans=3 if stem is None else stem.shape[1],
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not any(
        name.startswith(("norm.", "head.")) for name in weights
    ):  # a detector's or segmenter's backbone
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith("norm.")}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return [
        f"{name} is {found.get(name, 'missing')}, should be {wanted.get(name, 'absent')}"
        for name in [*wanted, *(name for name in found if name not in wanted)]
        if found.get(name) != wanted.get(name)
    ]


def write_weights(weights: Mapping[str, Tensor], destination: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, which appears whole or not at all."""
    # safetensors wants dense tensors that share no memory
    own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    with replacing(destination) as file:
        file.write(safetensors.torch.save(own, metadata))
