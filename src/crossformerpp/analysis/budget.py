"""The accuracy of one network under many groupings, against what they cost: search space, front and search.

Nothing here evaluates: `measure` is a function that the search is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from crossformerpp.layers.group_size import Groups
from crossformerpp.layers.grouping import Interval, Lda

_TRIES = 50  # changes tried for a setting that is not yet known
_GREEDY_SHARE = 0.4  # of the evaluations go to the greedy walk, the rest to evolution
_GREEDY_WIDTH = 4  # cheaper neighbours that a step of the walk measures


@dataclass(frozen=True)
class Setting:
    """A way to run a network: the groups of its blocks, and the size of images.

    Attributes:
        size: Side, or shorter side, of images in pixels; None where the recipe names none.
    """

    groups: Groups
    size: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.groups.options(), "size": self.size}


@dataclass(frozen=True)
class Point:
    """A measured setting.

    Attributes:
        macs: Multiply-accumulates of one image.
        ms: Milliseconds of one image, median.
        score: The task's metric over all images, as `eval` gives it.
        search: The same over the images that the search looks at,
        held_out: and over the others, which it never sees.
        resampled: `held_out` over images drawn again with repetition, the same draws for every point.
    """

    setting: Setting
    macs: int
    ms: float
    score: float
    search: float
    held_out: float
    resampled: tuple[float, ...] = ()


def pareto_front(points: Sequence[Point], cost: Literal["macs", "ms"] = "macs") -> list[Point]:
    """The points than which none is both cheaper and more accurate in the search's images, cheapest first."""
    front: list[Point] = []
    known = [point for point in points if not np.isnan(point.search)]
    for point in sorted(known, key=lambda p: (getattr(p, cost), -p.search)):
        if not front or point.search > front[-1].search:
            front.append(point)
    return front


@dataclass(frozen=True)
class Space:
    """The settings that a search may choose from.

    Attributes:
        group_sizes: Choices of G per stage, ascending.
        intervals: Choices of I, for all stages.
        lda: Choices of LDA's grouping, per stage.
        sizes: Choices of the images' size.
        depths: Blocks per stage.
        per: Whether the blocks of a stage have one G and I, or each its own.
    """

    group_sizes: tuple[tuple[int, ...], ...]
    intervals: tuple[Interval, ...]
    lda: tuple[Lda, ...]
    sizes: tuple[int | None, ...]
    depths: tuple[int, ...]
    per: Literal["stage", "block"] = "stage"

    def count(self) -> int:
        """How many settings there are, those that group a map alike counted apart."""
        number = len(self.sizes)
        for choices, depth in zip(self.group_sizes, self.depths, strict=True):
            own = len(choices) * len(self.intervals)
            number *= len(self.lda) * own ** (depth if self.per == "block" else 1)
        return number

    def uniform(self, place: int, size: int | None) -> Setting:
        """The choice at `place` of every stage's group sizes, the first interval and LDA's first grouping."""
        sizes = [
            (choices[place],) * depth for choices, depth in zip(self.group_sizes, self.depths, strict=True)
        ]
        gaps = [(self.intervals[0],) * depth for depth in self.depths]
        return _normal(Setting(Groups(tuple(sizes), tuple(gaps), (self.lda[0],) * len(self.depths)), size))

    def random(self, generator: np.random.Generator) -> Setting:
        """Every choice made evenly and by itself."""
        setting = self.uniform(0, self.sizes[0])
        for gene in self.genes():
            setting = self.with_gene(setting, gene, _any(generator, self.choices(gene)))
        return _normal(setting)

    def mutated(self, setting: Setting, generator: np.random.Generator) -> Setting:
        """One or two choices made again."""
        for _ in range(int(generator.integers(1, 3))):
            gene = _any(generator, self.genes())
            setting = self.with_gene(setting, gene, _any(generator, self.choices(gene)))
        return _normal(setting)

    def crossed(self, one: Setting, other: Setting, generator: np.random.Generator) -> Setting:
        """Every stage from one of two settings."""
        from_other = generator.random(len(self.depths)) < 0.5
        parts: list[Any] = [
            tuple(theirs if swap else ours for ours, theirs, swap in zip(a, b, from_other, strict=True))
            for a, b in zip(one.groups, other.groups, strict=True)
        ]
        return Setting(Groups(*parts), _any(generator, (one.size, other.size)))

    def neighbours(self, setting: Setting) -> Iterator[Setting]:
        """All settings that differ by one choice."""
        for gene in self.genes():
            for choice in self.choices(gene):
                other = _normal(self.with_gene(setting, gene, choice))
                if other != setting:
                    yield other

    def genes(self) -> list[tuple[str, int, int]]:
        """What can be chosen: (kind, stage, block)."""
        places = [
            (stage, block)
            for stage, depth in enumerate(self.depths)
            for block in range(depth if self.per == "block" else 1)
        ]
        stages = [("lda", stage, 0) for stage in range(len(self.depths))]
        blocks = [(kind, *place) for kind in ("group_sizes", "intervals") for place in places]
        return [gene for gene in (*blocks, *stages, ("size", 0, 0)) if len(self.choices(gene)) > 1]

    def choices(self, gene: tuple[str, int, int]) -> Sequence[Any]:
        """Of a gene."""
        kind, stage, _ = gene
        if kind == "group_sizes":
            return self.group_sizes[stage]
        return {"intervals": self.intervals, "lda": self.lda, "size": self.sizes}[kind]

    def with_gene(self, setting: Setting, gene: tuple[str, int, int], choice: Any) -> Setting:
        """The setting with one choice made otherwise."""
        kind, stage, block = gene
        if kind == "size":
            return replace(setting, size=choice)
        stages = list(getattr(setting.groups, kind))
        if kind == "lda":
            stages[stage] = choice
        else:
            values = list(stages[stage])
            values[block : block + 1 if self.per == "block" else None] = (
                [choice] if self.per == "block" else [choice] * len(values)
            )
            stages[stage] = tuple(values)
        return replace(setting, groups=setting.groups._replace(**{kind: tuple(stages)}))


