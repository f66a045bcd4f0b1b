"""Everything about one GPU in one run: `python -m benchmarks.gpu --out FOLDER`, under nine minutes on one H100.

Checks that the models give on it what the paper's literal implementation gives (all eight, both groupings, float32 and
bfloat16, inference and training, eager and compiled), then measures: the attention kernel, inference at several batch
sizes, a training step, images of 800×1344, with the literal implementation and other backbones of timm beside it, peak
memory, and a profile. Writes gpu.json and gpu.md. Where models are compiled, processes beside this one do it first.

`--small` is the same run on tiny models, for a machine without a GPU; its figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.literal import LiteralCrossFormer
from crossformerpp import VARIANTS, kernels
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.throughput import matmul_peak, peak_extra_memory
from crossformerpp.layers.grouping import GroupRule

PRODUCT, LITERAL = "crossformerpp_small", "literal"
OTHERS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "hiera_tiny_224")
# Table's name, map, heads, rule: the attentions of ++S at 224, and groups as they are at 800×1344
ATTENTIONS: list[tuple[str, tuple[int, int], int, GroupRule]] = [
    ("stage 1, G 4", (56, 56), 2, GroupRule("short", 4)),
    ("stage 2, G 4", (28, 28), 4, GroupRule("long", 4, 2)),
    ("stage 3, G 14", (14, 14), 8, GroupRule("short", 14)),
    ("stage 4, G 7", (7, 7), 16, GroupRule("short", 7)),
    ("stage 1, G 7", (56, 56), 3, GroupRule("long", 7, 8)),
    ("800×1344, G 7, spanning", (200, 336), 3, GroupRule("long", 7, 8, "spanning")),
]
_SMALL: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 4, 4)}
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What is timed: a model, images of one size, inference or a training step, eager or compiled."""

    name: str
    batch: int
    size: tuple[int, int] = (224, 224)
    training: bool = False
    compiled: bool = False
    lda: str = "regional"

    def call(self, device: str, small: bool) -> Callable[[], Any]:
        """A function that does the work once. Inference: weights in bfloat16; training: autocast, and AdamW."""
        torch.manual_seed(0)
        model = build(self.name, self.lda, small).to(device)
        x = torch.randn(self.batch, 3, *self.size, device=device)
        if not self.training:
            if self.compiled and self.name == PRODUCT:
                model.fold_position_bias(*self.size)
            model, x = model.eval().bfloat16(), x.bfloat16()
            forward = (
                torch.compile(
                    model,
                    dynamic=False,
                    fullgraph=PRODUCT in self.name,
                    backend="aot_eager" if small else "inductor",
                )
                if self.compiled
                else model
            )
            return torch.inference_mode()(partial(forward, x))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        target = torch.randint(10, (self.batch,), device=device)
        forward = (
            torch.compile(
                model.train(),
                dynamic=False,
                fullgraph=PRODUCT in self.name,
                backend="aot_eager" if small else "inductor",
            )
            if self.compiled
            else model.train()
        )

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss = nn.functional.cross_entropy(forward(x), target)
            loss.backward()
            optimizer.step()

        return step


def build(name: str, lda: str, small: bool) -> nn.Module:
    """A model by timm's name, or the literal CrossFormer++-S; `small`: of two blocks a stage and few channels."""
    sizes = _SMALL if small else {}
    if name == LITERAL:
        return LiteralCrossFormer(**{**VARIANTS[PRODUCT], **sizes, "lda": lda})
    if name == PRODUCT:
        return timm.create_model(name, lda=lda, **sizes)
    return timm.create_model(name, **({"depths": (1, 1, 1, 1)} if small and "swin" in name else {}))


