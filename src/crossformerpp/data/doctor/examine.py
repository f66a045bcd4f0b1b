"""The whole examination: one pass over the images, then what needs all of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from crossformerpp.data.doctor import boxes, duplicates, labels, leaks, odd
from crossformerpp.data.doctor.findings import Finding, in_order, without_the_usual
from crossformerpp.data.doctor.subjects import Item, Subjects
from crossformerpp.data.mask_files import IGNORED
from crossformerpp.data.names import printable
from crossformerpp.data.segmentation import count_labels

Describe = Callable[[Sequence[Image.Image]], np.ndarray]  # images -> (N, D)
Track = Callable[
    [Sequence[int], str], Iterable[int]
]  # numbers and what is done -> the numbers, with a progress bar

LOOSE = 0.6  # least similarity of fingerprints of a pair that a network finds similar: it also finds the same class so
_ENOUGH = 10  # images whose mean is that of the data rather than of a pair
_BATCH = 32
_LONGEST = 512  # pixels of a part that waits for its features


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: In the order of KINDS.
        notes: What could not be judged, or is so for all images.
    """

    subjects: Subjects
    findings: list[Finding]
    notes: list[str]


@dataclass
class _Seen:
    """What the pass over the images collects; lists have an entry per image, None for those that cannot be read."""

    looks: list[odd.Look | None] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)
    wholes: list[np.ndarray] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    ignored: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    too_small: int = 0


class _Describer:
    """Describes images in batches, in the order in which they come."""

    def __init__(self, describe: Describe, rows: list[np.ndarray]) -> None:
        self.describe = describe
        self.rows = rows
        self.waiting: list[Image.Image] = []

    def add(self, image: Image.Image) -> None:
        if max(image.size) > _LONGEST:
            image = image.copy()
            image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BICUBIC)
        self.waiting.append(image)
        if len(self.waiting) == _BATCH:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.rows.extend(self.describe(self.waiting))
            self.waiting = []


def examine(
    subjects: Subjects,
    track: Track = lambda numbers, title: numbers,
    *,
    describe: Describe | None = None,
    similarity: float = duplicates.SIMILAR,
    with_labels: bool = True,
) -> Diagnosis:
    """Look for everything that KINDS names.

    Args:
        describe: Features of a network, which then decide on near duplicates and labels; default: features of the
            pixels.
        similarity: Least cosine similarity of near duplicates.
        with_labels: Whether to look for label errors.

    Raises:
        ValueError: A library is missing, or no image can be read.
    """
    seen = _look_at_all(subjects, track, describe, with_labels)
    if not any(seen.looks):
        raise ValueError(
            f"none of the {len(subjects.samples)} images can be read; see `crossformer data check`"
        )
    samples = subjects.samples
    pairs, chosen = duplicates.exact(samples, seen.hashes)
    views = [(np.stack([seen.prints[number] for number in chosen]), similarity)]
    if describe is not None:
        vectors = np.stack([seen.wholes[number] for number in chosen])
        # features of all images point the same way, the more the less a network has learnt
        center = vectors.mean(axis=0) if len(vectors) >= _ENOUGH else 0
        views = [(vectors - center, similarity), (views[0][0], LOOSE)]
    pairs += duplicates.near(samples, chosen, views, lambda starts: track(starts, "near duplicates"))
    findings = [*subjects.findings, *seen.findings, *pairs, *leaks.find_leaks(samples)]
    findings += odd.find_odd(samples, seen.looks)
    if subjects.task == "segmentation":
        findings += boxes.odd_masks(subjects, np.stack(seen.pixels), np.asarray(seen.ignored))
    findings += boxes.rare_classes(subjects, _with_a_class(subjects, seen))
    notes: list[str] = []
    if with_labels:
        errors, notes = _label_errors(subjects, seen, duplicates.groups_of(len(samples), pairs), track)
        findings += errors
    kept, usual = without_the_usual(findings, len(samples))
    return Diagnosis(subjects, in_order(kept), [*usual, *notes])