def _normal(setting: Setting) -> Setting:
    """Where spanning LDA has groups of its own size, the G of the block before: no warning of an unused size then."""
    sizes = []
    for own, gaps, lda in zip(*setting.groups, strict=True):
        of_blocks = list(own)
        for block in range(1, len(own), 2):
            if lda == "spanning" and gaps[block] != "adaptive":
                of_blocks[block] = of_blocks[block - 1]
        sizes.append(tuple(of_blocks))
    return replace(setting, groups=setting.groups._replace(group_sizes=tuple(sizes)))


def _any(generator: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(generator.integers(len(choices)))]


@dataclass(frozen=True)
class Search:
    """Looks for the front: greedily from the first setting down to cheaper ones, then by evolution.

    Evolution takes one or two settings of the front so far, crosses them or not, and makes one or two choices again.
    What it proposes follows from the seed and from what was measured, so that a search whose measurements were kept
    goes the same way again.

    Attributes:
        starts: Settings that are measured first; the greedy walk begins at the first.
        measure: Measures a setting.
        macs: Of a setting.
        key: Equal for settings that are the same network; only one of them is measured.
    """

    space: Space
    starts: Sequence[Setting]
    measure: Callable[[Setting], Point]
    macs: Callable[[Setting], int]
    key: Callable[[Setting], Hashable]

    def run(self, evaluations: int, seed: int) -> Iterator[Point]:
        """The points as they are measured, at most `evaluations`; fewer where the space has no more."""
        generator, found = np.random.default_rng(seed), dict[Hashable, Point]()

        def measured(settings: Sequence[Setting], limit: int) -> Iterator[Point]:
            for setting in settings:
                if len(found) < limit and (key := self.key(setting)) not in found:
                    found[key] = self.measure(setting)
                    yield found[key]

        yield from measured(self.starts, evaluations)
        greedy = round(len(found) + _GREEDY_SHARE * (evaluations - len(found)))
        now: Point | None = next(iter(found.values()))
        while now is not None and len(found) < greedy:
            cheaper = self._cheaper(now, found)
            order = generator.permutation(len(cheaper))[:_GREEDY_WIDTH]
            tried = list[Point]()
            for point in measured([cheaper[i] for i in order], greedy):
                tried.append(point)
                yield point
            start = now
            now = max(
                tried,
                key=lambda p: ((p.search - start.search) / (start.macs - p.macs), -p.macs),
                default=None,
            )
        while len(found) < evaluations and (setting := self._offspring(found, generator)) is not None:
            yield from measured([setting], evaluations)

    def _cheaper(self, point: Point, found: dict[Hashable, Point]) -> list[Setting]:
        """Neighbours that cost less, one of those that are the same network, measured ones left out."""
        cheaper = {self.key(s): s for s in self.space.neighbours(point.setting) if self.macs(s) < point.macs}
        return [setting for key, setting in cheaper.items() if key not in found]

    def _offspring(self, found: dict[Hashable, Point], generator: np.random.Generator) -> Setting | None:
        """A setting that was not measured yet; None if none is found."""
        front = pareto_front(list(found.values()))
        for number in range(2 * _TRIES):
            parent = _any(generator, front).setting
            if generator.random() < 0.5:
                parent = self.space.crossed(parent, _any(generator, front).setting, generator)
            setting = self.space.mutated(parent, generator)
            if number >= _TRIES:  # the front's surroundings are known
                setting = self.space.random(generator)
            if self.key(setting) not in found:
                return setting
        return None
