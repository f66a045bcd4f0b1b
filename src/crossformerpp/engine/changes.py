"""What may change between the interruption of a run and its resumption, and what changed in its data."""

import hashlib
from typing import Any

from crossformerpp.data.sampling import num_samples
from crossformerpp.data.split import Split
from crossformerpp.recipes.schema import BaseRecipe

# Settings that shape the saved state (weights, optimiser) or the numbering of the batches.
FIXED = (
    "task",
    "model.name",
    "model.options",
    "head",
    "detector",
    "frozen_backbone",
    "multi_label",
    "data.source",
    "data.val_fraction",
    "data.tiles",
    "ema",
    "optim.name",
    "optim.layer_decay",
    "optim.undecayed",
    "trainer.batch_size",
    "trainer.seed",
)
ALTHOUGH_BELOW = ("ema.decay", "ema.warmup")


def changes(before: BaseRecipe, now: BaseRecipe) -> list[str]:
    """A text `key: old → new` per changed setting.

    Raises:
        ValueError: A setting changed with which the run cannot go on; names all of them.
    """
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    texts = {key: f"{key}: {old.get(key)} → {new.get(key)}" for key in keys}
    refused = [
        text for key, text in texts.items() if _is_fixed(key, (before.ema is None) != (now.ema is None))
    ]
    if refused:
        raise ValueError(
            f"the run cannot go on with a changed {'; '.join(refused)}. Begin a new one; "
            "--set model.checkpoint=RUN starts it from this one's weights"
        )
    return list(texts.values())


def _is_fixed(key: str, is_ema_switched: bool) -> bool:
    if key in ALTHOUGH_BELOW and not is_ema_switched:
        return False
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def data_mark(split: Split) -> dict[str, Any]:
    """How many samples a split has, and hashes of their names and labels, which a checkpoint keeps."""
    digest = hashlib.sha256()
    for name in split.names:
        digest.update(name.encode("utf-8", "backslashreplace") + b"\0")
    mark = {"samples": num_samples(split), "names": digest.hexdigest()[:16] if split.names else None}
    if split.labels is not None:
        mark["labels"] = hashlib.sha256(repr(split.labels).encode()).hexdigest()[:16]
    return mark


def data_change(before: Any, split: Split) -> str | None:
    """How a split differs from what a checkpoint's mark says; None: not at all, as far as it says anything."""
    now = data_mark(split)
    if not isinstance(before, dict) or all(before.get(key, now[key]) == now[key] for key in now):
        return None
    if before.get("samples", now["samples"]) != now["samples"]:
        return f"{before['samples']} samples then, {now['samples']} now"
    if before.get("names", now["names"]) != now["names"]:
        return f"{now['samples']} samples as before, but others"
    return f"the same {now['samples']} samples, with other labels"