def time_calls(calls: Mapping[str, Callable[[], Any]], device: str, rounds: int = 5) -> dict[str, float]:
    """Milliseconds of each, medians over rounds in turn; in a round a call is repeated for some 60 ms."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call(), call(), wait()
        start = time.perf_counter()
        call(), wait()
        repeats[name] = max(1, min(100, int(0.06 / (time.perf_counter() - start))))
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            spent[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def in_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call recorded as a CUDA graph, and its replay."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# Parity


def parity_of(name: str, device: str, compiled: bool, small: bool) -> list[Row]:
    """One variant against the literal implementation in float32, with both groupings and precisions.

    Compiled models have two blocks a stage; an image of 160×224 leaves incomplete groups. Differences are norms of
    differences over norms: of the logits, and of all gradients together, from a loss that weighs logits at random.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    is_small_variant = name.endswith("_small")
    for lda in ("regional", "spanning") if is_small_variant or not compiled else ("regional",):
        depths = tuple(min(d, 2) for d in VARIANTS[name]["depths"]) if compiled else VARIANTS[name]["depths"]
        options = {"depths": depths, "lda": lda} | (_SMALL if small else {})
        torch.manual_seed(0)
        product = timm.create_model(name, **options).to(device)
        literal = LiteralCrossFormer(**{**VARIANTS[name], **options}).to(device)
        with torch.no_grad():
            for parameter in product.parameters():  # fresh weights hardly attend
                parameter.add_(torch.randn_like(parameter) * 0.02)
        literal.load_state_dict(product.state_dict())
        x, weights = torch.randn(2, 3, 160, 224, device=device), torch.randn(2, 1000, device=device)
        torch._dynamo.reset()
        judged = (
            torch.compile(
                product, dynamic=False, fullgraph=True, backend="aot_eager" if small else "inductor"
            )
            if compiled
            else product
        )
        expected = _outputs(literal, literal, x, weights, torch.float32)
        for dtype in (
            (torch.float32, torch.bfloat16) if is_small_variant or not compiled else (torch.bfloat16,)
        ):
            found = _outputs(judged, product, x, weights, dtype)
            rounding = _outputs(literal, literal, x, weights, dtype)
            for what in ("inference", "logits", "gradients"):
                error, allowed = (
                    _distance(found[what], expected[what]),
                    _distance(rounding[what], expected[what]),
                )
                limit = 2e-5 if dtype == torch.float32 else 1.5 * allowed
                rows.append(
                    {
                        "model": name,
                        "lda": lda,
                        "compiled": compiled,
                        "dtype": str(dtype).removeprefix("torch."),
                        "what": what,
                        "difference": error,
                        "literal's own": allowed,
                        "ok": error <= limit,
                    }
                )
    return rows


def _outputs(
    model: nn.Module, owner: nn.Module, x: Tensor, weights: Tensor, dtype: torch.dtype
) -> dict[str, list[Tensor]]:
    context = partial(torch.autocast, x.device.type, dtype, enabled=dtype != torch.float32)
    owner.eval()
    with torch.inference_mode(), context():
        inference = model(x).float()
    owner.train().zero_grad(set_to_none=True)
    with context():
        logits = model(x).float()
    (logits * weights).sum().backward()
    gradients = [p.grad for p in owner.parameters() if p.grad is not None]
    return {"inference": [inference], "logits": [logits.detach()], "gradients": gradients}


def _distance(found: list[Tensor], expected: list[Tensor]) -> float:
    norm = torch.stack(
        [(a.double() - b.double()).norm() for a, b in zip(found, expected, strict=True)]
    ).norm()
    return (norm / torch.stack([b.double().norm() for b in expected]).norm()).item()


# Tables


def attention_table(device: str, batch: int) -> list[Row]:
    """The attention kernel against gathering groups, PyTorch's fused attention in each, and scattering them."""
    rows = []
    for name, (H, W), heads, rule in ATTENTIONS[1:4] if device == "cpu" else ATTENTIONS:
        own_batch = batch if H < 100 else max(1, batch // 32)
        gh, gw, interval = rule.cells(H, W)
        torch.manual_seed(0)
        qkv = torch.randn(
            own_batch, H, W, 96 * heads, device=device, dtype=torch.bfloat16, requires_grad=True
        )
        table = torch.randn(heads, 2 * gh - 1, 2 * gw - 1, device=device, requires_grad=True)
        grad = torch.randn(own_batch, H, W, 32 * heads, device=device, dtype=torch.bfloat16)
        groups = rule.on(H, W)

        def plain(qkv: Tensor, table: Tensor, groups: Any = groups, heads: int = heads) -> Tensor:
            parts = groups.split(groups.gather(qkv))
            out = [kernels.attention(part.tokens, table, heads, part.sides) for part in parts]
            return groups.scatter(groups.join(out))

        cells = (heads, gh, gw, interval)
        kinds: dict[str, Callable[..., Tensor]] = {"plain": plain}
        if kernels.takes_maps(grad, heads, gh, gw):
            kinds["kernel"] = lambda qkv, table, cells=cells: kernels.map_attention(qkv, table, *cells)
        exact = [t.detach().float().requires_grad_() for t in (qkv, table)]
        expected = [plain(*exact), *torch.autograd.grad(plain(*exact), exact, grad.float())]
        row: Row = {
            "attention": name,
            "batch": own_batch,
            "groups": f"{gh}×{gw}, I {interval}",
            "heads": heads,
        }
        for kind, attend in kinds.items():

            def train(
                attend: Callable[..., Tensor] = attend, inputs: Any = (qkv, table), grad: Any = grad
            ) -> Any:
                return torch.autograd.grad(attend(*inputs), inputs, grad)

            forward = torch.inference_mode()(partial(attend, qkv, table))
            found = [attend(qkv, table), *train()]
            row[f"{kind} error"] = max(_distance([a], [b]) for a, b in zip(found, expected, strict=True))
            times = time_calls({"forward": forward, "train": train}, device, rounds=3)
            row[f"{kind}, ms"], row[f"{kind} train, ms"] = times["forward"], times["train"]
            row[f"{kind} train, MiB"] = peak_extra_memory(train, device) / 2**20
        rows.append(row)
    return rows


def work_table(works: list[Work], device: str, small: bool) -> list[Row]:
    """Times of works in turn; of the product's inference also as a CUDA graph."""
    calls: dict[int, Callable[[], Any]] = {}
    rows: list[Row] = []
    for work in works:
        is_recorded = work.name == PRODUCT and not work.training and device != "cpu"
        for graph in (False, True) if is_recorded else (False,):
            row: Row = {
                "model": work.name,
                "how": "compiled" * work.compiled + " graph" * graph or "eager",
                "LDA": work.lda if work.name in (PRODUCT, LITERAL) else "",
                "batch": work.batch,
            }
            rows.append(row)
            try:
                call = work.call(device, small)
                call()
                row["peak MiB"] = peak_extra_memory(call, device) / 2**20
                calls[len(rows) - 1] = in_graph(call) if graph else call
            except Exception as error:  # one model's failure is a row, not the end of the run
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}"[:200]
    for index, milliseconds in time_calls(calls, device).items():
        row = rows[index]
        row["ms"] = milliseconds
        row["images/s"] = row["batch"] / milliseconds * 1e3
        row["GMAC/s"] = _gmacs(row["model"], works[0].size, small) * row["images/s"]
    return rows


