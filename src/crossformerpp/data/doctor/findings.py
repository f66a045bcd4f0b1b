"""What the doctor found: kinds, rows of the table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

# Kind -> what it means, in the order of the page.
KINDS = {
    "unreadable": "Files that cannot be used, with the reason. Training leaves such images out or stops.",
    "annotation problem": "Entries of the annotation files that are left out, as `crossformer data check` counts them.",
    "duplicate across splits": "The same pixels in two splits: the evaluation knows the answer.",
    "duplicate": "The same pixels twice in one split.",
    "near duplicate across splits": "Nearly the same picture in two splits.",
    "near duplicate": "Nearly the same picture twice in one split.",
    "leak by name": "Files whose names say that they belong together, in two splits.",
    "label error": "Labels that predictions from the other images contradict, the least likely label first.",
    "odd image": "Images unlike photographs or unlike the rest.",
    "odd box": "Boxes that are huge, thin, tiny or double.",
    "odd mask": "Masks that are mostly ignored or hold one class alone where the others hold several.",
    "rare class": "Classes that nearly never occur, or in one split only.",
}
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Finding:
    """A row of findings.csv.

    Attributes:
        kind: One of KINDS.
        image, split: What it is about; empty where it is no image.
        other, other_split: A second image.
        label, suggestion: The class it has, and the one that is more likely.
        score: Similarity of a pair, or probability of the label that is given.
        detail: In words.
        box: Part of the image, in pixels (left, top, right, bottom).
        samples: Numbers of the images, for pictures.
    """

    kind: str
    image: str = ""
    split: str = ""
    other: str = ""
    other_split: str = ""
    label: str = ""
    suggestion: str = ""
    score: float | None = None
    detail: str = ""
    box: Box | None = None
    samples: tuple[int, ...] = field(default=(), compare=False)

    def row(self) -> dict[str, str]:
        """As text, by column."""
        values = {name: getattr(self, name) for name in COLUMNS}
        if self.box is not None:
            values["box"] = " ".join(f"{value:.0f}" for value in self.box)
        if self.score is not None:
            values["score"] = f"{self.score:.4f}"
        return {name: "" if value is None else str(value) for name, value in values.items()}


COLUMNS = tuple(entry.name for entry in fields(Finding) if entry.name != "samples")


def without_the_usual(findings: Sequence[Finding], num_images: int) -> tuple[list[Finding], list[str]]:
    """Take out what holds for most images, which is a property of the data set and not odd.

    Returns:
        The rest, and a note per property.
    """
    images = Counter((f.kind, f.detail.partition(":")[0]) for f in findings if f.kind == "odd image")
    usual = {key for key, count in images.items() if 2 * count > num_images}
    notes = [
        f"{images[key]} of {num_images} images: {key[1]}; not listed one by one" for key in sorted(usual)
    ]
    kept = [f for f in findings if (f.kind, f.detail.partition(":")[0]) not in usual]
    return kept, notes


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By kind; pairs of different labels and of the highest similarity, and labels of the lowest probability first."""
    order = {kind: number for number, kind in enumerate(KINDS)}

    def key(finding: Finding) -> tuple[int, bool, float, str, str, str]:
        score = finding.score if finding.score is not None else 0.0
        sign = 1 if finding.kind == "label error" else -1
        is_plain = not finding.detail
        return order[finding.kind], is_plain, sign * score, finding.image, finding.other, finding.detail

    return sorted(findings, key=key)


def across(finding: Finding) -> Finding:
    """The kind of a pair by its splits."""
    if finding.split == finding.other_split:
        return finding
    return replace(finding, kind=f"{finding.kind} across splits")
