"""The LightningModule that all tasks train with: optimiser, schedule, EMA and exact evaluation."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from crossformerpp.data.split import Split
from crossformerpp.recipes.load import dump_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.elastic import Elastic
from crossformerpp.tasks.loading import LoadReport
from crossformerpp.tasks.memory import is_out_of_memory
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule
from crossformerpp.tasks.plug import Evaluation
from crossformerpp.tasks.saved import KEY, pack
from crossformerpp.tasks.watched import WatchedBatch


class TaskModule(pl.LightningModule):
    """A model that is being trained; see `engine` for what a subclass adds.

    Attributes:
        model: The network.
        ema: Its moving average, or None.
        elastic: The groupings that each step trains, or None.
        losses: Detached parts of the last training loss, for the logs.
        last_evaluation: What the latest validation found.
        plan: Set by the engine before training.
        data_marks: What the checkpoint notes of the data, by split; set by the engine.
        started_from: The load report of `recipe.model.checkpoint`, if it names one; set by the task.
        batch_multiple: A training batch must have a multiple of so many samples.
        watch: Is shown each training batch with its losses; None: nobody looks.
        around_gradients: What the engine does around the computation of a step's gradients.
    """

    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["max", "min"]] = "max"

    def __init__(self, model: nn.Module, recipe: BaseRecipe, class_names: list[str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.class_names = class_names
        self.model = model
        self.ema: ModelEmaV3 | None = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
            self.ema.requires_grad_(False)
        self.elastic: Elastic | None = None
        if recipe.model.elastic is not None:
            self.elastic = Elastic(recipe.model.elastic, model, recipe.trainer.seed)
        self.losses: dict[str, Tensor] = {}
        self.last_evaluation: Evaluation | None = None
        self.plan: Plan | None = None
        self.data_marks: dict[str, Any] = {}
        self.started_from: LoadReport | None = None
        self.batch_multiple = 1
        self.around_gradients: Callable[[Callable[[], Any]], Any] = lambda closure: closure()
        self.watch: Callable[[WatchedBatch], None] | None = None
        self._halvings = 0  # of evaluated batches, for want of memory

    def meet(self, split: Split) -> None:
        """Learn from the training data, before training, what the loss needs to know of them.

        Raises:
            ValueError: The recipe's loss does not fit them.
        """

    @abstractmethod
    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Scalars: "loss", which is minimised, and parts to log."""

    def elastic_loss(self, elastic: Elastic, batch: Any) -> dict[str, Tensor]:
        """As `loss`, the mean over the groupings of this step."""
        return mean_losses([self.loss(batch) for _ in elastic.each(self.global_step)])

    @abstractmethod
    def evaluate_batch(self, model: nn.Module, batch: Any) -> None:
        """Add a batch to the metrics; `model` holds the weights to evaluate."""

    @abstractmethod
    def evaluation(self) -> Evaluation:
        """The result over the batches of all processes since the last call."""

    def look(self, batch: Any) -> tuple[nn.Module, Tensor]:
        """The backbone, and the images (B, C, H, W) of a training batch as it sees them."""
        return self.model, batch[0]

    def pictures(self) -> dict[str, Image.Image]:
        """File name without suffix → RGB picture of the latest evaluation, for the run folder and TensorBoard."""
        return {}

    @property
    def result(self) -> float:
        """What chooses the best checkpoint: the latest evaluation's metric, with a sign by which higher is better.

        Raises:
            ValueError: It has none.
        """
        assert self.last_evaluation is not None
        value = self.last_evaluation.metrics.get(self.monitor, math.nan)
        if math.isnan(value):
            raise ValueError(
                f"nothing in the validation images is labelled, so that there is no {self.monitor}, which chooses the "
                "best checkpoint; label some of them"
            )
        return value if self.monitor_mode == "max" else -value

    @property
    def judged(self) -> nn.Module:
        """The network that evaluation and prediction use: the average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.loss(batch) if self.elastic is None else self.elastic_loss(self.elastic, batch)
        self.losses = {name: value.detach() for name, value in losses.items()}
        return losses["loss"]

    def halves(self, batch: Any) -> list[Any]:
        """An evaluated batch in two; empty if it cannot be divided, or need not, for its images come one by one."""
        return []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: Any, halved: int = 0) -> None:
        """Evaluate a batch that was halved so often, or its halves, if so many images do not fit into memory."""
        halves = self.halves(batch)
        if halved >= self._halvings or not halves:
            try:
                self.evaluate_batch(self.judged, batch)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error) or not halves:
                    raise
            self._halvings = halved + 1
            warnings.warn("out of memory in an evaluation: its batches are halved", stacklevel=2)
        for half in halves:
            self._evaluate(half, halved + 1)

    def on_validation_epoch_end(self) -> None:
        self.last_evaluation = self.evaluation()

    def configure_optimizers(self) -> Any:
        assert self.plan is not None
        optimizer = build_optimizer(self.model, self.recipe)
        schedule = build_schedule(optimizer, self.recipe, self.plan)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take rates and schedule from the recipe, which may have changed; the schedule has no state of its own."""
        assert self.plan is not None
        optimizer = build_optimizer(self.model, self.recipe)
        schedule = build_schedule(optimizer, self.recipe, self.plan)
        (state,) = checkpoint["optimizer_states"]
        for saved, fresh in zip(state["param_groups"], optimizer.param_groups, strict=True):
            saved.update({key: value for key, value in fresh.items() if key != "params"})
        checkpoint["lr_schedulers"] = [schedule.state_dict()]
        # the loops count batches, of which a step may have had another number, or may have been dropped among them
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * self.recipe.trainer.accumulate
        if not progress["total"]["ready"] == progress["total"]["processed"] == batches:
            for count in (progress["total"], progress["current"]):
                count.update(dict.fromkeys(count, batches))

    def on_train_start(self) -> None:
        self.lr_scheduler_step(self.lr_schedulers(), None)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rate of the step to come."""
        assert self.plan is not None
        step = self.global_step
        scheduler.step_update(step)
        scheduler.step(step // self.plan.steps_per_epoch)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        super().optimizer_step(epoch, batch_idx, optimizer, partial(self.around_gradients, optimizer_closure))
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        page = dump_recipe(self.recipe)
        checkpoint[KEY] = pack(page, self.class_names, self.global_step, self.data_marks)


def mean_losses(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each loss over several."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
