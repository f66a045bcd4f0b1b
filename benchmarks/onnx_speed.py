"""A classifier and a RetinaNet in eager PyTorch, ONNX Runtime and OpenVINO, float32 and int8, in turn in one process.

    python -m benchmarks.onnx_speed [--model crossformerpp_small] [--seconds 15] [--out onnx.json]   (about 6 minutes)
    python -m benchmarks.onnx_speed --checkpoint RUN                   (a run's own network in the classifier's place)

What is timed is the network, without the way of an image in and of its answer out. Weights are random, which changes no
time; int8 is static QDQ of ONNX Runtime's, calibrated on noise: what it costs in accuracy is for `crossformer export
--int8` to say. Every program has PyTorch's number of threads. OpenVINO computes in float32 where it is asked for it;
"as it likes" leaves the precision to it, which is bfloat16 where the machine has it.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from crossformerpp.export import export
from crossformerpp.export.int8 import quantize
from crossformerpp.export.networks import Network, open_network
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.runtime.files import open_session
from crossformerpp.tasks import find_task
from crossformerpp.tasks.saved import KEY, open_saved, pack

_CLASSES = [f"class {number}" for number in range(80)]


def timed(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, called in turn.

    Every turn begins with a call that is not timed: the other library's threads spin on for a while after its last
    call, and one image through PyTorch took twice its time beside them.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not all(taken.values()):
        for name, function in functions.items():
            function()
            started = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def checkpoint(task: str, model: str, folder: Path) -> Path:
    """A checkpoint with random weights, as the engine writes it."""
    page: dict[str, Any] = {"task": task, "model": {"name": model}, "trainer": {"steps": 1}}
    page["data"] = {"source": "folder"}
    if task == "classification":
        page["data"] |= {"size": 224, "eval_resize": 256}
    else:
        page["data"] |= {"short_side": [480], "long_side": 800}
        page["detector"] = {"name": "retinanet"}
    recipe = parse_recipe(page, task)
    torch.manual_seed(0)
    network = find_task(task).module(recipe, _CLASSES).model
    weights = {f"model.{key}": value for key, value in network.state_dict().items()}
    path = folder / f"{task}.ckpt"
    torch.save({KEY: pack(dump_recipe(recipe), _CLASSES, 1), "state_dict": weights}, path)
    return path


def noise(folder: Path, number: int = 8) -> list[Path]:
    """Pictures to calibrate with."""
    paths = [folder / f"{place}.png" for place in range(number)]
    generator = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(generator.integers(256, size=(480, 640, 3), dtype=np.uint8)).save(path)
    return paths


def programs(found: Network, files: dict[str, Path]) -> dict[str, Callable[[torch.Tensor], object]]:
    """What runs the network, by name; OpenVINO only where it is installed."""
    threads = torch.get_num_threads()

    def eager(images: torch.Tensor) -> object:
        with torch.inference_mode():
            return found.network(images)

    runs: dict[str, Callable[[torch.Tensor], object]] = {"eager": eager}
    for name, file in files.items():
        runs[f"ONNX Runtime, {name}"] = _onnxruntime(file, threads)
    try:
        import openvino
    except ImportError:
        print("OpenVINO: not installed, not run")
        return runs
    core = openvino.Core()
    for name, file in files.items():
        exact = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        runs[f"OpenVINO, {name}"] = _openvino(core.compile_model(file, "CPU", exact))
    free = core.compile_model(files["float32"], "CPU", {"INFERENCE_NUM_THREADS": threads})
    runs["OpenVINO, as it likes"] = _openvino(free)
    return runs


def _onnxruntime(file: Path, threads: int) -> Callable[[torch.Tensor], object]:
    session = open_session(file, threads)
    return lambda images: session.run(None, {"images": images.numpy()})


def _openvino(compiled: Any) -> Callable[[torch.Tensor], object]:
    return lambda images: compiled({"images": images.numpy()})


def compare(path: Path, shapes: list[tuple[int, int, int]], seconds: float) -> list[dict[str, Any]]:
    """A row per shape (batch, height, width): milliseconds by program."""
    saved = open_saved(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"float32": folder / "float32.onnx", "int8": folder / "int8.onnx"}
        report = export(path, files["float32"])
        quantize(files["float32"], files["int8"], noise(folder))
        found = open_network(saved)
        runs = programs(found, files)
        rows = []
        for batch, height, width in shapes:
            images = torch.randn(batch, 3, height, width)
            calls = {title: (lambda run=run, images=images: run(images)) for title, run in runs.items()}
            medians = timed(calls, seconds)
            rows.append({"task": report.task, "shape": [batch, height, width], "milliseconds": medians})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table: a column per row of `compare`, milliseconds and how many times as fast as eager."""
    table = Table("program", *(f"{r['task']} {'×'.join(map(str, r['shape']))}, ms" for r in rows))
    for program in rows[0]["milliseconds"]:
        table.add_row(
            program,
            *(
                f"{r['milliseconds'][program]:.1f} "
                f"({r['milliseconds']['eager'] / r['milliseconds'][program]:.2f}×)"
                for r in rows
            ),
        )
    console = Console(width=160)
    console.print(table)
    console.print(f"{_machine()}, {torch.get_num_threads()} threads")


def _machine() -> str:
    """The CPU's name, and the widest vectors that PyTorch uses on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="crossformerpp_small")
    parser.add_argument("--checkpoint", type=Path, help="a classifier's run in the place of random weights")
    parser.add_argument("--seconds", type=float, default=15.0, help="of every row")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.checkpoint or checkpoint("classification", arguments.model, folder)
        side = open_network(open_saved(path)).size
        rows = compare(path, [(1, side, side), (16, side, side)], arguments.seconds)
        path = checkpoint("detection", arguments.model, folder)
        rows += compare(path, [(1, 480, 640)], arguments.seconds)
    show(rows)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
