"""Measure a trained run under other groupings and image sizes: accuracy, multiply-accumulates, milliseconds.

Every setting is evaluated as `evaluate` would with `--set`, and logged; a study that is begun again takes from its log
what it has measured already, and so goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device

from crossformerpp.analysis.attention_maps import BlockAttention, block_attentions
from crossformerpp.analysis.budget import Point, Setting, Space
from crossformerpp.analysis.cascade import Answers
from crossformerpp.analysis.group_choice import choose_groups
from crossformerpp.analysis.group_costs import GroupCosts
from crossformerpp.analysis.throughput import time_in_turn
from crossformerpp.data.split import Split
from crossformerpp.data.writing import JsonLines
from crossformerpp.engine import evaluated_recipe, judge, warn_of_changed_data
from crossformerpp.engine.changes import data_mark
from crossformerpp.engine.fitting import threads
from crossformerpp.layers.grouping import Interval
from crossformerpp.recipes.load import dump_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks import find_task
from crossformerpp.tasks.elastic import find_backbone
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.plug import Evaluation
from crossformerpp.tasks.points import SettingSection, image_size, recipe_at
from crossformerpp.tasks.saved import open_saved

_HALVES, _DRAWS = 0, 1  # seeds: of the images that the search looks at, of the draws of the others
_ALONE = ["model.compile=false", "trainer.devices=1", "trainer.nodes=1", "trainer.strategy=auto"]
_TIMED_SECONDS = (
    0.5  # for each setting as it is measured, and for each of the front when they are timed in turn
)
_WARM_UP = 3  # calls after a change of groups that are not timed
_LOOKED_AT = 32  # images whose attention is measured
_GROUP_SIZES = (2, 4, 7, 10, 14)  # the paper's [4, 14], and less for small images
_LOGGED = {"setting", "macs", "ms", "score", "search", "held_out", "resampled"}  # keys of a log's line
_TRIES = 1000  # random settings looked at for those of equal cost


class Rival(NamedTuple):
    """What the front is compared with at a budget, in multiply-accumulates."""

    budget: int
    name: str
    setting: Setting


class Judge:
    """Measures settings of one run on its validation data, or on other data."""

    def __init__(self, path: Path, root: Path | None = None, resamples: int = 400) -> None:
        """
        Args:
            root: A folder of data in the place of the run's own.
            resamples: How often the held-out images are drawn again, for confidence intervals.

        Raises:
            ValueError: The run or the data cannot be used, or the network has no CrossFormer in it.
        """
        self.saved, self.resamples = open_saved(path), resamples
        self.recipe = evaluated_recipe(self.saved, root, _ALONE)
        position = str(self.recipe.model.options.get("position"))
        if position in ("rpb", "rpb-offline"):
            raise ValueError(
                f"{path}: its position is {position}, a table for groups of one size; dpb and rpb-online serve any"
            )
        self._which: Any = "val" if root is None else "test"
        self._splits: dict[int | None, Split] = {}
        self._costs: dict[int | None, GroupCosts] = {}
        self._attentions: list[BlockAttention] | None = None
        self._log: JsonLines | None = None
        self._measured: dict[str, dict[str, Any]] = {}  # the figures of a point, by its setting
        uses_gpu = self.recipe.trainer.accelerator in ("auto", "cuda") and torch.cuda.is_available()
        self._device = torch.device("cuda" if uses_gpu else "cpu")
        size = image_size(self.recipe)
        module = self._module(self.recipe)
        self.own = Setting(find_backbone(module.judged).groups, size)
        self.metric = module.monitor

    @property
    def device(self) -> str:
        """Where it times."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name()
        with threads(self.recipe.trainer):
            return f"CPU, {torch.get_num_threads()} thread(s)"

    def open_log(self, path: Path) -> None:
        """Log what is measured, and take from the log what was.

        Raises:
            ValueError: The log is of another run, other data or other draws, or damaged.
        """
        page = hashlib.sha256(dump_recipe(self.recipe).encode()).hexdigest()[:16]
        if self._which == "val":
            root = str(self.recipe.model_dump()["data"]["root"])
            warn_of_changed_data(self.saved.data.get("val"), self.split(self.own.size), root)
        about = {"step": self.saved.step, "recipe": page, "data": data_mark(self.split(self.own.size))}
        about |= {"resamples": self.resamples, "device": self._device.type}
        log = JsonLines(path)
        if not log.entries:
            log.append(about)
        elif log.entries[0] != about:
            raise ValueError(
                f"{path}: measured on another checkpoint, data or device, or with other --resamples; pass --overwrite, "
                "or choose another --out"
            )
        self._log = log
        for number, entry in enumerate(log.entries[1:], start=2):
            if not isinstance(entry, dict) or entry.keys() != _LOGGED:
                raise ValueError(
                    f"{path}: line {number} is no measurement of a setting; delete it, or the file"
                )
            self._measured[_name(entry["setting"])] = {k: v for k, v in entry.items() if k != "setting"}

    def key(self, setting: Setting) -> Hashable:
        """Equal for settings that are the same network on the first image."""
        return setting.size, self._costs_at(setting.size).key(setting.groups)

    def macs(self, setting: Setting) -> int:
        """Multiply-accumulates of the first image, from its pixels to its result."""
        return self._costs_at(setting.size).macs(setting.groups)

    def map_sides(self, size: int | None) -> list[int]:
        """The longer side of every stage's map, in tokens, for images of a size."""
        return self._costs_at(size).sides

    def measure(self, setting: Setting) -> Point:
        """Evaluate and time a setting, unless the log has it."""
        name = _name(setting.to_json())
        if name not in self._measured:
            figures = self._figures(setting)
            if self._log is not None:
                self._log.append({"setting": setting.to_json(), **figures})
            self._measured[name] = figures
        figures = {key: _or_nan(value) for key, value in self._measured[name].items()}
        return Point(setting, **figures)

    def _figures(self, setting: Setting) -> dict[str, Any]:
        evaluation, module = self.evaluate(setting)
        call = self._one_image(module, setting.size)
        with threads(self.recipe.trainer):
            timing = time_in_turn({"": call}, _TIMED_SECONDS, device=self._device.type)[""]
        search, held_out = halves(evaluation.num_images)
        return {
            "macs": self.macs(setting),
            "ms": timing.median * 1e3,
            "score": evaluation.metrics[self.metric],
            "search": evaluation.score(search),
            "held_out": evaluation.score(held_out),
            "resampled": [evaluation.score(drawn) for drawn in draws(held_out, self.resamples)],
        }

    def evaluate(self, setting: Setting) -> tuple[Evaluation, TaskModule]:
        """What the run does at a setting, as `engine.evaluate` would find it, and the module that did it."""
        module = judge(self.saved, recipe_at(self.recipe, setting.to_json()), self.split(setting.size))
        evaluation, module.last_evaluation = module.last_evaluation, None
        assert evaluation is not None
        return evaluation, module

    def answers(self, setting: Setting) -> Answers:
        """What the run, a classifier's, says of every image at a setting.

        Raises:
            ValueError: It is a run of another task.
        """
        if self.recipe.task != "classification":
            raise ValueError(f"{self.saved.path}: a run of {self.recipe.task}; cascades are for classifiers")
        if getattr(self.recipe, "multi_label", False):
            raise ValueError(f"{self.saved.path}: several labels per image; cascades are for one")
        evaluation: Any = self.evaluate(setting)[0]
        confidence = evaluation.probabilities.max(dim=1).values.double().numpy()
        return Answers(confidence, evaluation.right.numpy(), self.macs(setting))

    def timed_in_turn(self, points: Sequence[Point]) -> list[Point]:
        """The points with milliseconds that compare: measured in turn."""
        calls: dict[str, Callable[[], None]] = {}
        prepare: dict[str, Callable[[], None]] = {}
        for size in {point.setting.size for point in points}:
            module = self.module_at(replace(self.own, size=size).to_json())
            backbone, call = find_backbone(module.judged), self._one_image(module, size)
            for number, point in enumerate(points):
                if point.setting.size == size:
                    calls[str(number)] = call
                    prepare[str(number)] = _regrouped(backbone.set_groups, point.setting, call)
        with threads(self.recipe.trainer):
            timings = time_in_turn(
                calls, _TIMED_SECONDS * len(calls), device=self._device.type, prepare=prepare
            )
        return [replace(p, ms=timings[str(number)].median * 1e3) for number, p in enumerate(points)]

    def rivals(self, space: Space, budgets: Sequence[int], num_random: int, seed: int) -> Iterator[Rival]:
        """What the front is compared with: the published setting within the budgets that allow it, for classifiers the
        chooser by attention, and random settings of at least nine tenths of the cost."""
        for place, budget in enumerate(budgets):
            if self.macs(self.own) <= budget:
                yield Rival(budget, "published", self.own)
            chosen = self._by_attention(space, budget) if self.recipe.task == "classification" else None
            if chosen is not None:
                yield Rival(budget, "attention kept", chosen)
            generator, known = np.random.default_rng([seed, place]), set[Hashable]()
            for _ in range(_TRIES):
                if len(known) == num_random:
                    break
                setting = space.random(generator)
                if 0.9 * budget <= self.macs(setting) <= budget and self.key(setting) not in known:
                    known.add(self.key(setting))
                    yield Rival(budget, "random", setting)

    def _by_attention(self, space: Space, budget: int) -> Setting | None:
        """The groups that `analyze groups` chooses; None where it cannot meet the budget."""
        model, size = find_backbone(self._module(self.recipe).judged), self.own.size
        sizes = [choice for choices in space.group_sizes for choice in choices]
        if self._attentions is None:
            model.set_groups([max(sizes)] * len(space.depths))
            data = self.split(size).dataset
            count = min(_LOOKED_AT, len(data))  # type: ignore[arg-type]
            self._attentions = block_attentions(
                model, (data[number][0].unsqueeze(0) for number in range(count))
            )
            model.set_groups(*self.own.groups)
        assert size is not None
        try:
            choices = choose_groups(model, self._attentions, size, min(sizes), max(sizes), budget)
        except ValueError:
            return None
        chosen = tuple(tuple(stage) for stage in choices.group_sizes)
        return Setting(self.own.groups._replace(group_sizes=chosen), size)

    def split(self, size: int | None) -> Split:
        """The data, to be seen at a size."""
        if size not in self._splits:
            recipe = recipe_at(self.recipe, replace(self.own, size=size).to_json())
            self._splits[size] = find_task(recipe.task).split(recipe, self._which, self.saved.class_names)
        return self._splits[size]

    def _costs_at(self, size: int | None) -> GroupCosts:
        if size not in self._costs:
            module = self.module_at(replace(self.own, size=size).to_json())
            module.to("cpu")
            call = self._one_image(module, size, torch.device("cpu"))
            self._costs[size] = GroupCosts(find_backbone(module.judged), call)
        return self._costs[size]

    def setting_of(self, section: SettingSection) -> Setting:
        """A setting of a front, as the run's network takes it on."""
        return Setting(find_backbone(self.module_at(section.model_dump()).judged).groups, section.size)

    def module_at(self, setting: Mapping[str, Any]) -> TaskModule:
        """The run's network at a setting, given as `SettingSection` has it."""
        return self._module(recipe_at(self.recipe, setting))

    def _module(self, recipe: BaseRecipe) -> TaskModule:
        module = find_task(recipe.task).module(recipe, self.saved.class_names)
        load_weights(module.model, self.saved.weights, self.saved.path)
        return module.eval()

    def _one_image(
        self, module: TaskModule, size: int | None, device: torch.device | None = None
    ) -> Callable[[], None]:
        """A call that sends the first image through a module's network, from pixels to result."""
        split, device = self.split(size), device or self._device
        batch = move_data_to_device(split.collate([split.dataset[0]]), device)
        module.eval().to(device)
        return torch.inference_mode()(lambda: module.evaluate_batch(module.judged, batch))