def with_speeds(rows: list[Row]) -> list[Row]:
    """Rows with their speed as a multiple of the eager literal implementation's."""
    literal = {r["LDA"]: r["ms"] for r in rows if r["model"] == LITERAL and "ms" in r}
    default = literal.get("regional")
    return [
        {
            **row,
            "× literal": literal.get(row["LDA"], default) / row["ms"] if "ms" in row and literal else None,
        }
        for row in rows
    ]


@cache
def _gmacs(name: str, size: tuple[int, int], small: bool) -> float:
    with torch.device("meta"):
        model = build(PRODUCT if name == LITERAL else name, "regional", small)
        return count_complexity(model, (3, *size)).macs / 1e9


def profile_of(work: Work, device: str, small: bool) -> str:
    """What a call spends its time on, by kernel."""
    call = work.call(device, small)
    call(), call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        if device != "cpu":
            torch.cuda.synchronize()
    order = "self_cpu_time_total" if device == "cpu" else "self_cuda_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70)


# The run


def _plan(batches: tuple[int, ...], dense: tuple[int, int]) -> dict[str, list[Work]]:
    """The tables, and what is timed for each."""
    plan = {
        f"inference, batch {batch}": [Work(name, batch) for name in (PRODUCT, LITERAL, *OTHERS)]
        for batch in batches
    }
    main_batch = batches[min(1, len(batches) - 1)]
    for batch in batches:
        names = (PRODUCT, *OTHERS) if batch == main_batch else (PRODUCT,)
        plan[f"inference, batch {batch}"] += [Work(name, batch, compiled=True) for name in names]
    plan["train step"] = [Work(name, main_batch, training=True) for name in (PRODUCT, LITERAL, *OTHERS)]
    plan["train step"].append(Work(PRODUCT, main_batch, training=True, compiled=True))
    for training in (False, True):
        plan["dense train step" if training else "dense inference"] = [
            Work(name, 2, dense, training, lda=lda)
            for lda in ("regional", "spanning")
            for name in (PRODUCT, LITERAL)
        ]
    return plan


def _compile_and_time(work: Work, device: str, small: bool, turn: Any) -> list[Row]:
    """In a process of its own: compile, wait for a turn on the device, and time."""
    start = time.perf_counter()
    work.call(device, small)()
    seconds = time.perf_counter() - start
    with turn:
        return [{**row, "compiling, s": seconds} for row in work_table([work], device, small)]


