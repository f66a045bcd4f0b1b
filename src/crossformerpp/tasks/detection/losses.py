"""Losses as MMDetection has them.

Mask R-CNN: L1 losses of boxes in both stages, where torchvision has smooth L1 with β = 1/9. RetinaNet: sums over a
batch divided by the positive anchors of the batch, where torchvision divides image by image and averages.

Legend: A anchors of all images of a batch, R sampled boxes of all images, K classes with the background.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork


def with_l1_loss(rpn: RegionProposalNetwork, heads: RoIHeads) -> tuple[RegionProposalNetwork, RoIHeads]:
    """The same stages, sharing all their parts, with L1 losses of boxes."""
    return _adopt(L1ProposalNetwork, rpn), _adopt(L1RoIHeads, heads)


def _adopt(kind: Any, module: Any) -> Any:
    """A `kind`, a subclass of the module's class, that has the module's attributes."""
    adopted = kind.__new__(kind)
    adopted.__dict__.update(module.__dict__)
    return adopted


class L1ProposalNetwork(RegionProposalNetwork):
    """torchvision's first stage; the loss of boxes is the sum of |differences| over the number of sampled anchors."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(chosen).bool() for chosen in self.fg_bg_sampler(labels))
        sampled = positive | negative  # A
        targets = torch.cat(regression_targets)[positive]
        boxes = F.l1_loss(pred_bbox_deltas[positive], targets, reduction="sum") / sampled.sum()
        logits = objectness.flatten()[sampled]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(labels)[sampled]), boxes


class L1RoIHeads(RoIHeads):
    """torchvision's second stage; the loss of boxes is the sum of |differences| over the number of sampled boxes."""

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        self._samples = super().select_training_samples(proposals, targets)
        return self._samples

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        predicted: list[Tensor] = []
        hook = self.box_predictor.register_forward_hook(lambda _, __, output: predicted.append(output[1]))
        try:
            found, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        _, _, labels, wanted = self._samples
        del self._samples
        losses["loss_box_reg"] = _l1_of_positives(predicted[0], torch.cat(labels), torch.cat(wanted))
        return found, losses


class BatchAveragedHead(RetinaNetHead):
    """torchvision's head; an image's share in the losses of a batch grows with its number of positive anchors."""

    def compute_loss(
        self, targets: Any, head_outputs: dict[str, Tensor], anchors: Any, matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        positives = [max(1, int((matched >= 0).sum())) for matched in matched_idxs]
        losses: dict[str, Tensor] = {}
        for image, count in enumerate(positives):
            outputs = {name: output[image : image + 1] for name, output in head_outputs.items()}
            one = slice(image, image + 1)
            alone = super().compute_loss(targets[one], outputs, anchors[one], matched_idxs[one])
            for name, loss in alone.items():
                losses[name] = losses.get(name, 0.0) + loss * (count / sum(positives))
        return losses


def _l1_of_positives(deltas: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Of deltas (R, 4·K), labels (R), 0 for the background, and wanted deltas (R, 4)."""
    positive = (labels > 0).nonzero()[:, 0]
    own = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    return F.l1_loss(own, wanted[positive], reduction="sum") / len(labels)
