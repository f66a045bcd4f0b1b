"""Losses and exact average precision of a detector in training (paper Sec. 5.2)."""

from collections import Counter
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor, nn

from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.tasks.detection.evaluation import DetectionEvaluation, Kind, Record, describe
from crossformerpp.tasks.detection.watched import drawn, losses_of_images
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.watched import WatchedBatch

Batch = tuple[list[Tensor], list[dict[str, Any]]]  # images 3 × H × W bytes; targets, or truths


class DetectionModule(TaskModule):
    """torchvision's losses, unweighted; the best checkpoint is that of the highest box AP."""

    monitor: ClassVar[str] = "box_AP"

    def __init__(self, model: nn.Module, recipe: DetectionRecipe, class_names: list[str]) -> None:
        super().__init__(model, recipe, class_names)
        self.kinds: tuple[Kind, ...] = ("box",) if recipe.detector.name == "retinanet" else ("box", "mask")
        self.records: list[Record] = []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        if self.watch is None:
            parts = self.model(images, targets)
        else:
            detector: Any = self.model
            parts, each = losses_of_images(detector, images, targets)
            self.watch(self._watched(images, targets, each))
        return {"loss": sum(parts.values()), **{name.removeprefix("loss_"): parts[name] for name in parts}}

    def _watched(
        self, images: list[Tensor], targets: list[dict[str, Any]], losses: list[float]
    ) -> WatchedBatch:
        labels = []
        for target in targets:
            counts = Counter(self.class_names[label] for label in target["labels"].tolist())
            labels.append(", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing")
        pictures = [drawn(image, target) for image, target in zip(images, targets, strict=True)]
        return WatchedBatch(pictures, labels, losses, [None] * len(images))

    def look(self, batch: Batch) -> tuple[nn.Module, Tensor]:
        detector: Any = self.model
        return detector.backbone, detector.transform(batch[0])[0].tensors

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> None:
        images, truths = batch
        assert isinstance(self.recipe, DetectionRecipe)
        rules = self.recipe.detector.rules
        for image, truth in zip(images, truths, strict=True):
            (found,) = model([image])  # alone: padding to the size of another would change the groups of LDA
            described = describe(found, truth["height"], truth["width"], rules)
            self.records.append({"truth": truth, "found": described})

    def evaluation(self) -> DetectionEvaluation:
        """The first process evaluates the records of all; every process gets the figures."""
        records, self.records = self.records, []
        if not (dist.is_available() and dist.is_initialized()):
            return DetectionEvaluation.of(records, self.class_names, self.kinds)
        is_first = dist.get_rank() == 0
        gathered: list[Any] | None = [None] * dist.get_world_size() if is_first else None
        dist.gather_object(records, gathered)
        judged: DetectionEvaluation | None = None
        if gathered is not None:
            everybodys = [record for part in gathered for record in part]
            judged = DetectionEvaluation.of(everybodys, self.class_names, self.kinds)
        shared = [(judged.metrics, judged.per_class) if judged is not None else None]
        dist.broadcast_object_list(shared)
        assert shared[0] is not None
        return judged or DetectionEvaluation(*shared[0], self.class_names, [])
