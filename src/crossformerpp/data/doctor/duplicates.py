"""Images that are there twice: the same pixels, or nearly the same picture."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn

from crossformerpp.data.doctor.findings import Finding, across
from crossformerpp.data.doctor.subjects import Sample

SIMILAR = 0.95  # least cosine similarity of the fingerprints of near duplicates
_GRID, _WAVES = 32, 8  # pixels and frequencies a side of a fingerprint
_PARTNERS = 5  # near duplicates listed per image, the most similar ones
_ROWS = 512  # images compared with all others at once

Track = Callable[[Sequence[int]], Iterable[int]]


def pixel_hash(image: Image.Image) -> str:
    """The same for images of the same size and RGB pixels, whatever the file format."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def fingerprint(image: Image.Image) -> np.ndarray:
    """(63,) of an RGB image: the lowest frequencies of its cosine transform without the mean, as perceptual hashes
    have them (Zauner, 2010), but with damped amplitudes in the place of signs.

    Compression, another size, brightness, contrast and noise change it little, so that near duplicates have a cosine
    similarity near 1.
    """
    kind = Image.Resampling.BOX if min(image.size) >= _GRID else Image.Resampling.BICUBIC
    grey = np.asarray(image.convert("L").resize((_GRID, _GRID), kind), np.float32)
    waves = dctn(grey, norm="ortho")[:_WAVES, :_WAVES].ravel()[1:]
    return np.sign(waves) * np.sqrt(np.abs(waves))


def exact(samples: Sequence[Sample], hashes: Sequence[str | None]) -> tuple[list[Finding], list[int]]:
    """Images with the same pixels as an earlier one.

    Returns:
        The findings, and the first of each group of equal images.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, value in enumerate(hashes):
        if value is not None:
            groups[value].append(number)
    findings = []
    for first, *others in groups.values():
        findings += [_pair(samples, first, other, "duplicate", 1.0) for other in others]
    return findings, [group[0] for group in groups.values()]


def near(
    samples: Sequence[Sample],
    chosen: Sequence[int],
    views: Sequence[tuple[np.ndarray, float]],
    track: Track = iter,
) -> Iterator[Finding]:
    """Pairs of images that are similar.

    Args:
        chosen: Numbers of the images that are compared.
        views: Vectors (N, D) of these, with the least cosine similarity that a pair must have; all must hold, and the
            first is reported. A vector that is 0 everywhere is like no other.
    """
    units = [(_unit(vectors), least) for vectors, least in views]
    for start in track(range(0, len(chosen), _ROWS)):
        similar = [vectors[start : start + _ROWS] @ vectors.T for vectors, _ in units]
        holds = np.logical_and.reduce([s >= least for s, (_, least) in zip(similar, units, strict=True)])
        for row, (values, others) in enumerate(zip(similar[0], holds, strict=True), start):
            places = np.flatnonzero(others[row + 1 :]) + row + 1
            for other in places[np.argsort(-values[places], kind="stable")][:_PARTNERS]:
                yield _pair(samples, chosen[row], chosen[other], "near duplicate", float(values[other]))


def groups_of(num_samples: int, pairs: Sequence[Finding]) -> np.ndarray:
    """(N,) a number per image, the same for images that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray([pair.samples for pair in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(num_samples, num_samples))
    return connected_components(graph, directed=False)[1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def _pair(samples: Sequence[Sample], one: int, two: int, kind: str, score: float) -> Finding:
    first, second = samples[one], samples[two]
    differ = first.label is not None and first.label != second.label
    finding = Finding(
        kind,
        first.name,
        first.split,
        second.name,
        second.split,
        score=min(score, 1.0),
        detail="their labels differ" if differ else "",
        samples=(one, two),
    )
    return across(finding)
