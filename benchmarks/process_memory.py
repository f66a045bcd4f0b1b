"""What exports and compilations leave behind in a process, who holds it, and how it is given back.

    python -m benchmarks.process_memory [export onnx compile aoti sizes] [--times 4]

Each suspect runs several times in processes of its own: once with nothing given back in between, once with what most
programs would try (`torch._dynamo.reset`, `gc.collect`, `malloc_trim`), once with `give_back`, which tests/conftest.py
calls after each file. Resident memory is split into what glibc handed out, what it keeps free, and the rest (libraries,
Python's own arenas); counted are the objects of PyTorch's tracing that are alive.
"""

import argparse
import ctypes
import ctypes.util
import gc
import io
import logging
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUSPECTS = ("export", "onnx", "compile", "aoti", "sizes")
WAYS = ("nothing", "reset, collect, trim", "give_back")
OPTIONS = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "group_sizes": (4, 4, 4, 4)}


def give_back() -> None:
    """Give back what a process no longer needs: compiled graphs, symbolic sizes, freed pages."""
    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()
        _forget_symbols()
    _collect_and_trim()


def _forget_symbols() -> None:
    """Release the `ShapeEnv` of every export with symbolic sizes; PyTorch keeps them all, as of 2.14.

    Each lists the fake tensors that it tracks, whose sizes refer back to it from C++, where Python's collector does
    not see them: a cycle that is never freed, and with it the answers for fake tensors that each one remembers.
    Methods of the class remember them as arguments, and the last graph's nodes stand in a table of their own.
    """
    from torch.fx.experimental import proxy_tensor, symbolic_shapes

    for method in vars(symbolic_shapes.ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()
    getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
    for environment in [x for x in gc.get_objects() if type(x) is symbolic_shapes.ShapeEnv]:
        environment.tracked_fakes = None
        environment.fake_tensor_cache.clear()


def _collect_and_trim() -> None:
    gc.collect()
    if (name := ctypes.util.find_library("c")) is not None and sys.platform == "linux":
        ctypes.CDLL(name).malloc_trim(0)


class _Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def row() -> tuple[float, ...]:
    """Resident MB, MB that glibc handed out and that it keeps free; thousands of objects, ShapeEnvs, FakeTensors."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    objects = [type(x) for x in gc.get_objects()]
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        (info.uordblks + info.hblkhd) / 1e6,
        info.fordblks / 1e6,
        len(objects) / 1e3,
        sum(issubclass(x, ShapeEnv) for x in objects),
        sum(issubclass(x, FakeTensor) for x in objects),
    )


def _model() -> Any:
    import timm

    import crossformerpp.models  # noqa: F401

    return timm.create_model("crossformerpp_small", features_only=True, **OPTIONS).eval()


def _program() -> Any:
    import torch

    size = torch.export.Dim.DYNAMIC
    shapes = ({0: size, 2: size, 3: size},)
    with torch.no_grad():
        return torch.export.export(_model(), (torch.randn(2, 3, 160, 192),), dynamic_shapes=shapes)


def _onnx() -> None:
    import torch

    torch.onnx.export(_program(), dynamo=True, verbose=False)


def _compile() -> None:
    import torch

    model = torch.compile(_model(), dynamic=True)
    with torch.no_grad():
        for side in (160, 192):
            model(torch.randn(1, 3, side, side))


def _aoti() -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch._inductor.aoti_compile_and_package(_program(), package_path=f"{folder}/model.pt2")


def _sizes() -> None:
    """Not a tracer, but the caches of this package: a forward pass at 100 sizes."""
    import torch

    model = _model()
    sides = torch.randint(64, 900, (100, 2), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        for height, width in sides:
            model(torch.randn(1, 3, height, width))


def measure(suspect: str, way: str, times: int, rows: Any) -> None:
    """Fill `rows` with one `row` before the first time and one after each."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr = io.StringIO()
    work: dict[str, Callable[[], Any]] = {
        "export": _program,
        "onnx": _onnx,
        "compile": _compile,
        "aoti": _aoti,
        "sizes": _sizes,
    }
    rows.append(row())
    for _ in range(times):
        work[suspect]()
        if way == "give_back":
            give_back()
        elif way != "nothing":
            torch._dynamo.reset()
            _collect_and_trim()
        rows.append(row())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suspects", nargs="*", default=SUSPECTS, metavar="SUSPECT")
    parser.add_argument("--times", type=int, default=4)
    arguments = parser.parse_args()
    if unknown := set(arguments.suspects) - set(SUSPECTS):
        parser.error(f"no suspect {', '.join(sorted(unknown))}; there are {', '.join(SUSPECTS)}")
    context = multiprocessing.get_context("spawn")
    print(
        "| suspect | given back | time | resident, MB | handed out | kept free | 1,000 objects | ShapeEnv | fake |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with context.Manager() as manager:
        for suspect in arguments.suspects:
            for way in WAYS:
                rows = manager.list()
                process = context.Process(target=measure, args=(suspect, way, arguments.times, rows))
                process.start()
                process.join()
                for time, (used, out, free, objects, environments, fakes) in enumerate(rows):
                    figures = (
                        f"{used:.0f} | {out:.0f} | {free:.0f} | {objects:.0f} | {environments} | {fakes}"
                    )
                    print(f"| {suspect} | {way} | {time} | {figures} |", flush=True)
                if process.exitcode:
                    sys.exit(f"{suspect} ended with status {process.exitcode}")


if __name__ == "__main__":
    main()
