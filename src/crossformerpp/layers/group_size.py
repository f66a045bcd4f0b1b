"""Group-size policies: how large a group each block attends in (progressive group size, Sec. 4.1).

Pure functions from a policy to one group size per block. A policy is what users write:

- one size per stage, `(4, 4, 14, 7)` — the paper's progressive sizes, and the fixed ones of CrossFormer;
- one size per block of a stage, `(4, 4, (4, 7, 10, 14), 7)`;
- the name of a `GroupPolicy`, `"linear"`: one size per block, from the depths and the side of the first map.

`analysis.group_choice` chooses sizes from a trained model's attention.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from crossformerpp.layers.grouping import Distance, GroupRule, Interval, Lda

PerBlock = int | Sequence[int]

GroupPolicy = Literal["constant", "4_14", "linear", "linear_div", "alter", "7_14"]
_PROGRESSIVE = (4, 4, 14, 7)  # the paper's PGS


def policy_group_sizes(policy: str, depths: Sequence[int], side: int = 56) -> tuple[tuple[int, ...], ...]:
    """One size per block by a policy's name.

    The paper's own words are "constant", 7 everywhere, and "4_14", `linear_group_sizes` from 4 to 14. The others are
    those of the released code. In its "linear", block n of N has the fraction f = 4/S + n·(1 − 4/S)/N of its map's
    side, S the first map's side, and a size of at least 4: from 4 tokens to nearly the whole map. From it derive

    - "linear_div": a fraction above 1/2 becomes the whole side; in stage 3 half of it up to 3/4, the whole side above;
    - "alter": a fraction above 1/2 becomes the whole side; in stage 3 half of it in the 1st, 3rd, … block and the whole
      side in the others.

    "7_14" is PGS's 4, 4, 14, 7 with half of stage 3's size in its first four blocks.

    Args:
        side: Of the first stage's map in tokens: 56 for images of 224. Each later stage halves it.

    Raises:
        ValueError: There is no such policy, or a fixed one has another number of stages.
    """
    if policy not in get_args(GroupPolicy):
        near = difflib.get_close_matches(policy, get_args(GroupPolicy), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no group size policy {policy!r}: choose one of {', '.join(get_args(GroupPolicy))}{hint}"
        )
    if policy == "constant":
        return tuple((7,) * depth for depth in depths)
    if policy == "4_14":
        return linear_group_sizes(depths)
    if policy == "7_14":
        if len(depths) != len(_PROGRESSIVE):
            raise ValueError(
                f"group size policy '7_14' is for {len(_PROGRESSIVE)} stages, here are {len(depths)}"
            )
        sizes = [[size] * depth for size, depth in zip(_PROGRESSIVE, depths, strict=True)]
        sizes[2][:4] = [_PROGRESSIVE[2] // 2] * len(sizes[2][:4])
        return tuple(map(tuple, sizes))
    return _fractional_group_sizes(policy, depths, side)


def policy_sizes(
    group_sizes: str | Sequence[PerBlock],
    depths: Sequence[int],
    img_size: int | tuple[int, int] = 224,
    stride: int = 4,
) -> Sequence[PerBlock]:
    """The sizes that a policy's name stands for; sizes that are given already stay as they are.

    Args:
        img_size: Images whose maps the policy is for, a side or (height, width), of which the shorter counts.
        stride: Of the first stage.

    Raises:
        ValueError: As `policy_group_sizes`.
    """
    if not isinstance(group_sizes, str):
        return group_sizes
    shorter = img_size if isinstance(img_size, int) else min(img_size)
    return policy_group_sizes(group_sizes, depths, side=-(-shorter // stride))


def _fractional_group_sizes(policy: str, depths: Sequence[int], side: int) -> tuple[tuple[int, ...], ...]:
    """Of "linear", "linear_div" and "alter"."""
    least = min(1.0, 4 / side)
    number, per_stage = 0, []
    for stage, depth in enumerate(depths):
        own, sizes = -(-side // 2**stage), []
        for block in range(depth):
            fraction = least + number * (1 - least) / sum(depths)
            size = max(4, math.ceil(fraction * own))
            if policy != "linear" and fraction > 1 / 2:
                is_half = stage == 2 and (fraction <= 3 / 4 if policy == "linear_div" else block % 2 == 0)
                size = -(-own // 2) if is_half else own
            sizes.append(size)
            number += 1
        per_stage.append(tuple(sizes))
    return tuple(per_stage)


def linear_group_sizes(
    depths: Sequence[int], first: int = 4, last: int = 14, final_stage: int | None = 7
) -> tuple[tuple[int, ...], ...]:
    """Sizes that grow linearly from `first` to `last` over all blocks before the final stage, rounded to integers.

    Args:
        final_stage: Size of the last stage, where at 224 a group of 7 is the whole map; None counts it in.

    Raises:
        ValueError: A size is below 1.
    """
    growing = list(depths if final_stage is None else depths[:-1])
    steps = max(sum(growing) - 1, 1)
    sizes = [round(first + (last - first) * i / steps) for i in range(sum(growing))]
    per_stage, start = [], 0
    for depth in growing:
        per_stage.append(tuple(sizes[start : start + depth]))
        start += depth
    if final_stage is not None:
        per_stage.append((final_stage,) * depths[-1])
    return expand_per_block(per_stage, depths, "group size")


def expand_per_block(
    values: Sequence[PerBlock | Interval | Sequence[Interval]],
    depths: Sequence[int],
    name: str,
    words: Sequence[str] = (),
) -> tuple[tuple[Any, ...], ...]:
    """One value per stage or per block -> one per block.

    Args:
        words: What may stand in a number's place; one alone is for all.

    Raises:
        ValueError: A stage or block is missing or too many, or a value is below 1.
    """
    per_stage: Sequence[Any] = (values,) * len(depths) if isinstance(values, str) else values
    if len(per_stage) != len(depths):
        raise ValueError(f"{len(per_stage)} {name}s given for {len(depths)} stages: give one per stage")
    expanded = []
    for stage, (value, depth) in enumerate(zip(per_stage, depths, strict=True), start=1):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        blocks = tuple(cast("Sequence[Any]", value)) if is_list else (value,) * depth
        if len(blocks) != depth:
            raise ValueError(
                f"stage {stage} has {depth} blocks but {len(blocks)} {name}s: give one for all or one per block"
            )
        for block in blocks:
            if block in words:
                continue
            if isinstance(block, bool) or not isinstance(block, int) or block < 1:
                wanted = " or ".join(["a whole number of at least 1", *map(repr, words)])
                raise ValueError(f"{name} {block!r} in stage {stage}: it must be {wanted}")
        expanded.append(blocks)
    return tuple(expanded)


class Groups(NamedTuple):
    """How the blocks of a network group their tokens: G and I per block of each stage, LDA's grouping per stage.

    Attributes:
        group_sizes, intervals, lda: As `CrossFormer` takes them.
    """

    group_sizes: tuple[tuple[int, ...], ...]
    intervals: tuple[tuple[Interval, ...], ...]
    lda: tuple[Lda, ...]

    @classmethod
    def of(cls, rules: Sequence[Sequence[GroupRule]]) -> Groups:
        """From the rules of every block of every stage; the inverse of `rules`."""
        return cls(
            tuple(tuple(rule.group_size for rule in stage) for stage in rules),
            tuple(tuple(rule.interval for rule in stage) for stage in rules),
            tuple(stage[0].lda for stage in rules),
        )

    def rules(self) -> list[list[GroupRule]]:
        """The rule of every block of every stage.

        Raises:
            ValueError: As `rule_per_block`.
        """
        return rule_per_block([len(sizes) for sizes in self.group_sizes], *self)

    def options(self) -> dict[str, Any]:
        """As a recipe's `model.options` hold them: one value in the place of equal ones of a stage."""
        return {
            "group_sizes": [_one_or_all(sizes) for sizes in self.group_sizes],
            "intervals": [_one_or_all(gaps) for gaps in self.intervals],
            "lda": list(self.lda),
        }


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


