"""ONNX Runtime beside eager PyTorch, in turn in one process, on the same images.

    python -m benchmarks.onnx_speed CHECKPOINT [--size 224] [--batch 1 --batch 16] [--threads 1]

Exports the checkpoint (a run, or a file of `crossformer convert`) to a temporary file first, without the head's
pre- and post-processing: what is timed is the network.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crossformerpp.export import export
from crossformerpp.export.networks import open_network
from crossformerpp.runtime.files import open_session
from crossformerpp.tasks.saved import open_saved


def timed(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, called in turn.

    Every turn begins with a call that is not timed: the other library's threads spin on for a while after its last
    call, and one image through PyTorch took twice its time beside them.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, function in functions.items():
            function()
            started = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", type=int, help="default: the recipe's")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    found = open_network(open_saved(arguments.checkpoint), size=arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        report = export(arguments.checkpoint, file, size=arguments.size)
        session = open_session(file)
    print(f"{found.about['model']}, {report.task}, {torch.get_num_threads()} threads of PyTorch")
    for batch in arguments.batch or [1, 16]:
        images = torch.randn(batch, 3, found.size, found.size)

        def eager(images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                found.network(images)

        def onnx(images: torch.Tensor = images) -> None:
            session.run(None, {"images": images.numpy()})

        medians = timed({"eager": eager, "onnxruntime": onnx}, arguments.seconds)
        ratio = medians["eager"] / medians["onnxruntime"]
        figures = ", ".join(f"{name} {value:.1f} ms" for name, value in medians.items())
        print(f"{batch} × {found.size}x{found.size}: {figures}, {ratio:.2f}×")


if __name__ == "__main__":
    main()
