"""Answers with a promise: a set of classes that holds the true one with a chosen probability, or "none of these".

Split conformal prediction (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005) with the score of
Sadinle, Lei & Wasserman (Least ambiguous set-valued classifiers, JASA 2019): a class belongs to the answer if its
probability is at least a threshold t. With α = 1 − coverage and n images that the model was not trained on, t is the
⌈(n + 1)(1 − α)⌉-th largest probability that the model gave to a true class. The true class of a further image, drawn as
those were, is in its set with a probability of at least 1 − α, whatever the model, its calibration and the data are.

Among all sets with that promise these are the smallest on average, they need no random numbers, and they may be empty,
which is the answer "none of these"; APS and RAPS, whose sets are never empty, give harder images larger sets instead.
The promise holds on average over images, not for every class, and not for images of another kind.

Legend: M images, K classes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Promise:
    """A calibrated threshold.

    Attributes:
        coverage: 1 − α.
        threshold: Least probability of a class in the answer.
        samples: n.
    """

    coverage: float
    threshold: float
    samples: int

    def answer(self, probabilities: np.ndarray) -> np.ndarray:
        """Which classes are in the set: (…, K) -> (…, K) of bool."""
        return probabilities >= np.float32(self.threshold)

    def metrics(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """How the promise is kept by M other images: probabilities (M, K), labels (M,)."""
        sets = self.answer(probabilities)
        sizes = sets.sum(axis=1)
        return {
            "conformal_promised": self.coverage,
            "conformal_coverage": float(sets[np.arange(len(labels)), labels].mean()),
            "conformal_set_size": float(sizes.mean()),
            "conformal_none": float((sizes == 0).mean()),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"coverage": self.coverage, "threshold": self.threshold, "samples": self.samples}


def calibrate(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> Promise:
    """The threshold from M images: probabilities (M, K) of float32, labels (M,).

    Raises:
        ValueError: Too few images for such a promise, or one that is none.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"conformal {coverage}: give a probability between 0 and 1, such as 0.9")
    true = np.sort(probabilities[np.arange(len(labels)), labels].astype(np.float32))[::-1]
    place = math.ceil(round((len(true) + 1) * coverage, 9))  # 0.9 · 10 is 9, not 9.000000000000002
    if place > len(true):
        raise ValueError(
            f"conformal {coverage}: {len(true)} validation images are too few to promise this; it takes at least "
            f"{least_samples(coverage)}"
        )
    return Promise(coverage, float(true[place - 1]), len(true))


def least_samples(coverage: float) -> int:
    """The number of images from which on a threshold exists: the least n with (n + 1)(1 − α) ≤ n."""
    return math.ceil(round(coverage / (1 - coverage), 9))


def crossed(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> dict[str, float]:
    """The same metrics where there are no other images: each half is judged by the threshold of the other half.

    None where halves are too small.
    """
    if len(labels) // 2 < least_samples(coverage):
        return {}
    order = np.random.default_rng(0).permutation(len(labels))
    halves = order[::2], order[1::2]
    found = [
        calibrate(probabilities[theirs], labels[theirs], coverage).metrics(probabilities[ours], labels[ours])
        for ours, theirs in (halves, halves[::-1])
    ]
    weights = [len(half) for half in halves]
    return {name: float(np.average([f[name] for f in found], weights=weights)) for name in found[0]}