def halves(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images a search looks at, and which are held out; the same for every setting."""
    order = np.random.default_rng(_HALVES).permutation(num_images)
    middle = (num_images + 1) // 2
    return np.sort(order[:middle]), np.sort(order[middle:] if num_images > 1 else order)


def draws(images: np.ndarray, times: int) -> Iterator[np.ndarray]:
    """Bootstrap samples of images, the same for every setting."""
    generator = np.random.default_rng(_DRAWS)
    return (generator.choice(images, len(images)) for _ in range(times))


def _regrouped(
    set_groups: Callable[..., None], setting: Setting, call: Callable[[], None]
) -> Callable[[], None]:
    """Sets the groups and calls some times: a first call computes their position biases and finds cold caches."""

    def run() -> None:
        set_groups(*setting.groups)
        for _ in range(_WARM_UP):
            call()

    return run


def _name(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)


def _or_nan(value: Any) -> Any:
    """JSON has no NaN: the log has null in its place."""
    if isinstance(value, list):
        return tuple(map(_or_nan, value))
    return float("nan") if value is None else value


def default_space(
    judge: Judge,
    per: Literal["stage", "block"] = "stage",
    group_sizes: Sequence[int] | None = None,
    intervals: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
) -> Space:
    """The settings to search: the given choices, or the paper's range of group sizes and the run's own.

    No group is larger than the map of its stage, at the largest image size. LDA is spanning or regional.

    Raises:
        ValueError: A choice is no interval, or the run's recipe has no image size that could be chosen.
    """
    own = judge.own
    seen: list[int | None] = list(dict.fromkeys(sizes)) if sizes else [own.size]
    sides = judge.map_sides(max(seen, key=lambda size: size or 0))
    wanted = group_sizes or _GROUP_SIZES
    choices = []
    for side, used in zip(sides, own.groups.group_sizes, strict=True):
        of_stage = {*wanted, *(() if group_sizes else used)}
        choices.append(tuple(sorted({min(size, side) for size in of_stage})))
    gaps = (
        [_interval(text) for text in intervals]
        if intervals
        else [*_used(own.groups.intervals), "adaptive", 1]
    )
    depths = tuple(len(stage) for stage in own.groups.group_sizes)
    return Space(
        tuple(choices), tuple(dict.fromkeys(gaps)), ("regional", "spanning"), tuple(seen), depths, per
    )


def _used(intervals: tuple[tuple[Interval, ...], ...]) -> list[Interval]:
    return [interval for stage in intervals for interval in stage]


def _interval(text: str) -> Interval:
    if text == "adaptive":
        return "adaptive"
    if not text.isdecimal() or not int(text):
        raise ValueError(f"--interval {text}: give a whole number of at least 1, or adaptive")
    return int(text)
