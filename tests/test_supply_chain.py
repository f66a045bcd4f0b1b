"""Dependencies: pinned where CI installs them, bounded where users do; promises of SECURITY.md that have tests."""

import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.supply_chain import audit, lowest, pinned
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FAULTY = (
    '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}'
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = [
        *PROJECT["dependencies"],
        *(
            text
            for name, texts in extras.items()
            if name not in ("heic", "page", "loggers")
            for text in texts
        ),
    ]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != "crossformerpp"]


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    pins = pinned((ROOT / "constraints.txt").read_text())
    for requirement in direct():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name}: `make constraints` is due"
        assert requirement.specifier.contains(pins[name]), f"{requirement}, pinned at {pins[name]}"


def test_constraints_are_what_make_installs() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "CONSTRAINTS ?= constraints.txt" in text
    assert "$(addprefix --constraint ,$(CONSTRAINTS))" in text
    check = re.search(r"^check:(.*)", text, re.MULTILINE)
    assert check is not None
    assert "audit" in check[1]


def test_every_dependency_has_a_least_version_and_one_says_why() -> None:
    least = pinned("\n".join(lowest()))
    assert Version(least["pytorch-lightning"]) >= Version("2.6.6")
    assert len(least) == len(set(least)) > 15


def test_every_promise_has_a_test() -> None:
    promises = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(promises) > 12
    for file, name in promises:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        (["", ""], 0, "NOT RUN"),
        (['{"dependencies": [{"name": "a", "skip_reason": "x"}]}'] * 2, 0, "NOT RUN"),
        (
            ['{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}'],
            0,
            "1 packages asked for at osv: 0",
        ),
        (["", FAULTY], 1, "a 1: CVE-1, fixed in 2"),
    ],
)
def test_an_audit_tells_faults_from_having_no_network(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[str],
    status: int,
    said: str,
) -> None:
    left = iter(answers)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(left)))
    assert audit() == status
    assert said in capsys.readouterr().out
