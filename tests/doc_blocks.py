"""The code blocks of the documentation, and what it takes to run one.

A fence says its language: `python` and `sh` are run, `yaml` is read, `text` is for people. All blocks of a page run one
after another in one folder, as a reader would. A comment before a fence says what is otherwise:

    <!-- not run: REASON -->         it is only checked: commands, options, recipes, settings, modules and names exist
    <!-- shortened: --set KEY=VALUE … -->   what is added to its `crossformer train` commands

Commands that install or build (pip, make, git) are always only checked.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from markdown_it import MarkdownIt

from crossformerpp.cli import app, main
from crossformerpp.recipes.load import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("python", "sh", "yaml", "text")
MARKER = re.compile(r"<!--\s*(not run|shortened):\s*(.*?)\s*-->", re.DOTALL)
NO_WORKERS = ["--set", "trainer.workers=0"]  # processes that would take longer to start than the training


@dataclass(frozen=True)
class Block:
    """A fence: where it stands, its language and content, why it is not run, what shortens its trainings."""

    place: str
    language: str
    code: str
    not_run: str | None = None
    shortened: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a Markdown page in order; an indented one has no language."""
    before: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            before = dict(MARKER.findall(token.content))
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            place = f"{page.name}:{token.map[0] + 1}"
            yield Block(place, token.info, token.content, before.get("not run"), before.get("shortened", ""))
            before = {}
        elif token.level == 0:
            before = {}


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the current folder; Python sees and leaves `names`."""
    if block.language == "python":
        exec(compile(block.code, block.place, "exec"), names)
    elif block.language == "sh":
        for command in commands(block.code):
            arguments = of_crossformer(command)
            if arguments is None or command[0] in ("torchrun", "srun"):
                check_command(command)
                continue
            if arguments[0] == "train":
                arguments = [*arguments, *shlex.split(block.shortened), *NO_WORKERS]
            status = exit_status(arguments)
            assert status == 0, f"{block.place}: {shlex.join(command)}: exit status {status}"
    else:
        check(block)


def exit_status(arguments: list[str]) -> Any:
    try:
        main(arguments)
    except SystemExit as exit:
        return exit.code
    raise AssertionError("the command line always exits")


def check(block: Block) -> None:
    """Whatever can be known of a block without running it."""
    if block.language == "python":
        check_imports(ast.parse(block.code, block.place))
    elif block.language == "sh":
        for command in commands(block.code):
            check_command(command)
    elif block.language == "yaml":
        values = yaml.safe_load(block.code)
        if "task" in values:
            parse_recipe(values, block.place)


def commands(code: str) -> list[list[str]]:
    """The words of each command; comments are left out, `\\` at a line's end and `&&` are understood."""
    lines = code.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def of_crossformer(command: list[str]) -> list[str] | None:
    """The arguments of `crossformer`, however it is started; None of other commands."""
    for start in (["crossformer"], ["-m", "crossformerpp"]):
        for place in range(len(command)):
            if command[place : place + len(start)] == start:
                return command[place + len(start) :]
    return None


def check_command(command: list[str]) -> None:
    """That a command could be given: it and its options, recipes, settings, modules, targets and extras exist."""
    arguments = of_crossformer(command)
    if arguments is not None:
        check_arguments(arguments)
    elif command[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(command[2]), f"no module {command[2]}"
    elif command[0] == "python":
        assert (ROOT / command[1]).is_file(), f"no file {command[1]}"
    elif command[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(command[1:]) <= set(targets), f"Makefile has no {command[1:]}"
    elif command[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extras in re.findall(r"(?:crossformerpp|\.)\[(.*?)\]", command[-1]):
            assert set(extras.split(",")) <= set(known), f"no extra {extras}"
    else:
        assert command[0] in ("git", "cd"), f"{shlex.join(command)}: neither run nor checked; say `not run`"


def check_arguments(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"crossformer has no command {name}"
        command = command.commands[name]
    given = command.make_context(name, arguments).params
    if name == "train" and given["recipe"] and not given["recipe"].endswith(".yaml"):
        load_recipe(given["recipe"], given["overrides"] or (), given["data"])


def check_imports(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
