"""Files of tensors that come from elsewhere: what must hold before their weights are used."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_GROWTH = 2  # of a file when unpacked; torch.save does not compress


def refuse_compressed(path: Path) -> None:
    """Refuse a zip archive that would unpack to much more than its own size.

    Raises:
        ValueError: Names the sizes.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # damaged in one of many ways; torch, which reads it next, refuses it
        return
    if unpacked > _MAX_GROWTH * path.stat().st_size:
        raise ValueError(
            f"{path}: {path.stat().st_size:,} bytes that would unpack to {unpacked:,}: no checkpoint of torch.save"
        )


def refuse_unsound(tensors: Mapping[Any, Any], path: Path) -> None:
    """Refuse what is no plain tensor under a name, or claims more numbers than the file holds.

    Raises:
        ValueError: Names the first such entry.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: damaged, {str(name)[:100]!r} is no tensor")
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
        if not is_plain or tensor.is_meta:
            raise ValueError(f"{path}: {name} is a tensor of an unusual kind; save it dense")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: damaged, {name} claims more numbers than the file holds")
