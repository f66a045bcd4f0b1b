"""How each form of file is written, and run again to be compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from crossformerpp.export.networks import Network
from crossformerpp.runtime.files import KEY, open_session
from crossformerpp.tasks.programs import load_package

INPUTS = ("images", "size", "min_score")  # the last two of Mask R-CNN alone

Write = Callable[[ExportedProgram, Path, Network], None]
Run = Callable[[Path], Callable[..., list[Tensor]]]  # takes the network's inputs one by one


def _write_onnx(program: ExportedProgram, path: Path, network: Network) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(
            "export to ONNX needs onnxscript: pip install '.[export]' in a checkout of crossformerpp"
        ) from None
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=list(INPUTS[: 3 if network.is_whole else 1]),
        output_names=list(network.outputs),
    )
    assert exported is not None
    exported.model.metadata_props[KEY] = json.dumps(network.about)
    graph: Any = exported.model.graph
    for place, name in ((0, "batch"), (2, "height"), (3, "width")):
        if not isinstance(graph.inputs[0].shape[place], int):
            _rename(graph, place, name)
    exported.save(path)


def _rename(graph: Any, place: int, name: str) -> None:
    """Give a symbolic size of the input a name that people can read, wherever it occurs by itself."""
    old = str(graph.inputs[0].shape[place])
    for value in (*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)):
        if value.shape is not None and not value.shape.frozen:
            for number, size in enumerate(value.shape):
                if str(size) == old:
                    value.shape[number] = name


def _run_onnx(path: Path) -> Callable[..., list[Tensor]]:
    session = open_session(path)

    def run(*inputs: Tensor) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    return run


def _write_program(program: ExportedProgram, path: Path, network: Network) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={KEY: json.dumps(network.about)})


def _run_program(path: Path) -> Callable[..., list[Tensor]]:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda *inputs: list(module(*inputs))


def _write_package(program: ExportedProgram, path: Path, network: Network) -> None:
    metadata = {KEY: json.dumps(network.about)}
    package = path.with_name(f"{path.name}.pt2")  # a name that AOTInductor takes
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package), inductor_configs={"aot_inductor.metadata": metadata}
        )
        package.replace(path)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"AOTInductor cannot build here, it needs a C++ compiler: {error}") from None
    finally:
        package.unlink(missing_ok=True)


def _run_package(path: Path) -> Callable[..., list[Tensor]]:
    loaded = load_package(path)
    return lambda *inputs: list(loaded(*inputs))


FORMATS: dict[str, tuple[Write, Run]] = {
    "onnx": (_write_onnx, _run_onnx),
    "torch-export": (_write_program, _run_program),
    "aoti": (_write_package, _run_package),
}
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".aoti.pt2"}
