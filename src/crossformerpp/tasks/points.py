"""The dial of a run: the settings that `crossformer analyze budget` found best for each cost, and a run at one of them.

The front lies in the run as budget/front.json. Nothing here imports the trainer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from crossformerpp.data.names import read_json
from crossformerpp.models import VARIANTS
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.recipes.schema import BaseRecipe, Section
from crossformerpp.tasks.saved import SavedRun, open_saved

_SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_BUDGET = re.compile(
    r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?P<ms>ms)|(?P<scale>[KMG]?)(?:MACs?)?)", re.IGNORECASE
)


class SettingSection(Section):
    """How a network runs: its groups as `model.options` hold them, and the size of images."""

    group_sizes: list[PositiveInt | list[PositiveInt]]
    intervals: list[PositiveInt | Literal["adaptive"] | list[PositiveInt | Literal["adaptive"]]]
    lda: list[Literal["regional", "spanning"]]
    size: PositiveInt | None


class FrontPoint(Section):
    """A point of the front: its setting, what an image costs, and the metric of the run's task.

    `score` is over all validation images, `search` over those by which it was found and is chosen, `held_out` over the
    others, with `low` to `high` its 95% confidence interval.
    """

    setting: SettingSection
    macs: PositiveInt
    ms: PositiveFloat
    score: float
    search: float
    held_out: float
    low: float | None
    high: float | None


class Measured(Section):
    """What `analyze` measured of the checkpoint after `step` steps, as a file in the run."""

    step: int


_Page = TypeVar("_Page", bound=Measured)


class Front(Measured):
    """front.json: points from cheap to costly, timed on `device`."""

    metric: str
    device: str
    points: list[FrontPoint] = Field(min_length=1)


class Budget(NamedTuple):
    """What an image may cost."""

    cost: Literal["macs", "ms"]
    most: float

    def __str__(self) -> str:
        return f"{self.most:g} ms" if self.cost == "ms" else f"{self.most / 1e9:g} GMACs"


def parse_budget(text: str) -> Budget:
    """Milliseconds, as 30ms, or multiply-accumulates, as 2.1GMACs or 380M.

    Raises:
        ValueError: It is neither.
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise ValueError(
            f"--budget {text}: give milliseconds, such as 30ms, or multiply-accumulates, such as 2.1GMACs or 380M"
        )
    if found["ms"]:
        return Budget("ms", float(found[1]))
    return Budget("macs", float(found[1]) * _SCALES[found["scale"].upper()])


def open_at(path: Path, budget: str | None) -> SavedRun:
    """A run or checkpoint as `open_saved` opens it, at the most accurate point of its front within a budget.

    Args:
        budget: As `parse_budget` takes it; None for the run as it is.

    Raises:
        ValueError: As `open_saved`, or the run has no front or no such point in it.
    """
    if budget is None:
        return open_saved(path)
    wanted = parse_budget(budget)
    saved = open_saved(path)
    front = read_front(path, saved)
    within = [point for point in front.points if getattr(point, wanted.cost) <= wanted.most]
    if not within:
        least = Budget(wanted.cost, min(getattr(point, wanted.cost) for point in front.points))
        raise ValueError(
            f"--budget {budget}: no point of {front_file(path)} costs so little; the cheapest takes {least}"
        )
    best = max(within, key=lambda point: (point.search, -getattr(point, wanted.cost)))
    return at_setting(saved, best.setting)


def at_setting(saved: SavedRun, setting: SettingSection) -> SavedRun:
    """The run with the groups and the image size of a setting; its weights stay."""
    return replace(saved, recipe=recipe_at(saved.recipe, setting.model_dump()), is_at_point=True)


def setting_of(recipe: BaseRecipe) -> SettingSection:
    """The setting of a recipe that `recipe_at` made."""
    groups = {name: recipe.model.options[name] for name in ("group_sizes", "intervals", "lda")}
    return SettingSection(**groups, size=image_size(recipe))