def _look_at_all(subjects: Subjects, track: Track, describe: Describe | None, with_labels: bool) -> _Seen:
    seen, items_of = _Seen(), subjects.items_of()
    wholes = _Describer(describe, seen.wholes) if describe is not None else None
    is_whole = subjects.task == "classification"
    parts = None
    if with_labels and not (is_whole and describe is not None):  # else the features of the images serve
        parts = _Describer(describe or labels.pixel_features, seen.features)
    for number in track(range(len(subjects.samples)), "look at images"):
        sample, items = subjects.samples[number], items_of[number]
        try:
            image, mask = sample.open()
        except ValueError as error:
            _note_unreadable(seen, subjects, number, error)
            image = Image.new("RGB", (64, 64))  # keeps rows and images in step; takes part in nothing
            if wholes is not None:
                wholes.add(image)
            continue
        seen.looks.append(odd.look_at(image, sample.path))
        seen.hashes.append(duplicates.pixel_hash(image))
        seen.prints.append(duplicates.fingerprint(image))
        if wholes is not None:
            wholes.add(image)
        if mask is not None:
            seen.pixels.append(count_labels(mask, len(subjects.class_names)))
            seen.ignored.append(float((mask == IGNORED).mean()))
        if subjects.task == "detection":
            seen.findings += boxes.odd_boxes(subjects, number, items, image.size)
        shapes = [(item, None) for item in items] if mask is None else boxes.segments(mask, number)
        for item, shape in shapes:
            cut = boxes.part(image, item.box, shape)
            if cut is None:
                seen.too_small += 1
                continue
            seen.items.append(item)
            if parts is not None:
                parts.add(cut)
    for describer in (wholes, parts):
        if describer is not None:
            describer.flush()
    return seen


def _note_unreadable(seen: _Seen, subjects: Subjects, number: int, error: ValueError) -> None:
    sample = subjects.samples[number]
    detail = printable(str(error).removeprefix(f"{sample.path}: "))
    seen.findings.append(Finding("unreadable", sample.name, sample.split, detail=detail))
    seen.looks.append(None)
    seen.hashes.append(None)
    seen.prints.append(np.zeros(0))
    seen.pixels.append(np.zeros(len(subjects.class_names), np.int64))
    seen.ignored.append(float("nan"))


def _with_a_class(subjects: Subjects, seen: _Seen) -> list[Item]:
    if subjects.task != "segmentation":
        return subjects.items
    return [Item(number, int(k)) for number, row in enumerate(seen.pixels) for k in np.flatnonzero(row)]


def _label_errors(
    subjects: Subjects, seen: _Seen, groups: np.ndarray, track: Track
) -> tuple[list[Finding], list[str]]:
    notes = []
    if seen.too_small:
        notes.append(
            f"{seen.too_small} {'segments' if subjects.task == 'segmentation' else 'objects'} of less than "
            f"{boxes.LEAST_SIDE} pixels a side: their labels were not judged"
        )
    if not seen.items:
        return [], notes
    features = np.stack(seen.features or [seen.wholes[item.sample] for item in seen.items])
    given = np.asarray([item.label for item in seen.items])
    own = np.asarray([groups[item.sample] for item in seen.items])
    doubts, small = labels.doubtful(features, given, own, lambda folds: track(folds, "check labels"))
    if small:
        names = ", ".join(subjects.class_names[label] for label in sorted(small)[:10])
        notes.append(
            f"{len(small)} classes are in fewer than {labels.FOLDS} different images; their labels were not "
            f"judged: {names}" + (", …" if len(small) > 10 else "")
        )
    findings = []
    for doubt in doubts:
        item = seen.items[doubt.item]
        sample = subjects.samples[item.sample]
        findings.append(
            Finding(
                "label error",
                sample.name,
                sample.split,
                label=subjects.class_names[item.label],
                suggestion=subjects.class_names[doubt.suggestion],
                score=doubt.given,
                detail=f"{doubt.suggested:.0%}, not {doubt.given:.1%}",
                box=item.box,
                samples=(item.sample,),
            )
        )
    return findings, notes
