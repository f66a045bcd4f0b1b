"""What this package depends on: known faults, the versions that CI installs, the oldest that are promised.

    python -m benchmarks.supply_chain audit         known vulnerabilities of what is installed (pip-audit, OSV)
    python -m benchmarks.supply_chain constraints   the installed versions of all dependencies, for constraints.txt
    python -m benchmarks.supply_chain lowest        the least versions that pyproject.toml allows, as constraints

`audit` ends with status 1 if there is one, and says so if it cannot be run: without a network, `make check` goes on.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = "crossformerpp"
# extras whose least versions are tested
USED = ("train", "detection", "segmentation", "formats", "doctor", "export", "weights")


def audit() -> int:
    """Ask OSV, then the package index, of every installed package."""
    for service in ("osv", "pypi"):
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--local",
            "--skip-editable",
            "--progress-spinner",
            "off",
        ]
        ended = subprocess.run([*command, "-s", service, "-f", "json"], capture_output=True, text=True)
        try:
            packages = json.loads(ended.stdout)["dependencies"]
        except (ValueError, KeyError):
            continue  # no network, or no such service
        asked = [package for package in packages if "skip_reason" not in package]
        found = [(package, fault) for package in asked for fault in package["vulns"]]
        for package, fault in found:
            fixed = ", ".join(fault["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
        if asked:
            print(f"{len(asked)} packages asked for at {service}: {len(found)} known vulnerabilities")
            return int(bool(found))
    print("audit: NOT RUN, no service of known vulnerabilities can be reached from here")
    return 0


def constraints() -> Iterator[str]:
    """`name==version` of everything that our extras bring, as installed."""
    seen: set[str] = set()
    waiting = [Requirement(f"{OURS}[dev]")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras or {""}:
            if f"{name}[{extra}]" in seen:
                continue
            seen.add(f"{name}[{extra}]")
            for text in _requires(requirement.name):
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    for name in sorted({entry.partition("[")[0] for entry in seen} - {OURS}):
        try:
            yield f"{name}=={version(name).partition('+')[0]}"
        except PackageNotFoundError:
            continue  # for another platform


def _requires(name: str) -> list[str]:
    if name == OURS:  # as the page says, not as it was when it was installed
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {
            extra: texts
            for extra, texts in project["optional-dependencies"].items()
            if extra not in ("heic", "page", "loggers")
        }
        return [*project["dependencies"], *(text for texts in extras.values() for text in texts)]
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def lowest() -> Iterator[str]:
    """`name==version` with the least version of each direct dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *(text for extra in USED for text in extras[extra])):
        requirement = Requirement(text)
        (least,) = (one.version for one in requirement.specifier if one.operator == ">=")
        yield f"{requirement.name}=={least}"


def pinned(page: str) -> dict[str, str]:
    """Versions by name in a page of constraints."""
    lines = (re.sub(r"#.*", "", line).strip() for line in page.splitlines())
    return {
        canonicalize_name(name): number
        for name, _, number in (line.partition("==") for line in lines if line)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("audit", "constraints", "lowest"))
    what = parser.parse_args().what
    if what == "audit":
        sys.exit(audit())
    print("\n".join(constraints() if what == "constraints" else lowest()))


if __name__ == "__main__":
    main()