def recipe_at(recipe: BaseRecipe, setting: Mapping[str, Any]) -> BaseRecipe:
    """A recipe with the groups and the image size of a setting, given as `SettingSection` has it."""
    values = recipe.model_dump()
    groups = {name: setting[name] for name in ("group_sizes", "intervals", "lda")}
    values["model"]["options"] = options_with(recipe, groups)
    if (size := setting["size"]) is not None:
        resize(values, size)
    return parse_recipe(values, "at this setting")


def options_with(recipe: BaseRecipe, groups: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `model.options` with other groups; learnt tables of biases stay of the size they were learnt for."""
    options = dict(recipe.model.options)
    own = options.get("group_sizes", VARIANTS.get(recipe.model.name, {}).get("group_sizes"))
    if str(options.get("position")).startswith("rpb") and own is not None:
        options.setdefault("position_sizes", own)
    return options | dict(groups)


def image_size(recipe: BaseRecipe) -> int | None:
    """The side, or shorter side, at which a recipe evaluates images; None where it takes them as they are."""
    values = recipe.model_dump()
    if recipe.task == "segmentation":
        return values["inference"]["short_side"]
    size = values["data"]["size"] if recipe.task == "classification" else values["data"]["short_side"][-1]
    return int(size)


def overrides_at(recipe: BaseRecipe, setting: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set` changes of a recipe to come to a setting: key and value."""
    before, after = recipe.model_dump(mode="json"), recipe_at(recipe, setting).model_dump(mode="json")
    return {
        f"{section}.{key}": value
        for section in ("data", "inference")
        for key, value in after.get(section, {}).items()
        if value != before[section][key]
    } | {
        f"model.options.{key}": value
        for key, value in after["model"]["options"].items()
        if value != before["model"]["options"].get(key)
    }


def front_file(path: Path) -> Path:
    """Where the front of a run or checkpoint lies."""
    return budget_folder(path) / "front.json"


def budget_folder(path: Path) -> Path:
    """Where a run, or the run of a checkpoint, keeps what was measured; of other files beside them."""
    if path.is_dir():
        return path / "budget"
    if path.parent.name == "checkpoints":
        return path.parent.parent / "budget"
    return path.parent / f"{path.stem}-budget"


def read_front(path: Path, saved: SavedRun) -> Front:
    """The front of a run.

    Raises:
        ValueError: There is none, it is damaged, or it is of another checkpoint.
    """
    file = front_file(path)
    if not file.is_file():
        raise ValueError(f"{path}: no front measured yet; `crossformer analyze budget {path}` makes {file}")
    command = "`crossformer analyze budget`"
    return read_measured(file, Front, saved, command, f"{command} again, with --overwrite")


def read_measured(file: Path, kind: type[_Page], saved: SavedRun, command: str, again: str) -> _Page:
    """A file of `analyze`.

    Args:
        command: What makes it.
        again: What to run where the checkpoint is another one by now.

    Raises:
        ValueError: It is damaged, or of another checkpoint.
    """
    try:
        page = kind.model_validate(read_json(file))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ValueError(f"{file}: damaged ({problems}); run {command} again") from None
    if page.step != saved.step:
        raise ValueError(
            f"{file} was measured after {page.step} steps and {saved.path} has {saved.step}: run {again}"
        )
    return page


def resize(values: dict[str, Any], size: int) -> None:
    """Let images be seen at another size, what surrounds the crop or bounds the long side in proportion."""
    data = values["data"]
    if values["task"] == "segmentation":
        values["inference"]["short_side"] = size
    elif values["task"] == "detection":
        data["long_side"] = round(data["long_side"] * size / data["short_side"][-1])
        data["short_side"] = (size,)
    else:
        if data["eval_resize"] is not None:
            data["eval_resize"] = round(data["eval_resize"] * size / data["size"])
        data["size"] = size
