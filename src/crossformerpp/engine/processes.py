"""How many processes train together, who starts them, and how they share the work."""

import os
from functools import partial
from typing import Any

import torch
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from crossformerpp.recipes.schema import BaseRecipe, TrainerSection

SHARD = 2_000_000  # parameters from which FSDP gives a part its own shard: about a block of the base models


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]


def layout(section: TrainerSection) -> tuple[int | str, int]:
    """Devices per machine and machines: what torchrun or SLURM started, else what the recipe says.

    Raises:
        ValueError: The recipe asks for other numbers than were started.
    """
    started = _started()
    if started is None:
        return section.devices, section.nodes
    for name, allowed, asked, found in (
        ("devices", ("auto", started[0]), section.devices, started[0]),
        ("nodes", (1, started[1]), section.nodes, started[1]),
    ):
        if asked not in allowed:
            raise ValueError(f"trainer.{name} is {asked}, but {found} were started; leave it out")
    return started


def world(section: TrainerSection) -> int:
    """How many processes there will be, as far as it is known before they start."""
    devices, nodes = layout(section)
    if devices == "auto":
        devices = torch.cuda.device_count() if on_gpu(section) else 1
    assert isinstance(devices, int)
    return devices * nodes


def on_gpu(section: TrainerSection) -> bool:
    """Whether a CUDA GPU trains."""
    return section.accelerator in ("auto", "cuda") and torch.cuda.is_available()


def precision(section: TrainerSection) -> Any:
    """The precision that a recipe means."""
    if section.precision != "auto":
        return section.precision
    is_bf16 = on_gpu(section) and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if is_bf16 else "32-true"


def settings(recipe: BaseRecipe) -> dict[str, Any]:
    """The Trainer's arguments for these processes.

    Raises:
        ValueError: The strategy does not go with the devices or the recipe.
    """
    section = recipe.trainer
    devices, nodes = layout(section)
    strategy: Any = section.strategy
    if strategy == "fsdp":
        if not on_gpu(section):
            raise ValueError("trainer.strategy=fsdp needs GPUs; use ddp on CPUs")
        if recipe.optim.clip_norm is not None or recipe.optim.weight_decay:
            raise ValueError(
                "trainer.strategy=fsdp can neither clip gradients nor tell parameters without weight decay, as its "
                "parameters are flat: pass --set optim.clip_norm=null --set optim.weight_decay=0, or use ddp"
            )
        if recipe.ema is not None:
            raise ValueError("trainer.strategy=fsdp supports no moving average: pass --set ema=null")
        policy = partial(size_based_auto_wrap_policy, min_num_params=SHARD)
        strategy = FSDPStrategy(auto_wrap_policy=policy, state_dict_type="full")
    together = world(section)
    return {
        "devices": devices,
        "num_nodes": nodes,
        "strategy": strategy,
        # torch has it for GPUs only; of one process there is nothing to share
        "sync_batchnorm": section.sync_batchnorm and on_gpu(section) and together > 1,
    }


def _started() -> tuple[int, int] | None:
    if torch.distributed.is_torchelastic_launched():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return here, everywhere // here
    is_slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
    if is_slurm:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None
