"""The page and the table of what the doctor found in a data set."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from crossformerpp.analysis.report import Table, render
from crossformerpp.data.doctor import boxes
from crossformerpp.data.doctor.examine import Diagnosis
from crossformerpp.data.doctor.findings import COLUMNS, KINDS, Finding
from crossformerpp.data.names import printable, without_controls
from crossformerpp.data.writing import replacing, replacing_folder

PAGE, TABLE = "index.html", "findings.csv"
SHOWN = 24  # findings of a kind on the page
_SMALL = 64  # pixels below which a picture is enlarged, to be seen


@dataclass(frozen=True)
class Shown:
    """A finding with its pictures, each with its name."""

    pictures: list[tuple[str, Image.Image]]
    lines: list[str]
    names: list[str]


@dataclass(frozen=True)
class Section:
    """The findings of a kind, of which some are shown: in pictures, or in a table where there is no picture."""

    kind: str
    meaning: str
    count: int
    pictured: list[Shown]
    table: Table

    @property
    def num_shown(self) -> int:
        return len(self.pictured) + len(self.table.rows)


@dataclass(frozen=True)
class Page:
    """The contents of the page."""

    title: str
    subtitle: str
    headline: list[tuple[str, str]]
    sections: list[Section]
    notes: list[str]
    about: Table


def write_diagnosis(folder: Path, diagnosis: Diagnosis, title: str, about: list[tuple[str, str]]) -> None:
    """Write index.html and findings.csv into a folder, both or none.

    Args:
        about: (what, how it was) of the examination.
    """
    with replacing_folder(folder) as draft:
        with replacing(draft / TABLE) as file:
            file.write(to_csv(diagnosis.findings).encode("utf-8", "backslashreplace"))
        content = render("doctor.html", page=_page(diagnosis, title, about))
        with replacing(draft / PAGE) as file:
            file.write(content.encode("utf-8", "backslashreplace"))


def to_csv(findings: list[Finding]) -> str:
    """A row per finding."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: without_controls(printable(v)) for k, v in f.row().items()} for f in findings)
    return text.getvalue()


def counts(findings: list[Finding]) -> dict[str, int]:
    """Findings by kind, of the kinds that occur."""
    found = Counter(finding.kind for finding in findings)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def _page(diagnosis: Diagnosis, title: str, about: list[tuple[str, str]]) -> Page:
    subjects, by_kind = diagnosis.subjects, counts(diagnosis.findings)
    per_split = Counter(sample.split for sample in subjects.samples)
    images = ", ".join(f"{count:,} in {split}" for split, count in per_split.items())
    return Page(
        title,
        f"{subjects.task}: {images}; {len(subjects.class_names)} classes. Nothing was changed: every finding is a "
        "suspicion, and findings.csv lists them all.",
        [
            (f"{len(subjects.samples):,}", "images"),
            (f"{sum(by_kind.values()):,}", "findings"),
            *((f"{count:,}", kind) for kind, count in by_kind.items()),
        ],
        list(_sections(diagnosis, by_kind)),
        diagnosis.notes,
        Table(("what", "how"), about),
    )


def _sections(diagnosis: Diagnosis, by_kind: dict[str, int]) -> Iterator[Section]:
    for kind, count in by_kind.items():
        first = [finding for finding in diagnosis.findings if finding.kind == kind][:SHOWN]
        pictured = [_shown(diagnosis, finding) for finding in first if finding.samples]
        rows = [
            (f.split, " ".join(filter(None, (f.image, f.label))), f.detail) for f in first if not f.samples
        ]
        yield Section(kind, KINDS[kind], count, pictured, Table(("split", "what", "problem"), rows))


def _shown(diagnosis: Diagnosis, finding: Finding) -> Shown:
    samples = [diagnosis.subjects.samples[number] for number in finding.samples]
    pictures = []
    for sample in samples:
        image = sample.open()[0]
        pictures.append((sample.name, _visible(boxes.part(image, finding.box) or image)))
    lines = []
    if finding.label and finding.suggestion:
        lines += [f"labelled {finding.label}", f"looks like {finding.suggestion} ({finding.detail})"]
    elif finding.label:
        lines.append(finding.label)
    if finding.detail and not finding.suggestion:
        lines.append(finding.detail)
    if finding.score is not None and not finding.suggestion and finding.score < 1:
        lines.append(f"similarity {finding.score:.3f}")
    return Shown(pictures, lines, [sample.name for sample in samples])


def _visible(image: Image.Image) -> Image.Image:
    """The image, enlarged without smoothing if it is tiny."""
    factor = -(-_SMALL // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
