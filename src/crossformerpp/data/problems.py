"""What is wrong with a data set, or was left out of it: counted, and the first places named."""

from collections import defaultdict
from dataclasses import dataclass, field


class Remark(UserWarning):
    """Of what may be meant as it is: `data check` counts it as no problem."""


@dataclass
class Problems:
    """Kind of problem → where, in the order found."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: str) -> None:
        self.found[kind].append(where)

    def lines(self, examples: int = 3) -> list[str]:
        """One line per kind: how often, and the first places."""
        lines = []
        for kind, places in self.found.items():
            more = ", …" if len(places) > examples else ""
            # names of files and classes hold anything
            named = ", ".join(places[:examples]).replace("\n", "\\n")
            lines.append(f"{len(places)} × {kind} ({named}{more})")
        return lines

    def __str__(self) -> str:
        return "; ".join(self.lines())
