"""Training and evaluating a classifier of images with any number of labels."""

from typing import ClassVar

import torch
from torch import nn

from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.classification.module import Batch, ClassificationModule
from crossformerpp.tasks.plug import Evaluation


class LabelSetModule(ClassificationModule):
    """Each class for itself: a sigmoid, and binary cross-entropy or another loss of targets (B, K)."""

    monitor: ClassVar[str] = "mAP"

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> None:
        images, targets, numbers = batch
        self.seen.update(numbers, targets.to(torch.uint8), model(images).float().sigmoid())

    def evaluation(self) -> Evaluation:
        numbers, targets, probabilities, num_unreadable = self.gathered()
        return LabelSetEvaluation(numbers, targets.bool(), probabilities, self.class_names, num_unreadable)
