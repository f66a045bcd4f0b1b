"""Speed of models beside each other: `crossformer bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.throughput import Protocol, Timing, matmul_peak, peak_extra_memory, time_calls
from crossformerpp.models import VARIANTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """The work that is timed: a forward pass, or with `training` a whole step (forward, backward, AdamW)."""

    batch_size: int
    height: int
    width: int
    dtype: str = "float32"
    compiled: bool = False
    training: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Measurement:
    """One model under one setting; times in milliseconds per batch, rates per second, memory in bytes."""

    model: str
    batch_size: int
    height: int
    width: int
    dtype: str
    compiled: bool
    training: bool
    device: str
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    images_per_s: float
    gmacs: float
    gflops_per_s: float
    peak_share: float
    peak_extra_bytes: int
    speed_ratio: float


def bench(
    names: Sequence[str],
    settings: Sequence[Setting],
    options: Mapping[str, Any] | None = None,
    seconds: float = 10.0,
    protocol: Protocol = "turns",
) -> Iterator[Measurement]:
    """Time models under each setting.

    Args:
        names: timm names.
        options: Overrides for CrossFormer models, such as `group_sizes`.
        seconds: About how long to time each setting in turns.
        protocol: "turns", all models in turn, every run waited for; or "paper", 50 runs to warm up and 30 back to back.

    Yields:
        Per setting a measurement of every model. `peak_share` is of the fastest matrix product measured here in the
        same type; a training step counts as three forward passes. `speed_ratio` is the last model's median time over
        this one's.

    Raises:
        ValueError: As `build`; or options are given, and no CrossFormer.
    """
    if options and not any(name in VARIANTS for name in names):
        raise ValueError(
            f"options {dict(options)} are for CrossFormers, and none is among {', '.join(names)}"
        )
    peaks: dict[tuple[str, str], float] = {}
    for setting in settings:
        key = setting.dtype, setting.device
        if key not in peaks:
            peaks[key] = max(matmul_peak(DTYPES[setting.dtype], setting.device).values())
        models = {name: build(name, options) for name in names}
        macs = {
            name: count_complexity(deepcopy(model).to("meta"), (3, setting.height, setting.width)).macs
            for name, model in models.items()
        }
        calls = {name: timed_call(model, setting) for name, model in models.items()}
        timings = time_calls(calls, protocol, seconds, setting.device)
        last = timings[names[-1]].median
        for name, timing in timings.items():
            memory = peak_extra_memory(calls[name], setting.device)
            yield _measurement(name, setting, timing, macs[name], peaks[key], last, memory)


def _measurement(
    name: str, setting: Setting, timing: Timing, macs: int, peak: float, last: float, memory: int
) -> Measurement:
    """One model's; `peak` in FLOP/s, `last` the last model's median in seconds, `memory` in bytes."""
    rate = setting.batch_size / timing.median
    flops = 2 * macs * rate * (3 if setting.training else 1)
    return Measurement(
        model=name,
        **asdict(setting),
        median_ms=timing.median * 1e3,
        low_ms=timing.low * 1e3,
        high_ms=timing.high * 1e3,
        runs=timing.runs,
        images_per_s=rate,
        gmacs=macs / 1e9,
        gflops_per_s=flops / 1e9,
        peak_share=flops / peak,
        peak_extra_bytes=memory,
        speed_ratio=last / timing.median,
    )


def build(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A model with random weights, the same at every call.

    Raises:
        ValueError: The name is unknown, or the model takes no such option.
    """
    torch.manual_seed(0)
    if not timm.is_model(name):
        raise ValueError(f"no model {name!r}; `timm.list_models()` in Python lists them")
    try:
        return timm.create_model(name, **(options or {}) if name in VARIANTS else {})
    except TypeError as error:
        raise ValueError(f"options of {name}: {error}") from None


def timed_call(model: nn.Module, setting: Setting) -> Callable[[], Any]:
    """The call that is timed under a setting, on random images; moves the model to the setting's device."""
    dtype = DTYPES[setting.dtype]
    x = torch.randn(setting.batch_size, 3, setting.height, setting.width, device=setting.device)
    model = model.to(setting.device)
    if setting.training:
        return _training_step(model.train(), x, setting)
    model, x = model.to(dtype).eval(), x.to(dtype)
    if not setting.compiled:
        return torch.inference_mode()(lambda: model(x))
    from torch._inductor import config

    with torch.no_grad(), config.patch(freezing=True):
        compiled = torch.compile(model, dynamic=False)  # as if alone, whatever sizes came before
        compiled(x)
    return torch.no_grad()(lambda: compiled(x))


def _training_step(model: nn.Module, x: Tensor, setting: Setting) -> Callable[[], Any]:
    dtype = DTYPES[setting.dtype]
    target = torch.zeros(len(x), dtype=torch.long, device=setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model, dynamic=False) if setting.compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()

    return step