def rule_per_block(
    depths: Sequence[int],
    group_sizes: Sequence[PerBlock],
    intervals: Sequence[Interval | Sequence[Interval]],
    lda: Lda | Sequence[Lda],
) -> list[list[GroupRule]]:
    """How every block of every stage groups its tokens; blocks are short and long in turn.

    Raises:
        ValueError: As `expand_per_block`, or `lda` names no grouping or has not one per stage.
    """
    words = [lda] * len(depths) if isinstance(lda, str) else list(lda)
    if len(words) != len(depths):
        raise ValueError(
            f"lda has {len(words)} entries for {len(depths)} stages: give one for all or one per stage"
        )
    for word in words:
        if word not in get_args(Lda):
            nearest = difflib.get_close_matches(str(word), get_args(Lda), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"lda {word!r}: choose one of {', '.join(get_args(Lda))}; the nearest is {nearest!r}"
            )
    sizes = expand_per_block(group_sizes, depths, "group size")
    gaps = expand_per_block(intervals, depths, "interval", words=("adaptive",))
    stages = []
    for stage, word in enumerate(words):
        distances: list[Distance] = ["long" if block % 2 else "short" for block in range(depths[stage])]
        own = [
            GroupRule(*of_block, word) for of_block in zip(distances, sizes[stage], gaps[stage], strict=True)
        ]
        _explain_unused_sizes(own, stage)
        stages.append(own)
    return stages


def _explain_unused_sizes(rules: Sequence[GroupRule], stage: int) -> None:
    """Warn of a size that LDA blocks alone have: spanning groups have sides of their own."""
    of_sda = {rule.group_size for rule in rules if rule.distance == "short"}
    for block, (distance, size, interval, lda) in enumerate(rules):
        if (distance, lda) == ("long", "spanning") and interval != "adaptive" and size not in of_sda:
            warnings.warn(
                f"group size {size} of stage {stage + 1}, block {block + 1}: spanning LDA has groups of the map's "
                f"sides divided by the interval {interval}; the size only decides which maps are one group. Change the "
                "interval, or choose lda='regional'",
                stacklevel=3,
            )
