"""Labels that are likely wrong, by confident learning (Northcutt et al., 2021): predictions of each item by a
classifier that was fitted to the others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

FOLDS = 5
_SIDE, _CELL, _COLOURS = (
    32,
    8,
    4,
)  # pixels of the image and of a cell of its gradients; patches of colour a side
_STRENGTH = 0.01  # of the classifier: 1 / the weight of its penalty, for standardised features

Track = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True)
class Doubt:
    """A label that is likely wrong.

    Attributes:
        item: Its number.
        suggestion: The most likely label.
        given, suggested: Probabilities of the two.
    """

    item: int
    suggestion: int
    given: float
    suggested: float


def pixel_features(images: Sequence[Image.Image]) -> np.ndarray:
    """(N, 372) of RGB images: histograms of gradients (Dalal and Triggs, 2005) and a grid of colours.

    They need no network. Those of a trained one know more of photographs.
    """
    from skimage.feature import hog

    rows = []
    for image in images:
        grey = (
            np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float32) / 255
        )
        shapes = hog(grey, orientations=9, pixels_per_cell=(_CELL, _CELL), cells_per_block=(2, 2))
        colours = np.asarray(image.resize((_COLOURS, _COLOURS), Image.Resampling.BOX), np.float32) / 255
        rows.append(np.concatenate([shapes, colours.ravel()]))
    return np.stack(rows).astype(np.float32)


def doubtful(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    track: Track = iter,
) -> tuple[list[Doubt], set[int]]:
    """Find labels that are likely wrong, the least likely first.

    Args:
        features: (N, D).
        labels: (N,) from 0.
        groups: (N,) items of a group, which show the same thing, are in one fold: a copy would confirm its label.

    Returns:
        The doubts, and the classes with fewer groups than folds, which cannot be judged.

    Raises:
        ValueError: cleanlab is not installed.
    """
    counts = np.bincount(np.unique(np.stack([labels, groups]), axis=1)[0])  # groups of each class
    small = {int(label) for label in np.flatnonzero((counts > 0) & (counts < FOLDS))}
    kept = np.flatnonzero(counts[labels] >= FOLDS)
    classes, own = np.unique(labels[kept], return_inverse=True)
    if len(classes) < 2:
        return [], small
    shares = _out_of_fold(features[kept], own, groups[kept], track)
    doubts = []
    for place in _issues(own, shares):
        best = int(shares[place].argmax())
        if best != own[place]:
            given, suggested = float(shares[place, own[place]]), float(shares[place, best])
            doubts.append(Doubt(int(kept[place]), int(classes[best]), given, suggested))
    return sorted(doubts, key=lambda doubt: (doubt.given, doubt.item)), small


def _issues(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        raise ValueError(
            "label errors need cleanlab: pip install '.[doctor]' in a checkout of crossformerpp, or pass --no-labels"
        ) from None
    return np.flatnonzero(find_label_issues(labels, shares, filter_by="prune_by_class", n_jobs=1))


def _out_of_fold(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, track: Track) -> np.ndarray:
    """(N, K) probabilities of each item by a logistic regression that has not seen it nor its group."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shares = np.zeros((len(labels), labels.max() + 1))
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, labels, groups))
    for number in track(range(len(folds))):
        train, test = folds[number]
        if not len(test):
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=200))
        model.fit(features[train], labels[train])
        # a class of one large group may be missing from the others
        shares[test[:, None], model[-1].classes_] = model.predict_proba(features[test])
    return shares
