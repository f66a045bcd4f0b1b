"""Images whose names say that they show the same thing, in more than one split: copies, patients, videos."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from crossformerpp.data.doctor.findings import Finding
from crossformerpp.data.doctor.subjects import Sample

_EXPORTED = re.compile(
    r"(.+?)(?:_(?:jpe?g|png))?\.rf\.[0-9a-zA-Z]{8,}", re.IGNORECASE
)  # copies that were augmented
_NUMBERED = re.compile(
    r"(.*?)[-_. ]*(?:(?<![a-z])(?:frame|fr|f|img|image|slice|sl|s|view|part|page|t|z))?[-_. ]*\d+",
    re.IGNORECASE,
)
_MOST = 0.5  # share of a split's images; a name that more of them have is the data set's


def find_leaks(samples: Sequence[Sample]) -> Iterator[Finding]:
    """A finding for each image outside the first split that has its origin, with an image of that split.

    Images are of one origin where they have the same name but for what an export adds, or the same name but for a
    number at its end, or lie in the same folder below their class; where that name has letters and digits, is not
    the class's, and is not that of half of a split.
    """
    sizes = Counter(sample.split for sample in samples)
    if len(sizes) < 2:
        return
    origins: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, sample in enumerate(samples):
        for origin in _origins(sample.name):
            origins[origin][sample.split].append(number)
    found: set[int] = set()
    for (how, name), by_split in origins.items():
        if len(by_split) < 2 or any(
            len(own) > max(1, _MOST * sizes[split]) for split, own in by_split.items()
        ):
            continue
        counts = ", ".join(f"{len(own)} in {split}" for split, own in by_split.items())
        (_, first), *others = by_split.items()
        for split, own in others:
            for number in own:
                if number in found:
                    continue
                found.add(number)
                yield Finding(
                    "leak by name",
                    samples[first[0]].name,
                    samples[first[0]].split,
                    samples[number].name,
                    split,
                    detail=f"{how} {name}: {counts}",
                    samples=(first[0], number),
                )


def _origins(name: str) -> Iterator[tuple[str, str]]:
    """What may say where an image comes from, the surest first."""
    path = PurePosixPath(name)
    folders = [part.lower() for part in path.parts[:-1]]
    exported = _EXPORTED.fullmatch(path.stem)
    stem = (exported.group(1) if exported else path.stem).lower()
    if exported or (_tells(stem) and not _is_count(stem)):
        yield "the same name", stem
    numbered = _NUMBERED.fullmatch(stem)
    if numbered and _tells(numbered.group(1)) and numbered.group(1) not in folders:
        yield "names that begin with", numbered.group(1)
    if len(folders) > 2 and _tells(folders[-1]):  # below split and class
        yield "the same folder", folders[-1]


def _tells(name: str) -> bool:
    """Whether a name can be that of a patient or a video: letters alone are a word, digits alone a count."""
    return any(c.isalpha() for c in name) and any(c.isdigit() for c in name)


def _is_count(stem: str) -> bool:
    """Whether a name is a word and a count, as cameras and scripts give it to image after image."""
    return re.fullmatch(r"[a-z]+[-_. ]*\d{1,8}", stem) is not None
