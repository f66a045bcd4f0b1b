"""Open files of torch.export and AOTInductor as the runtime opens those of ONNX.

An AOTInductor package is machine code, which opening it runs.
"""

import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossformerpp.runtime.about import read_about
from crossformerpp.runtime.files import KEY, ExportedNetwork

_OBJECT = re.compile(r"/(custom|opaque)_obj_")  # which torch.export.load unpickles
_RAW = ("/weights", "/constants")  # folders of tensors' bytes, unless the settings say otherwise


class ProgramSession:
    """Runs a program as ONNX Runtime's sessions run a graph."""

    def __init__(self, program: Callable[[Tensor], Any]) -> None:
        self.program = program

    @torch.no_grad()
    def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [x.numpy() for x in self.program(torch.from_numpy(inputs["images"]))]


def is_package(path: Path) -> bool:
    """Whether a .pt2 file is of AOTInductor.

    Raises:
        ValueError: It is no .pt2 file, or half of one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .pt2 file ({error})") from None


def load_package(path: Path) -> Any:
    """AOTInductor's program, from a file of any name: it unpacks what it loads."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "model.pt2"
        shutil.copyfile(path, named)
        return torch._inductor.aoti_load_package(str(named))


def _extra(path: Path) -> str:
    """What `crossformer eval` wrote in the place of the metadata that were compiled in; empty if it did not."""
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
        return archive.read(found[0]).decode() if found else ""


def _refuse_code(path: Path) -> None:
    """
    Raises:
        ValueError: The archive holds pickles of more than tensors and plain data, which torch.export.load would run.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled: set[str] = set()
        for name in names:
            if name.endswith("_config.json"):
                pickled |= _pickled(json.loads(archive.read(name)))
        for name in names:
            if _OBJECT.search(name):
                raise ValueError(f"{path}: refused, for {name} holds an object of code")
            folder, _, own = name.rpartition("/")
            is_raw = folder.endswith(_RAW) and own not in pickled
            if (
                not own
                or own.endswith(".json")
                or not (own.endswith(".pt") or ("/data/" in name and not is_raw))
            ):
                continue
            try:
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
            except Exception as error:  # not a pickle at all, or one that is not plain
                reason = str(error).splitlines()[0][:200]
                raise ValueError(
                    f"{path}: refused, for {name} holds more than weights and plain data ({reason})"
                ) from None


def _pickled(settings: Any) -> set[str]:
    """The names of the entries that a page of settings says are pickled."""
    if isinstance(settings, list):
        return set().union(*map(_pickled, settings))
    if not isinstance(settings, dict):
        return set()
    own = {str(settings.get("path_name"))} if settings.get("use_pickle") else set()
    return own.union(*map(_pickled, settings.values()))


def open_program(path: Path) -> ExportedNetwork:
    """The program of a .pt2 file, and what it says of itself.

    Raises:
        ValueError: Unreadable, or not of `crossformer export`.
    """
    try:
        if is_package(path):
            loaded = load_package(path)
            text, program = _extra(path) or loaded.get_metadata().get(KEY), loaded
        else:
            _refuse_code(path)
            extra = {KEY: ""}
            with path.open("rb") as file:
                program = torch.export.load(file, extra_files=extra).module()
            text = extra[KEY]
    except ValueError:
        raise
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: not a readable .pt2 file ({reason})") from None
    if not text:
        raise ValueError(f"{path}: no file of `crossformer export`, it does not say how to prepare an image")
    return ExportedNetwork(ProgramSession(program), read_about(text, path))
