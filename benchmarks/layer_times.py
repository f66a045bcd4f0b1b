"""Where the time goes, by kind of layer: the product beside the paper taken literally.

    python -m benchmarks.layer_times               # layers, batches and large images
    python -m benchmarks.layer_times --operators   # one image of 224×224: PyTorch's operators, and how many calls

Inference in float32 on a CPU. A stopwatch around every layer adds up its own time, without that of the layers within;
both models run in turn. The product runs layer by layer: its kernel for whole blocks would pass the stopwatches
by. "rest" is what no layer accounts for: residual sums, copies of chunks, Python. Operators are those of the product
as it runs, and "outside" is what none accounts for: Python, looking choices up, starting operators.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.literal import (
    LiteralAttention,
    LiteralBlock,
    LiteralCrossFormer,
    LiteralEmbedding,
    LiteralMlp,
)
from benchmarks.literal_vs_product import REGIONAL, WIDE
from crossformerpp import VARIANTS
from crossformerpp.layers import CrossScaleEmbedding, GroupAttention, Grouping, Mlp

CASES: list[tuple[str, int, int, int, dict[str, Any]]] = [
    ("crossformerpp_small", 16, 224, 224, {}),
    ("crossformer_small", 16, 224, 224, {}),
    ("crossformerpp_small", 1, 800, 1344, {**WIDE, **REGIONAL}),
    ("crossformer_small", 1, 800, 1344, {**WIDE, **REGIONAL}),
]
KINDS = ("CEL", "grouping", "qkv, proj", "attention", "MLP", "norms", "ACL", "head", "rest")
_WHOLE = ("CEL", "MLP", "ACL", "head")  # kinds that include the layers within


class Stopwatch:
    """Seconds by kind of layer, of calls wrapped by `around`; a call within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["rest"]
        self._since = time.perf_counter()

    def around(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed; within a layer that is counted as a whole it is left to that one."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running[-1] in _WHOLE:
                return call(*args, **kwargs)
            self._count()
            self._running.append(kind)
            try:
                return call(*args, **kwargs)
            finally:
                self._count()
                self._running.pop()

        return timed

    def _count(self) -> None:
        """Credit the time since the last count to what is running."""
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def run(self) -> Iterator[None]:
        """Count what runs in here."""
        self.seconds.clear()
        self._since = time.perf_counter()
        gather, scatter = (self.around("grouping", call) for call in (Grouping.gather, Grouping.scatter))
        with patch.multiple(Grouping, gather=gather, scatter=scatter):
            yield
        self._count()


def watch(model: nn.Module, stopwatch: Stopwatch) -> None:
    """Put the stopwatch around every layer of a model, for good."""
    for name, module in model.named_modules():
        kind = _kind(name.rpartition(".")[2], module)
        if kind is not None:
            module.forward = stopwatch.around(kind, module.forward)
        if isinstance(module, LiteralBlock):
            grouped = stopwatch.around("grouping", module._group_attention)
            module._group_attention = grouped  # type: ignore[method-assign]


def _kind(name: str, module: nn.Module) -> str | None:
    if name in ("qkv", "proj"):
        return "qkv, proj"
    if name == "cooling":
        return "ACL"
    if name == "head":
        return "head"
    kinds: dict[type[nn.Module] | tuple[type[nn.Module], ...], str] = {
        (CrossScaleEmbedding, LiteralEmbedding): "CEL",
        (GroupAttention, LiteralAttention): "attention",
        (Mlp, LiteralMlp): "MLP",
        nn.LayerNorm: "norms",
    }
    return next((kind for types, kind in kinds.items() if isinstance(module, types)), None)


def measure(
    name: str, batch: int, height: int, width: int, overrides: dict[str, Any], rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of layer, medians over rounds in turn, of "literal" and "product"."""
    models = {
        "literal": LiteralCrossFormer(**{**VARIANTS[name], **overrides}).eval(),
        "product": timm.create_model(name, **overrides).eval(),
    }
    x = torch.randn(batch, 3, height, width)
    stopwatch = Stopwatch()
    spent: dict[str, list[dict[str, float]]] = {key: [] for key in models}
    for model in models.values():
        watch(model, stopwatch)
    with torch.inference_mode():  # not around the models: of weights made in it nothing is kept
        for model in models.values():
            model(x)
        for _ in range(rounds):
            for key, model in models.items():
                with stopwatch.run():
                    model(x)
                spent[key].append(dict(stopwatch.seconds))
    return {
        key: {kind: 1e3 * statistics.median(run.get(kind, 0.0) for run in runs) for kind in KINDS}
        for key, runs in spent.items()
    }


# parts of operators' names -> what they are; the first that fits
OPERATORS = {
    "products": ("addmm", "aten::mm", "linear_pointwise"),
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "convolutions": ("convolution",),
    "norms": ("layer_norm",),
    "copies": ("copy_", "index", "cat", "gather"),
    "other": ("aten::", "mkldnn::"),
}


def count_operators(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of operator for one image, medians over rounds in turn, and calls of operators."""
    models = {
        "literal": LiteralCrossFormer(**VARIANTS[name]).eval(),
        "product": timm.create_model(name).eval(),
    }
    x = torch.randn(1, 3, 224, 224)
    found: dict[str, dict[str, list[float]]] = {key: defaultdict(list) for key in models}
    for _ in range(rounds + 1):
        for key, model in models.items():
            with torch.inference_mode():  # not around the models: of weights made in it nothing is kept
                start = time.perf_counter()
                model(x)
                found[key]["all"].append(1e3 * (time.perf_counter() - start))
                with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
                    model(x)
            spent = dict.fromkeys(OPERATORS, 0.0)
            calls = 0
            for event in profiler.key_averages():
                kind = next((k for k, parts in OPERATORS.items() if any(p in event.key for p in parts)), None)
                if kind is not None:
                    spent[kind] += event.self_cpu_time_total / 1e3
                    calls += event.count if event.key.startswith(("aten::", "mkldnn::")) else 0
            for kind, milliseconds in {**spent, "calls": calls}.items():
                found[key][kind].append(milliseconds)
    return {
        key: {kind: statistics.median(values[1:]) for kind, values in kinds.items()}  # the first warms up
        for key, kinds in found.items()
    }


def show_operators(rounds: int) -> None:
    columns = [*OPERATORS, "outside", "all", "calls"]
    table = Table(title=f"1 × 224×224, {torch.get_num_threads()} CPU threads, median ms")
    for column in ("model", "", *columns):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for name in ("crossformerpp_small", "crossformer_small"):
        for key, times in count_operators(name, rounds).items():
            times["outside"] = max(0.0, times["all"] - sum(times[kind] for kind in OPERATORS))
            cells = [
                f"{times[column]:.0f}" if column == "calls" else f"{times[column]:.1f}" for column in columns
            ]
            table.add_row(name, key, *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--operators", action="store_true", help="one image, by operator")
    options = parser.parse_args()
    if options.operators:
        show_operators(options.rounds)
        return
    table = Table(title=f"{torch.get_num_threads()} CPU threads, median ms")
    for column in ("model", "what", "", *KINDS, "all"):
        table.add_column(column, justify="left" if column in ("model", "what", "") else "right")
    for name, batch, height, width, overrides in CASES:
        for key, times in measure(name, batch, height, width, overrides, options.rounds).items():
            cells = [f"{times[kind]:.0f}" for kind in KINDS]
            size = f"{batch} × {height}×{width}"
            table.add_row(name, size, key, *cells, f"{sum(times.values()):.0f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
