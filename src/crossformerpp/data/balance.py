"""Classes with few images: how many each has, how often a sample is drawn, what to say at the start of training.

Legend: N samples, K classes, n_k samples of class k.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

Labels = Sequence[int] | Sequence[Sequence[int]]  # a class per sample, or all classes of each sample

_FEW = 10  # images of a class that are few in any case
_RARE = 10  # times fewer images than the most frequent class has
_NAMED = 5  # classes named in the hint


def class_counts(labels: Labels, num_classes: int) -> np.ndarray:
    """(K,) samples of each class."""
    return np.bincount(_pairs(labels)[1], minlength=num_classes)


def sample_weights(labels: Labels, num_classes: int, how: Literal["balanced", "sqrt"]) -> np.ndarray:
    """(N,) how often each sample is drawn, relative to others.

    1 / n_k with "balanced": all classes come equally often. 1 / √n_k with "sqrt": classes come as √n_k (Mahajan et al.,
    Exploring the Limits of Weakly Supervised Pretraining, 2018). A sample of several classes has the weight of its
    rarest, as in LVIS (Gupta et al., 2019, Sec. 5); one of none that of the most frequent class.
    """
    samples, classes = _pairs(labels)
    counts = np.bincount(classes, minlength=num_classes).clip(min=1)
    rarity = 1.0 / (counts if how == "balanced" else np.sqrt(counts))
    weights = np.full(len(labels), rarity.min())
    np.maximum.at(weights, samples, rarity[classes])
    return weights


def hint_on_few(
    counts: np.ndarray, class_names: Sequence[str], is_balanced: bool, multi_label: bool = False
) -> str | None:
    """What to say of classes that have few images, if there are any.

    Args:
        is_balanced: Whether the recipe already draws or weighs classes by their counts.
        multi_label: Whether images have any number of labels.
    """
    few = [int(place) for place in np.argsort(counts, kind="stable") if counts[place] < _FEW]
    largest = int(counts.max())
    rare = [int(p) for p in np.argsort(counts, kind="stable") if counts[p] * _RARE <= largest]
    named = list(dict.fromkeys([*rare, *few]))
    if not named:
        return None
    listed = ", ".join(f"{class_names[place]} {counts[place]}" for place in named[:_NAMED])
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    text = f"classes with few images for training: {listed}{more}; the most frequent has {largest}"
    if rare and not is_balanced:
        weighs = "loss.class_weights=effective" if multi_label else "loss.name=logit_adjusted"
        text += f". --set data.sampling=balanced (or sqrt) draws them more often, --set {weighs} makes them count more"
    if few:
        text += ". With so few, start from trained weights: recipes finetune and linear_probe"
    return text


def _pairs(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(sample, class) of every label."""
    numbers: Any = labels
    if len(numbers) and isinstance(numbers[0], int):
        return np.arange(len(numbers)), np.asarray(numbers, dtype=np.int64)
    lengths = [len(own) for own in numbers]
    classes = np.fromiter(chain.from_iterable(numbers), dtype=np.int64, count=sum(lengths))
    return np.repeat(np.arange(len(numbers)), lengths), classes
