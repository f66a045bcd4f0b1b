"""The losses of classifiers, and the weights of their classes.

Legend: B images, K classes, n images for training, n_k of them of class k.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from crossformerpp.recipes.classification import ClassificationRecipe, LossSection


class ClassLoss(nn.Module):
    """−Σ_k w_k·y_k·(1 − p_k)^γ·log p_k with p = softmax(logits + shift), averaged over images.

    Cross-entropy with class weights w; with γ the focal loss of Lin et al. (2017) over a softmax; with shift = τ·log π,
    π_k = n_k / n, the logit-adjusted loss of Menon et al. (2021, Eq. 10), whose network answers without the shift.

    It divides by the number of images, not by their weights, so that the loss of a step is the mean over its parts,
    however many processes and accumulated batches there are.
    """

    weights: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
        shift: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.smoothing, self.gamma = smoothing, gamma
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, K) and labels (B,), or soft targets (B, K)."""
        logits = logits.float() if self.shift is None else logits.float() + self.shift
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1]).float()
            targets = targets * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        logs = F.log_softmax(logits, dim=1)
        terms = targets * logs
        if self.gamma:
            terms = terms * (1 - logs.exp()).clamp_min(1e-6) ** self.gamma
        if self.weights is not None:
            terms = terms * self.weights
        return -terms.sum(dim=1).mean()


class LabelsLoss(nn.Module):
    """A loss of each label by itself, averaged over images and classes; an image that has label k weighs w_k.

    Weights go by the labels before smoothing: else an image without a rare label would be drawn towards it with the
    smoothed part of the label's weight.

    Args:
        each: Loss of logits (B, K) and targets (B, K) -> (B, K).
        weights: (K,) w; None: all weigh 1.
    """

    weights: Tensor | None

    def __init__(
        self, each: Callable[[Tensor, Tensor], Tensor], smoothing: float = 0.0, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.each, self.smoothing = each, smoothing
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (B, K), which may be mixed."""
        losses = self.each(logits, targets * (1 - self.smoothing) + self.smoothing / 2)
        if self.weights is not None:
            losses = losses * (1 + (self.weights - 1) * targets)
        return losses.mean()


def build_loss(
    recipe: ClassificationRecipe,
    class_names: Sequence[str],
    counts: Sequence[int] | None = None,
    num_images: int = 0,
) -> nn.Module:
    """The loss of logits (B, K) and labels (B,) or targets (B, K).

    Args:
        counts: Images of each class for training; None: not known yet, all alike.
        num_images: n.

    Raises:
        ValueError: The class weights are not of these classes.
    """
    section, size = recipe.loss, len(class_names)
    known = torch.ones(size) if counts is None else torch.as_tensor(counts).float()
    weights = class_weights(section, class_names, known, num_images or size, recipe.multi_label)
    if recipe.multi_label:
        return LabelsLoss(_loss_of_labels(section), recipe.label_smoothing, weights)
    is_mixed = bool(recipe.augment.mixup or recipe.augment.cutmix)
    smoothing = 0.0 if is_mixed else recipe.label_smoothing  # mixed targets are smooth already
    if section.name == "focal":
        return ClassLoss(smoothing, weights, gamma=section.gamma)
    if section.name == "logit_adjusted":
        return ClassLoss(smoothing, weights, shift=section.tau * _log_shares(known))
    if weights is not None:
        return ClassLoss(smoothing, weights)
    if is_mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def _loss_of_labels(section: LossSection) -> Callable[[Tensor, Tensor], Tensor]:
    """(B, K) and (B, K) -> (B, K)."""
    if section.name == "focal":
        return partial(sigmoid_focal_loss, alpha=-1, gamma=section.gamma)
    if section.name == "asymmetric":
        return AsymmetricLossMultiLabel(
            section.gamma_negative, section.gamma_positive, section.clip, reduction="none"
        )
    return partial(F.binary_cross_entropy_with_logits, reduction="none")


def _log_shares(counts: Tensor) -> Tensor:
    """(K,) log π; classes without images count as if they had one."""
    counts = counts.clamp_min(1)
    return (counts / counts.sum()).log()


def class_weights(
    section: LossSection, class_names: Sequence[str], counts: Tensor, num_images: int, multi_label: bool
) -> Tensor | None:
    """(K,) weight of each class by the recipe's `loss.class_weights`, None without.

    With one label per image those made from counts are 1 on average over the images; with several they are what the
    images with a label weigh beside those without: (n − n_k) / n_k, or the same of effective numbers
    (1 − β^n_k) / (1 − β). A class without images weighs 1: label smoothing would draw all images towards it.

    Raises:
        ValueError: Another number of weights than classes, or a name that is none of them.
    """
    given = section.class_weights
    if given is None:
        return None
    if isinstance(given, dict):
        if unknown := [name for name in given if name not in class_names]:
            raise ValueError(
                f"loss.class_weights: no class {unknown[0]!r} among {', '.join(class_names[:10])}"
            )
        return torch.tensor([given.get(name, 1.0) for name in class_names])
    if isinstance(given, list):
        if len(given) != len(class_names):
            raise ValueError(f"loss.class_weights: {len(given)} weights for {len(class_names)} classes")
        return torch.tensor(given)
    counts = counts.double()
    numbers, others = counts.clamp_min(1), (num_images - counts).clamp_min(1)
    if given == "effective":
        numbers, others = 1 - section.beta**numbers, 1 - section.beta**others
    weights = others / numbers if multi_label else 1 / numbers
    if not multi_label:
        weights *= counts.sum() / (weights * counts).sum()
    return weights.where(counts > 0, 1.0).float()
