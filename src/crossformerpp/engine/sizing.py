"""`trainer.batch_size: auto` and `trainer.accumulate: auto`: how many samples memory holds at once.

Two small batches are tried on a copy of the model. What a batch adds to the memory is linear in its samples.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_convert

from crossformerpp.data.sampling import SeededDataset, num_samples
from crossformerpp.data.split import Split
from crossformerpp.engine import processes
from crossformerpp.engine.memory import has_batch_norm, least_accumulation
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.recipes.schema import AUTO, BaseRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.memory import is_out_of_memory
from crossformerpp.tasks.module import TaskModule

GPU_SHARE = 0.85  # of a GPU's memory; the rest is for what the allocator cannot use and for larger images
CPU_SHARE = 0.5  # of the machine's memory, for it swaps or kills rather than complains
COPIES = 5  # of the weights: themselves, gradients, two averages of Adam, a moving average
BACKWARD = 1.5  # memory of a CPU's backward pass over what the forward pass keeps for it
LEAST_STEPS = 16  # of an epoch: a larger batch would make too few
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_batches(recipe: BaseRecipe) -> BaseRecipe:
    """The recipe with numbers in the place of `auto`; says on stderr which.

    Raises:
        ValueError: `batch_size: auto` without `optim.lr_batch_size`, or not even the smallest batch fits.
    """
    section = recipe.trainer
    if AUTO not in (section.batch_size, section.accumulate):
        return recipe
    if section.batch_size == AUTO and recipe.optim.lr_batch_size is None:
        raise ValueError(
            "trainer.batch_size=auto needs optim.lr_batch_size, the batch size that optim.lr is meant for: pass --set "
            "optim.lr_batch_size=NUMBER"
        )
    task, world = find_task(recipe.task), processes.world(section)
    split = task.split(recipe, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)  # all processes measure, and must choose alike
        module = task.module(recipe, split.class_names).train()
    fitting = samples_that_fit(module, split)
    multiple = module.batch_multiple
    if section.batch_size == AUTO:
        accumulate = section.accumulate or 1
        most = min(fitting, num_samples(split) // (LEAST_STEPS * world * accumulate))
        together = max(multiple, 1 << max(0, most.bit_length() - 1))  # a power of two
        size = together * world * accumulate
    else:
        size = section.batch_size
        module.recipe = _with_batches(recipe, size, 1)
        # batch norms see the images of a batch together: theirs is not divided by itself
        least = 1 if has_batch_norm(module) else -(-size // (world * max(fitting, 1)))
        possible = least_accumulation(module, world, least)
        accumulate = possible or max(1, size // (world * multiple))
    if processes.is_first():
        print(
            f"{fitting:,} image(s) fit into memory at once: trainer.batch_size={size}, trainer.accumulate={accumulate}",
            file=sys.stderr,
        )
    return _with_batches(recipe, size, accumulate)


def samples_that_fit(module: TaskModule, split: Split) -> int:
    """How many training samples a process can take at once, as measured with a few of them; at least 1."""
    device = torch.device("cpu")
    if processes.on_gpu(module.recipe.trainer):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    dataset = SeededDataset(split.dataset, module.recipe.trainer.seed)
    few = 2 * module.batch_multiple
    counts = [count for count in (few, 2 * few) if count <= num_samples(split)]
    if len(counts) < 2:
        return num_samples(split)
    # of samples that differ in size the largest of some
    drawn = sorted((dataset[0, index] for index in range(min(32, num_samples(split)))), key=_volume)
    used = [_memory_of_step(module, split.collate(drawn[-count:]), device) for count in counts]
    each = max(1.0, (used[1] - used[0]) / (counts[1] - counts[0]))
    weights = sum(p.numel() * p.element_size() for p in module.model.parameters()) * COPIES
    return max(1, int((memory(device, module.recipe) - weights) / each))


def memory(device: torch.device, recipe: BaseRecipe) -> float:
    """Bytes that a process may fill."""
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else "max"
    devices, _ = processes.layout(recipe.trainer)
    here = devices if isinstance(devices, int) else 1
    return CPU_SHARE * (min(total, int(text)) if text.isdigit() else total) / here


def _memory_of_step(module: TaskModule, batch: Any, device: torch.device) -> float:
    """Bytes of a forward and backward pass: the peak on a GPU, on a CPU what the passes keep."""
    trial = copy.deepcopy(module).to(device).train()
    batch = _moved(batch, device)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = _HALF.get(processes.precision(module.recipe.trainer))
    own = [device] if device.type == "cuda" else []  # fork_rng would start every GPU
    try:
        with (
            torch.random.fork_rng(own),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            torch.manual_seed(module.recipe.trainer.seed)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with torch.autocast(device.type, half, enabled=half is not None):
                loss = trial.training_step(batch, 0)
            loss.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            "out of memory with the smallest batch: pass smaller images or a smaller model"
        ) from None
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return BACKWARD * sum(kept.values())


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, dict):
        return {key: _moved(value, device) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(_moved(value, device) for value in part)
    return default_convert(part)


def _volume(part: Any) -> int:
    """Numbers in a sample."""
    if isinstance(part, Tensor):
        return part.numel()
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
    return sum(_volume(value) for value in values)


def _with_batches(recipe: BaseRecipe, batch_size: int, accumulate: int) -> BaseRecipe:
    values = recipe.model_dump()
    values["trainer"] |= {"batch_size": batch_size, "accumulate": accumulate}
    return parse_recipe(values, "with chosen batches")
