"""Loss and exact metrics of image classification (paper Sec. 5.1)."""

import warnings
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_only
from timm.data import Mixup
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from crossformerpp.data.balance import class_counts, hint_on_few
from crossformerpp.data.split import Split
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.tasks.backbone import head_prefixes
from crossformerpp.tasks.classification.distillation import distillation_loss, open_teacher
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.losses import build_loss
from crossformerpp.tasks.elastic import Elastic
from crossformerpp.tasks.module import TaskModule, mean_losses
from crossformerpp.tasks.plug import Evaluation
from crossformerpp.tasks.watched import WatchedBatch, pictured

Batch = tuple[Tensor, Tensor, Tensor]  # images B × 3 × H × W, labels B or targets B × K, sample numbers B


class Gathered(NamedTuple):
    """M samples that could be read: their numbers (M,), labels (M,) or targets (M, K), probabilities (M, K)."""

    numbers: Tensor
    labels: Tensor
    probabilities: Tensor
    num_unreadable: int


class ClassificationModule(TaskModule):
    """The recipe's loss with label smoothing, or the soft targets of Mixup and CutMix (timm's); and distillation."""

    monitor: ClassVar[str] = "top1"

    def __init__(self, model: nn.Module, recipe: ClassificationRecipe, class_names: list[str]) -> None:
        super().__init__(model, recipe, class_names)
        augment = recipe.augment
        self.mix: _Mixup | None = None
        if augment.mixup or augment.cutmix:
            self.mix = _Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_probability,
                switch_prob=augment.mix_switch,
                label_smoothing=0.0 if recipe.multi_label else recipe.label_smoothing,  # `LabelsLoss` smooths
                num_classes=len(class_names),
                multi_label=recipe.multi_label,
            )
            self.batch_multiple = 2
        self.criterion = build_loss(recipe, class_names)
        self.teacher = open_teacher(recipe, len(class_names))
        self.seen = Predictions()
        self.is_frozen = recipe.frozen_backbone
        if self.is_frozen:
            head = head_prefixes(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(head))
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(f"frozen_backbone: {recipe.model.name} has no head that could learn")

    def meet(self, split: Split) -> None:
        """Count the images of each class, for the loss and for a hint on classes with few."""
        assert isinstance(self.recipe, ClassificationRecipe)
        assert split.labels is not None
        counts = class_counts(split.labels, len(self.class_names))
        self.criterion = build_loss(self.recipe, self.class_names, counts.tolist(), len(split.labels))
        loss = self.recipe.loss
        is_balanced = self.recipe.data.sampling != "plain" or loss.class_weights is not None
        is_balanced = is_balanced or loss.name == "logit_adjusted"
        hint = hint_on_few(counts, self.class_names, is_balanced, self.recipe.multi_label)
        if hint is not None and not rank_zero_only.rank:  # type: ignore[attr-defined]
            warnings.warn(hint, stacklevel=2)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.train()  # which Lightning leaves to the module

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:  # its norms keep their statistics, and no path is dropped
            self.model.eval()
        return self

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = self._mixed(batch)
        logits = self.model(images)
        losses = self._losses(images, labels, logits)
        self._show(batch, images, labels, logits)
        return losses

    def elastic_loss(self, elastic: Elastic, batch: Batch) -> dict[str, Tensor]:
        """The mean over the groupings of this step, all of them on the same mixed images; with `distill` the first,
        the largest, teaches the others."""
        images, labels = self._mixed(batch)
        weight, parts = elastic.section.distill, []
        largest: Tensor | None = None
        for drawn in elastic.each(self.global_step):
            logits = self.model(drawn.view(images))
            losses = self._losses(images, labels, logits)
            if largest is None:
                self._show(batch, images, labels, logits)
            if largest is not None and weight:
                taught = distillation_loss(logits, largest, temperature=1.0)
                losses["loss"] = (1 - weight) * losses["loss"] + weight * taught
            largest = logits.detach() if largest is None else largest
            parts.append(losses)
        return mean_losses(parts)

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch, after Mixup and CutMix if the recipe has them."""
        images, labels, _ = batch
        if self.mix is not None:
            if len(images) % 2:
                raise ValueError(
                    f"mixup and cutmix pair the images of a process' batch, which are {len(images)}: an odd number; "
                    "pass another trainer.batch_size"
                )
            images, labels = self.mix(images, labels)
        return images, labels

    def _losses(self, images: Tensor, labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
        loss = self.criterion(logits.float(), labels)  # autocast leaves some losses in half precision on CPUs
        if self.teacher is None:
            return {"loss": loss}
        assert isinstance(self.recipe, ClassificationRecipe)
        section = self.recipe.distill
        assert section is not None
        taught = distillation_loss(logits, self.teacher(images), section.temperature)
        total = (1 - section.weight) * loss + section.weight * taught
        return {"loss": total, "loss_labels": loss, "loss_teacher": taught}

    def _show(self, batch: Batch, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Show a batch to whoever watches."""
        if self.watch is None:
            return
        assert isinstance(self.recipe, ClassificationRecipe)
        data, count = self.recipe.data, len(images)
        with torch.no_grad():
            ones = [slice(number, number + 1) for number in range(count)]
            losses = [float(self._losses(images[one], labels[one], logits[one])["loss"]) for one in ones]
        is_mixed = self.mix is not None and self.mix.share < 1
        partners = [count - 1 - number if is_mixed else None for number in range(count)]
        names = [self._in_words(target) for target in batch[1]]
        if is_mixed:
            assert self.mix is not None
            share = self.mix.share
            others = reversed(names)
            names = [f"{own} {share:.0%} + {other}" for own, other in zip(names, others, strict=True)]
        numbers = [int(number) for number in batch[2]]
        self.watch(WatchedBatch(pictured(images, data.mean, data.std), names, losses, partners, numbers))

    def _in_words(self, target: Tensor) -> str:
        """A label, or a row of targets (K,)."""
        labels = [int(target)] if target.ndim == 0 else target.nonzero()[:, 0].tolist()
        return ", ".join(self.class_names[label] for label in labels) or "none"

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> None:
        images, labels, numbers = batch
        self.seen.update(numbers, labels, F.softmax(model(images).float(), dim=1))

    def halves(self, batch: Batch) -> list[Any]:
        return list(zip(*(part.chunk(2) for part in batch), strict=True)) if len(batch[0]) > 1 else []

    def evaluation(self) -> Evaluation:
        numbers, labels, probabilities, num_unreadable = self.gathered()
        return ClassificationEvaluation(
            numbers, labels, probabilities, self.class_names, num_unreadable, self._real_labels()
        )

    def gathered(self) -> Gathered:
        """What was evaluated since the last call, of all processes, in the order of the split.

        Raises:
            ValueError: The network's output is not a number.
        """
        numbers, labels, probabilities = self.seen.compute()
        self.seen.reset()
        if bad := int((~probabilities.isfinite()).any(dim=1).sum()):
            raise ValueError(
                f"the network's output is not a number (NaN) for {bad} of {len(numbers)} images; a lower optim.lr or "
                "trainer.precision=32-true may help"
            )
        order = numbers.argsort()
        order = order[int((numbers < 0).sum()) :]  # negative numbers mean unreadable images
        return Gathered(numbers[order], labels[order], probabilities[order], len(numbers) - len(order))

    def _real_labels(self) -> list[list[int]] | None:
        assert isinstance(self.recipe, ClassificationRecipe)
        if self.recipe.data.real_labels is None:
            return None
        loader = self.trainer.val_dataloaders
        assert loader is not None
        return loader.dataset.source.real_labels


class _Mixup(Mixup):
    """timm's, which remembers the share of the images themselves in the latest batch; the rest is their partners'."""

    share = 1.0

    def _mix_batch(self, x: Tensor) -> float:
        self.share = float(super()._mix_batch(x))
        return self.share


class Predictions(Metric):
    """Collects predictions; `compute` gathers them from all processes, however many samples each had."""

    full_state_update = False
    numbers: list[Tensor]
    labels: list[Tensor]
    probabilities: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=self._gather)
        for name in ("numbers", "labels", "probabilities"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _gather(self, values: Tensor, group: Any = None) -> list[Tensor]:
        """Of all processes, by way of the device: NCCL takes nothing on the CPU."""
        return [part.cpu() for part in gather_all_tensors(values.to(self.device), group)]

    def update(self, numbers: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        # torchmetrics' compute_on_cpu would move all that came before each time
        self.numbers.append(numbers.cpu())
        self.labels.append(labels.cpu())
        self.probabilities.append(probabilities.cpu())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        return dim_zero_cat(self.numbers), dim_zero_cat(self.labels), dim_zero_cat(self.probabilities)
