"""Losses and exact average precision of a detector in training (paper Sec. 5.2)."""

from collections import Counter
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossformerpp.analysis.tiled import merge_tiles, tiles_of
from crossformerpp.data.tiles import Tile
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
        data = recipe.data
        self.removes = data.jitter is not None or data.tiles is not None or data.copy_paste > 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        if self.watch is None:
            parts = self.model(images, targets)
        else:
            detector: Any = self.model
            parts, each = losses_of_images(detector, images, targets)
            self.watch(self._watched(images, targets, each))
        logged = {name.removeprefix("loss_"): value for name, value in parts.items()}
        if self.removes:
            removed = [target["removed"] for target in targets]
            logged["objects_removed"] = torch.stack(removed).float().mean()  # per image, by the training view
        return {"loss": sum(parts.values()), **logged}

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
        for image, truth in zip(images, truths, strict=True):
            found = self._found(model, image, self.recipe)
            self.records.append({"truth": truth, "found": found})

    def _found(self, model: nn.Module, image: Tensor, recipe: DetectionRecipe) -> list[dict[str, Any]]:
        """The objects of an image, 3 × H × W bytes, looked at alone or tile by tile: padding to the size of another
        image would change the groups of LDA."""
        height, width = image.shape[1:]
        section = recipe.data.tiles
        tiles = [Tile(0, 0, width, height)] if section is None else tiles_of(width, height, section)
        seen = []
        for left, top, right, bottom in tiles:
            (found,) = model([image[:, top:bottom, left:right]])
            seen.append(describe(found, bottom - top, right - left, recipe.detector.rules))
        return seen[0] if len(tiles) == 1 else merge_tiles(seen, tiles, width, height)

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
