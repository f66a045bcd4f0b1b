"""The loaders of a run: training as one numbered stream of batches, evaluation of every sample once."""

from dataclasses import replace

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Subset

from crossformerpp.data.sampling import BatchStream, EvalOrder, SeededDataset, num_samples
from crossformerpp.data.split import Split
from crossformerpp.recipes.schema import TrainerSection
from crossformerpp.tasks.optim import Plan


class RunData(pl.LightningDataModule):
    """Builds the loaders once the Trainer knows how many processes there are."""

    def __init__(
        self, trainer: TrainerSection, val: Split, train: Split | None = None, plan: Plan | None = None
    ) -> None:
        super().__init__()
        self.section = trainer
        self.train, self.val, self.plan = train, val, plan
        self.start_step = 0  # set on resuming

    def stream(self, rank: int, world: int, start_step: int | None = None) -> BatchStream:
        """The training batches of one process, from a step on; None: from `start_step`.

        Raises:
            ValueError: The batch size does not fit the data or the devices.
        """
        assert self.train is not None
        assert self.plan is not None
        begin = self.start_step if start_step is None else start_step
        return BatchStream(
            num_samples(self.train),
            self.section.batch_size,
            self.plan.steps,
            seed=self.section.seed,
            accumulate=self.section.accumulate,
            rank=rank,
            world=world,
            start=begin * self.section.accumulate,
            groups=self.train.groups,
            weights=self.train.weights,
        )

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        assert self.trainer is not None
        stream = self.stream(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            self.seeded(self.train), batch_sampler=stream, collate_fn=self.train.collate, **self._settings()
        )

    def seeded(self, split: Split) -> SeededDataset:
        """A split's samples as functions of the run's seed, the epoch and the index."""
        return SeededDataset(split.dataset, self.section.seed)

    def val_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        world = self.trainer.world_size
        batch = self.section.eval_batch_size
        if batch is None:
            batch = max(1, self.section.batch_size // (world * max(1, self.section.accumulate)))
        order = EvalOrder(range(num_samples(self.val)), self.trainer.global_rank, world)
        return DataLoader(
            self.val.dataset,
            batch_size=batch,
            sampler=order,
            collate_fn=self.val.collate,
            **self._settings(persistent=False),
        )

    def _settings(self, persistent: bool = True) -> dict:
        assert self.trainer is not None
        workers = self.section.workers
        return {
            "num_workers": workers,
            "pin_memory": self.trainer.strategy.root_device.type == "cuda",
            "persistent_workers": persistent and workers > 0,
        }


def first_batch(split: Split, section: TrainerSection) -> Split:
    """Only as many samples as a batch has, drawn once: what `trainer.overfit_batch` trains on."""
    generator = np.random.default_rng(section.seed)
    chosen = sorted(generator.permutation(num_samples(split))[: section.batch_size].tolist())
    groups = None if split.groups is None else [0] * len(chosen)
    return replace(split, dataset=Subset(split.dataset, chosen), groups=groups, weights=None)
