"""The names of the authors' weights and this package's, as tables of stems."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# Released name -> ours. `{s}` stands for a number, the same on both sides; earlier rows win.
_RENAMED = (
    ("patch_embed.projs.{i}", "stages.0.embedding.projections.{i}"),
    ("patch_embed.norm", "stages.0.embedding.norm"),
    ("layers.{s}.downsample.reductions.{i}", "stages.{s+1}.embedding.projections.{i}"),
    ("layers.{s}.downsample.norm", "stages.{s+1}.embedding.norm"),
    ("layers.{s}.blocks.{b}.attn.pos.pos_proj", "stages.{s}.blocks.{b}.attn.position_bias.embed"),
    (
        "layers.{s}.blocks.{b}.attn.pos.pos{k}.{i}",
        "stages.{s}.blocks.{b}.attn.position_bias.layers.{k-1}.{i}",
    ),
    ("layers.{s}.blocks.{b}.ex_conv", "stages.{s}.blocks.{b}.cooling.conv"),
    ("layers.{s}.blocks.{b}.ex_ln", "stages.{s}.blocks.{b}.cooling.norm"),
    *(
        (f"layers.{{s}}.blocks.{{b}}.{part}", f"stages.{{s}}.blocks.{{b}}.{part}")
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
    ("norm", "norm"),
    ("head", "head.fc"),
)
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HOLE = re.compile(r"\{(\w)([+-]\d+)?\}")  # {s}, {s+1}, {k-1}


def from_released(state: Mapping[str, T]) -> dict[str, T]:
    """The same values under this package's names; only keys are looked at.

    Raises:
        ValueError: keys that no released checkpoint has; nothing is dropped silently.
    """
    return rename(state, _RENAMED, "the released")


def to_released(state: Mapping[str, T]) -> dict[str, T]:
    """The same values under the names of the authors' implementation: the inverse of `from_released`.

    Raises:
        ValueError: keys that have no released name, for example those of another position representation.
    """
    return rename(state, [(ours, released) for released, ours in _RENAMED], "this package's")


def rename(state: Mapping[str, T], rows: Iterable[tuple[str, str]], whose: str) -> dict[str, T]:
    """The same values under other names, by a table of stems such as `layers.{s}.norm`; `{s}` stands for a number.

    Raises:
        ValueError: keys that no row knows; `whose` says in the error whose names the rows are.
    """
    patterns = [(re.compile(_as_regex(old)), _numbers(old), new) for old, new in rows]
    renamed: dict[str, T] = {}
    unknown = []
    for key, value in state.items():
        stem, _, leaf = key.rpartition(".")
        for pattern, shifts, new in patterns:
            match = pattern.fullmatch(stem)
            if match is not None and leaf in _LEAVES:
                numbers = {name: int(match[name]) - shift for name, shift in shifts.items()}
                renamed[f"{_fill(new, numbers)}.{leaf}"] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(state)} keys are none of {whose} names: {some(unknown)}")
    assert len(renamed) == len(state), "two names became one"
    return renamed


def _as_regex(template: str) -> str:
    return _HOLE.sub(lambda hole: rf"(?P<{hole[1]}>0|[1-9]\d*)", template.replace(".", r"\."))


def _numbers(template: str) -> dict[str, int]:
    """`a.{s+1}.b` -> {"s": 1}: by how much each number in the text exceeds the number it stands for."""
    return {hole[1]: int(hole[2] or 0) for hole in _HOLE.finditer(template)}


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    return _HOLE.sub(lambda hole: str(numbers[hole[1]] + int(hole[2] or 0)), template)


def some(names: list[str], separator: str = ", ", limit: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f"{separator}and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
