"""Which labels an image has: those whose probability reaches the threshold of their class, chosen for the best F1.

Legend: M images, K classes.
"""

import numpy as np

UNKNOWN = 0.5  # of a class that no image has to choose by


def choose_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K,) of float32, the thresholds with the greatest F1: probabilities (M, K) of float32, truth (M, K) of bool.

    A threshold lies halfway between the least probability above it and the next lower one; of equal F1 it is the
    highest.
    """
    return np.array([_best(*columns) for columns in zip(probabilities.T, truth.T, strict=True)], np.float32)


def decide_crossed(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(M, K) of bool: the labels of each half of the images by the thresholds of the other half, so that figures
    are not flattered by thresholds that were chosen on the same images."""
    order = np.random.default_rng(0).permutation(len(truth))
    halves = order[::2], order[1::2]
    found = np.zeros(truth.shape, bool)
    for ours, theirs in (halves, halves[::-1]):
        found[ours] = probabilities[ours] >= choose_thresholds(probabilities[theirs], truth[theirs])
    return found


def _best(probabilities: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        return UNKNOWN
    order = np.argsort(-probabilities, kind="stable")
    sorted_, hits = probabilities[order].astype(np.float32), np.cumsum(truth[order])
    lower = np.append(sorted_[1:], np.float32(0))
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    f1[(sorted_ == lower) & (np.arange(len(hits)) < len(hits) - 1)] = -1  # equal probabilities stay together
    place = int(np.argmax(f1))
    middle = np.float32((float(sorted_[place]) + float(lower[place])) / 2)
    return float(middle if middle > lower[place] else sorted_[place])
