"""Where the time goes, by kind of layer: the product beside the paper taken literally.

    python -m benchmarks.layer_times

Inference in float32 on a CPU. A stopwatch around every layer adds up its own time, without that of the layers within;
both models run in turn. The product runs layer by layer: its kernel for whole blocks would pass the stopwatches
by. "rest" is what no layer accounts for: residual sums, copies of chunks, Python.
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


@torch.inference_mode()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
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