class Run:
    """Results as they come, written after every section, so that a run that is cut short leaves what it has."""

    def __init__(self, out: Path, minutes: float, only: list[str]) -> None:
        self.only, self.out, self.end, self.start = (
            only,
            out,
            time.monotonic() + minutes * 60,
            time.monotonic(),
        )
        self.results: dict[str, Any] = {}

    def wants(self, name: str) -> bool:
        return any(part in name for part in self.only)

    def wait(self, future: Future[Any]) -> Any:
        """The result of a process beside this one, if it comes in time."""
        return future.result(max(0.0, self.end - time.monotonic()))

    def section(self, name: str, function: Callable[[], Any]) -> None:
        """Run a section and write its result. Without time for it, or when it fails, the result says so."""
        if not self.wants(name):
            return
        if time.monotonic() > self.end:
            self.results[name] = "not run: no time left"
        else:
            try:
                self.results[name] = function()
            except Exception as error:
                traceback.print_exc()
                self.results[name] = f"failed: {type(error).__name__}: {error}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"[{time.monotonic() - self.start:.0f} s] {name}", flush=True)
        self.save()

    def save(self) -> None:
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1, default=str))
        (self.out / "gpu.md").write_text(as_text(self.results))


def as_text(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(column for row in value for column in row))
            lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in value]
            text = "\n".join(lines)
        else:
            text = (
                f"```\n{value if isinstance(value, str) else json.dumps(value, indent=1, default=str)}\n```"
            )
        parts.append(f"## {name}\n\n{text}\n")
    return "\n".join(parts)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section starts after this long")
    parser.add_argument("--small", action="store_true", help="tiny models: a trial run")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="the sections whose names contain one of these"
    )
    options = parser.parse_args()
    device, small = options.device, options.small
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"  # in each of several processes
    run = Run(options.out, options.minutes, options.only)
    plan = _plan((1, 2) if small else (1, 64, 256), (96, 160) if small else (800, 1344))
    context = multiprocessing.get_context("spawn")
    turn = context.Manager().Lock()
    pool = ProcessPoolExecutor(1 if small else min(15, os.cpu_count() or 1), mp_context=context)
    try:
        _measure(run, plan, pool, turn, device, small)
    finally:
        for process in list(pool._processes.values()):  # what is not done by now is not waited for
            process.kill()
    found = {name: rows for name, rows in run.results.items() if "parity" in name}
    print(as_text({name: rows for name, rows in run.results.items() if name not in found}))
    off = [
        name for name, rows in found.items() if isinstance(rows, str) or not all(row["ok"] for row in rows)
    ]
    if off:
        raise SystemExit(f"not as the literal implementation: {', '.join(off)}; see {options.out}/gpu.md")


def _measure(
    run: Run, plan: dict[str, list[Work]], pool: ProcessPoolExecutor, turn: Any, device: str, small: bool
) -> None:
    names = list(VARIANTS)[:1] if small else list(VARIANTS)
    checks = {n: pool.submit(parity_of, n, device, False, small) for n in names if run.wants(f"parity: {n}")}
    compiled = {
        work: pool.submit(_compile_and_time, work, device, small, turn)
        for name, works in plan.items()
        for work in works
        if work.compiled and run.wants(f"{name}, compiled")
    }
    for n in names:
        if run.wants(f"compiled parity: {n}"):
            checks[f"{n}, compiled"] = pool.submit(parity_of, n, device, True, small)
    run.section("machine", lambda: _machine(device))
    for n in [n for n in names if n in checks]:
        run.section(f"parity: {n}", partial(run.wait, checks[n]))
    batch = 2 if small else 64
    with turn:
        run.section("attention", lambda: attention_table(device, batch))
    for name, works in plan.items():
        with turn:
            run.section(
                name, lambda works=works: work_table([w for w in works if not w.compiled], device, small)
            )
    for training in (False, True):
        with turn:
            work = Work(PRODUCT, batch, training=training)
            run.section(f"profile{', train step' * training}", partial(profile_of, work, device, small))
    for name, works in plan.items():
        futures = [compiled[work] for work in works if work in compiled]
        if futures:
            run.section(f"{name}, compiled", lambda fs=futures: [row for f in fs for row in run.wait(f)])
        if isinstance(run.results.get(name), list):
            more = run.results.pop(f"{name}, compiled", None)
            run.results[name] = with_speeds(run.results[name] + (more if isinstance(more, list) else []))
    for n in [n for n in names if f"{n}, compiled" in checks]:
        run.section(f"compiled parity: {n}", partial(run.wait, checks[f"{n}, compiled"]))
    run.save()


def _machine(device: str) -> Row:
    row: Row = {"torch": torch.__version__, "timm": timm.__version__, "device": device}
    if device == "cpu":
        return row
    row["device"] = torch.cuda.get_device_name(device)
    large = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    seconds = time_calls({"copy": partial(large.clone)}, device)["copy"] / 1e3
    row["copy, TB/s"] = 2 * large.numel() / seconds / 1e12
    row["bfloat16 product, TFLOP/s"] = max(matmul_peak(torch.bfloat16, device, 8192).values()) / 1e12
    return row


if __name__ == "__main__":
    main()
