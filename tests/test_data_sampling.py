"""Which samples come when: the same for every division of the work, at every start, for every worker."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from crossformerpp.data.sampling import BatchStream, EvalOrder, SeededDataset, seed_generators, seeded

N, BATCH, STEPS = 50, 12, 10  # 4 steps in an epoch, 2 samples left out


def stream(**settings: int) -> list[list[tuple[int, int]]]:
    return list(BatchStream(N, BATCH, STEPS, seed=3, **settings))


def test_an_epoch_takes_each_sample_at_most_once_and_differs_from_the_next() -> None:
    batches = stream()
    assert len(batches) == STEPS
    for epoch in (0, 1):
        drawn = [
            index
            for batch in batches[4 * epoch : 4 * epoch + 4]
            for number, index in batch
            if number == epoch
        ]
        assert len(drawn) == len(set(drawn)) == 48
    assert [i for _, i in batches[0]] != [i for _, i in batches[4]]


@pytest.mark.parametrize("start", [1, 4, 7, 10])
def test_starting_later_gives_the_rest_of_the_same_stream(start: int) -> None:
    assert stream(start=start) == stream()[start:]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (2, 3)])
def test_the_samples_of_a_step_do_not_depend_on_how_it_is_divided(world: int, accumulate: int) -> None:
    whole = stream()
    parts = [stream(world=world, rank=rank, accumulate=accumulate) for rank in range(world)]
    for step in range(STEPS):
        drawn = [
            d for part in parts for batch in part[step * accumulate : (step + 1) * accumulate] for d in batch
        ]
        assert sorted(drawn) == sorted(whole[step])


def test_groups_keep_to_themselves_but_for_the_seams() -> None:
    groups = [index % 3 for index in range(120)]
    batches = list(BatchStream(120, 10, 24, seed=0, groups=groups))
    for epoch in (batches[:12], batches[12:]):
        assert Counter(index for batch in epoch for _, index in batch) == Counter(range(120))
        assert sum(len({groups[index] for _, index in batch}) > 1 for batch in epoch) <= 2
    firsts = [groups[batch[0][1]] for batch in batches[:12]]
    assert firsts != sorted(firsts)  # steps are shuffled, not one group after another


def test_batches_that_cannot_be_are_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match="a batch of 60 is more than the 50 training samples; pass --set"):
        BatchStream(50, 60, 1, seed=0)
    with pytest.raises(ValueError, match="12 must be a multiple of devices × accumulate = 5 × 1"):
        BatchStream(50, 12, 1, seed=0, world=5)


def test_evaluation_sees_each_sample_once_over_all_processes() -> None:
    shares = [list(EvalOrder(range(61), rank, 4)) for rank in range(4)]
    assert sorted(index for share in shares for index in share) == list(range(61))
    assert [len(EvalOrder(range(61), rank, 4)) for rank in range(4)] == [16, 15, 15, 15]


class Noise(Dataset):
    """Draws from all three generators, as augmentation does."""

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_sample_is_a_function_of_seed_epoch_and_number() -> None:
    dataset = SeededDataset(Noise(), seed=5)
    first = dataset[(0, 7)]
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert dataset[(0, 7)] == first
    others = [dataset[(1, 7)], dataset[(0, 8)], SeededDataset(Noise(), seed=6)[(0, 7)]]
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))


def test_seeding_a_sample_leaves_the_generators_of_the_run_alone() -> None:
    seed_generators(1, 2)
    expected = Noise()[0]
    seed_generators(1, 2)
    with seeded(9):
        Noise()[0]
    assert Noise()[0] == expected
