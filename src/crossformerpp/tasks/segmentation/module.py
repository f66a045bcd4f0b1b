"""Loss and evaluation of semantic segmentation (paper Sec. 5.3)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from crossformerpp.analysis.overlay import blend
from crossformerpp.data.mask_files import IGNORED
from crossformerpp.data.pixel_tensors import tensor_picture
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks.module import TaskModule
from crossformerpp.tasks.segmentation.evaluation import Example, PixelCounts, SegmentationEvaluation
from crossformerpp.tasks.segmentation.inference import Look
from crossformerpp.tasks.segmentation.model import Segmenter
from crossformerpp.tasks.watched import WatchedBatch, pictured

NUM_SHOWN = 8  # images in overlays.png


class SegmentationModule(TaskModule):
    """Cross-entropy of every labelled pixel, plus that of the auxiliary head."""

    monitor: ClassVar[str] = "miou"
    model: Segmenter

    def __init__(self, model: Segmenter, recipe: SegmentationRecipe, class_names: list[str]) -> None:
        super().__init__(model, recipe, class_names)
        self.counts = PixelCounts(len(class_names))
        self._examples: list[Example] = []

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        logits, auxiliary = self.model.forward_train(images)
        losses = self._losses(logits, auxiliary, labels)
        if self.watch is not None:
            with torch.no_grad():
                self.watch(self._watched(images, labels, logits, auxiliary))
        return losses

    def _losses(self, logits: Tensor, auxiliary: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        main = _cross_entropy(logits, labels)
        if auxiliary is None:
            return {"loss": main}
        aside = _cross_entropy(auxiliary, labels)
        return {
            "loss": main + self.model.auxiliary_weight * aside,
            "loss_main": main,
            "loss_auxiliary": aside,
        }

    def _watched(
        self, images: Tensor, labels: Tensor, logits: Tensor, auxiliary: Tensor | None
    ) -> WatchedBatch:
        assert isinstance(self.recipe, SegmentationRecipe)
        data, colors = self.recipe.data, [(r, g, b) for r, g, b in self.model.colors.tolist()]
        pictures, names, losses = [], [], []
        for number, picture in enumerate(pictured(images, data.mean, data.std)):
            one, truth = slice(number, number + 1), labels[number].cpu()
            aside = None if auxiliary is None else auxiliary[one]
            losses.append(float(self._losses(logits[one], aside, labels[one])["loss"]))
            pictures.append(blend(picture, truth.numpy(), colors))
            counts = truth[truth != IGNORED].bincount(minlength=len(self.class_names))
            shown = [index for index in counts.argsort(descending=True).tolist() if counts[index]]
            names.append(", ".join(self.class_names[index] for index in shown))
        return WatchedBatch(pictures, names, losses, [None] * len(pictures))

    def look(self, batch: tuple[Tensor, Tensor]) -> tuple[nn.Module, Tensor]:
        return self.model.backbone, batch[0]

    def evaluate_batch(self, model: nn.Module, batch: list[tuple[Tensor, Tensor, int]]) -> None:
        assert isinstance(self.recipe, SegmentationRecipe)
        data = self.recipe.data
        look = Look(model, len(self.class_names), self.recipe.inference, data.mean, data.std)
        for image, labels, number in batch:
            predicted = look.labels(image)
            self.counts.update(predicted, labels)
            if number < NUM_SHOWN:
                arrays = (x.cpu().numpy() for x in (labels, predicted))
                self._examples.append(Example(number, tensor_picture(image), *arrays))

    def evaluation(self) -> SegmentationEvaluation:
        confusion, images, unlabelled = self.counts.compute()
        per_image = self.counts.per_image
        self.counts.reset()
        examples, self._examples = self._examples, []
        return SegmentationEvaluation(
            confusion.cpu(),
            int(images),
            int(unlabelled),
            self.class_names,
            [(red, green, blue) for red, green, blue in self.model.colors.tolist()],
            examples,
            per_image,
        )

    def pictures(self) -> dict[str, Image.Image]:
        assert isinstance(self.last_evaluation, SegmentationEvaluation)
        return self.last_evaluation.pictures()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels, 0 if there are none; logits (B, K, h, w), labels (B, H, W)."""
    logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
