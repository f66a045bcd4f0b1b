"""Read a recipe page, apply `--set` overrides, and report all of its errors at once."""

import difflib
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from crossformerpp.data.names import read_text
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.segmentation import SegmentationRecipe

RECIPES: dict[str, type[BaseRecipe]] = {  # by their `task`
    "classification": ClassificationRecipe,
    "detection": DetectionRecipe,
    "segmentation": SegmentationRecipe,
}


_Section = TypeVar("_Section", bound=BaseModel)
_MAX_VALUES = 100_000  # of a page
_LINE_BREAKS = frozenset("\x85\u2028\u2029")
_BRIEF = reprlib.Repr()  # aliases in YAML can make a value too long to be shown
_BRIEF.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number (YAML 1.1 reads it as text) and no key may come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def recipe_names() -> list[str]:
    """Names of the built-in pages, e.g. `digits` or `imagenet/crossformerpp_small`."""
    room = Path(str(files("crossformerpp.recipes")))
    return sorted(page.relative_to(room).with_suffix("").as_posix() for page in room.rglob("*.yaml"))


def load_recipe(name: str, overrides: Iterable[str] = (), root: Path | None = None) -> BaseRecipe:
    """Read a built-in page or a YAML file.

    Args:
        name: Name of a built-in page, or path of a .yaml file.
        overrides: `a.b=value` texts; values are YAML.
        root: Folder of the data, put at `data.root`.

    Returns:
        A recipe of the type that its `task` names.

    Raises:
        ValueError: No such page, no YAML, or a page with problems (all of them are listed).
    """
    values = _find_page(name)
    if root is not None:
        _set(values, ["data", "root"], str(root), f"--data {root}")
    apply_overrides(values, overrides)
    return parse_recipe(values, name)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Put `a.b=value` texts into plain recipe values.

    Raises:
        ValueError: A text has another form, or leads into a value that has no keys.
    """
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ValueError(f"--set {override}: expected the form a.b=value")
        _set(values, key.split("."), _parse(text, f"--set {override}"), f"--set {override}")


def parse_recipe(values: dict[str, Any], name: str) -> BaseRecipe:
    """Check plain values against the recipe that their `task` names.

    Raises:
        ValueError: Lists every unknown or ill-typed key, with the nearest known one.
    """
    task = values.get("task")
    if not isinstance(task, str) or task not in RECIPES:
        raise ValueError(f"recipe {name}: task: {_BRIEF.repr(task)} is none of {', '.join(RECIPES)}")
    try:
        return RECIPES[task].model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, RECIPES[task]) for problem in error.errors()]
        raise ValueError(f"recipe {name}: {'; '.join(problems)}") from None


def dump_recipe(recipe: BaseRecipe) -> str:
    """The recipe as a YAML page with every value resolved; `load_recipe` reads it back to an equal one."""
    values = recipe.model_dump(mode="json")
    page = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not _LINE_BREAKS.isdisjoint(page):  # PyYAML writes them as they are, and reads them as ends of lines
        page = yaml.safe_dump(values, sort_keys=False)
    return page


def without_paths(section: _Section) -> _Section:
    """A recipe to be passed on: files and folders keep only their names, unless they lie below another one."""
    changed: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Path) and (value.is_absolute() or ".." in value.parts):
            changed[name] = Path(value.name)
        elif isinstance(value, BaseModel):
            changed[name] = without_paths(value)
    return section.model_copy(update=changed)


def parse_options(text: str) -> dict[str, Any]:
    """The command line's `--options`, a YAML mapping.

    Raises:
        ValueError: It is something else.
    """
    values = _parse(text, "--options")
    if not isinstance(values, dict):
        raise ValueError(f"--options {text!r}: expected a mapping such as 'cooling: 3'")
    return values


def read_page(page: Path, name: str | None = None) -> dict[str, Any]:
    """The plain values of a recipe's file, unchecked.

    Raises:
        ValueError: No such file, no YAML, or no mapping.
    """
    name = name or str(page)
    if not page.is_file():
        raise ValueError(f"recipe {name}: no such file")
    return parse_page(read_text(page), f"recipe {name}")


def parse_page(text: str, where: str) -> dict[str, Any]:
    """The plain values of a recipe's text, unchecked.

    Raises:
        ValueError: No YAML, or no mapping.
    """
    values = _parse(text, where)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping of keys, found {_kind(values)}")
    return values


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _find_page(name: str) -> dict[str, Any]:
    page = Path(name)
    if page.suffix not in (".yaml", ".yml"):
        known = recipe_names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            brief = dict.fromkeys(f"{name.split('/')[0]}/…" if "/" in name else name for name in known)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(brief)}"
            raise ValueError(f"no recipe {name!r}; {hint} (or pass the path of a .yaml file)")
        page = Path(str(files("crossformerpp.recipes"))) / f"{name}.yaml"
    return read_page(page, name)


def _parse(text: str, where: str) -> Any:
    try:
        values = yaml.load(text, Loader=_Loader)
        if _unfolded(values, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases unfold to more than {_MAX_VALUES:,} values")
        return values
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())[:500]}") from None
    except RecursionError:
        raise ValueError(f"{where}: YAML nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date that is none, a number of thousands of digits
        raise ValueError(f"{where}: not valid YAML: {error}") from None


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """The number of values with every alias expanded; each is visited once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1  # while it is counted: one that meets itself is endless
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(one, known) for one in inner)
    return known[id(value)]


def _set(values: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    for depth, key in enumerate(path[:-1], 1):
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"{where}: {'.'.join(path[:depth])} is {inner!r}, which has no keys")
        values = inner
    values[path[-1]] = value


def _describe(problem: Mapping[str, Any], recipe: type[BaseRecipe]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(recipe, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        return f"{key}: unknown key, " + (
            f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (given: {_BRIEF.repr(given)})"
    where = f"{key}: " if key else ""
    return f"{where}{message[0].lower()}{message[1:]}{shown}"


def _keys_at(recipe: type[BaseModel], path: list[str]) -> list[str]:
    section: type[BaseModel] | None = recipe
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return list(section.model_fields) if section is not None else []
