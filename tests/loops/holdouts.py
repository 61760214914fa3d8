"""Holdouts: what is read again and again, and never trained on."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)
from typing_extensions import override

from tests.loops.situations import refused, works
from tests.loops.trial import HOLDOUT, TRAIN, Net, Trial
from tests.unit.services.small_run import Batch, teacher

HELD_OUT = teacher(48, seed=2)
EXAMPLES = TensorDataset(*HELD_OUT)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(EXAMPLES, batch_size=20, **options)


@works
def data_loader(trial: Trial) -> None:
    """The holdout is a `DataLoader`."""
    trial.train(Net(), holdout=loader())


@works
def shuffling_loader(trial: Trial) -> None:
    """The holdout is a `DataLoader` that shuffles, by the global random state."""
    trial.train(Net(), holdout=loader(shuffle=True))


@works
def shuffling_loader_with_generator(trial: Trial) -> None:
    """The holdout is a `DataLoader` that shuffles by a generator of its own, and drops the rest."""
    draws = torch.Generator().manual_seed(3)
    trial.train(Net(), holdout=loader(shuffle=True, generator=draws, drop_last=True))


class Shuffle(Sampler[int]):
    """Draws from NumPy, and keeps its generator where nobody looks for it."""

    def __init__(self, size: int) -> None:
        self.hidden = {"draws": np.random.default_rng(3)}
        self.size = size

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self.hidden["draws"].permutation(self.size).tolist())

    def __len__(self) -> int:
        return self.size


@works
def nested_samplers(trial: Trial) -> None:
    """The holdout's samplers are nested, and the inner one shuffles by a generator of NumPy."""
    sampler = BatchSampler(Shuffle(48), batch_size=20, drop_last=False)
    trial.train(Net(), holdout=DataLoader(EXAMPLES, batch_sampler=sampler))


@works
def drawn_with_replacement(trial: Trial) -> None:
    """The holdout draws other examples at every pass."""
    sampler = RandomSampler(EXAMPLES, replacement=True, num_samples=40)
    trial.train(Net(), holdout=DataLoader(EXAMPLES, batch_size=20, sampler=sampler))


@works
def loader_with_workers(trial: Trial) -> None:
    """The holdout is a `DataLoader` with worker processes that shuffles."""
    trial.train(Net(), holdout=loader(shuffle=True, num_workers=1, multiprocessing_context="fork"))


class Augmented(Dataset[Batch]):
    """Adds noise to each example that it gives."""

    def __len__(self) -> int:
        return 48

    @override
    def __getitem__(self, index: int) -> Batch:
        return HELD_OUT[0][index] + 0.1 * torch.randn(6), HELD_OUT[1][index]


@works
def augmented_loader(trial: Trial) -> None:
    """The holdout's dataset draws a random augmentation for every example."""
    trial.train(Net(), holdout=DataLoader(Augmented(), batch_size=20))


class Stream(IterableDataset[Batch]):
    """Reads its examples from the first to the last."""

    @override
    def __iter__(self) -> Iterator[Batch]:
        return zip(*HELD_OUT, strict=True)


@works
def stream_of_examples(trial: Trial) -> None:
    """The holdout is a `DataLoader` over an `IterableDataset`."""
    trial.train(Net(), holdout=DataLoader(Stream(), batch_size=20))


class Again:
    """Has ``__iter__`` and nothing else."""

    def __iter__(self) -> Iterator[Batch]:
        yield from HOLDOUT


@works
def own_iterable(trial: Trial) -> None:
    """The holdout is an object of the user's that can be iterated again and again."""
    trial.train(Net(), holdout=Again())


@works
def one_batch(trial: Trial) -> None:
    """The holdout is a list of one batch."""
    trial.train(Net(), holdout=[HELD_OUT])


@works
def holdout_that_is_trained_on(trial: Trial) -> None:
    """The training reaches a batch of the holdout: a warning, at that batch, names it."""
    trial.train(Net(), holdout=[*HOLDOUT, TRAIN[2]])


@refused(
    "holdout is an iterator and can be read only once; give a list of batches, or a DataLoader"
)
def one_shot_iterator(trial: Trial) -> None:
    """The holdout is an iterator, `iter(loader)`."""
    trial.train(Net(), holdout=iter(loader()))


@refused(
    "holdout is an iterator and can be read only once; give a list of batches, or a DataLoader"
)
def generator(trial: Trial) -> None:
    """The holdout is a generator, `(move(batch) for batch in loader)`."""
    trial.train(Net(), holdout=(batch for batch in HOLDOUT))


@refused(
    "holdout is an iterator and can be read only once; give a list of batches, or a DataLoader"
)
def endless(trial: Trial) -> None:
    """The holdout is `itertools.cycle(loader)`."""
    trial.train(Net(), holdout=itertools.cycle(loader()))


@refused("holdout has no batches; give a list or a DataLoader that has some")
def empty_list(trial: Trial) -> None:
    """The holdout is an empty list."""
    trial.train(Net(), holdout=[])


@refused(
    "holdout has 1 example, whose gain has no standard error, so that no kernel could ever be "
    "kept; give at least 2, better hundreds"
)
def one_example(trial: Trial) -> None:
    """The holdout is one example."""
    trial.train(Net(), holdout=[(HELD_OUT[0][:1], HELD_OUT[1][:1])])


@works
def two_batches_of_one(trial: Trial) -> None:
    """The holdout is two batches of one example each."""
    trial.train(Net(), holdout=DataLoader(TensorDataset(*(x[:2] for x in HELD_OUT))))


@refused("holdout has no batches; give a list or a DataLoader that has some")
def empty_loader(trial: Trial) -> None:
    """The holdout is smaller than a batch, and its loader drops the last one."""
    trial.train(Net(), holdout=DataLoader(EXAMPLES, batch_size=64, drop_last=True))


@refused(
    "the model fails on a batch of the holdout, tuple of (6,), (3,): IndexError: Dimension out of "
    "range (expected to be in range of [-1, 0], but got 1). Nothing was changed; loss_fn(model, "
    "batch) must run on every batch that iterating over the holdout gives"
)
def dataset_of_examples(trial: Trial) -> None:
    """The holdout is a dataset, and not a loader of batches."""
    trial.train(Net(), holdout=EXAMPLES)


@refused(
    "the model fails on a batch of the holdout, Tensor of (48, 6): The size of tensor a (3) must "
    "match the size of tensor b (6) at non-singleton dimension 0. Nothing was changed; "
    "loss_fn(model, batch) must run on every batch that iterating over the holdout gives"
)
def batch_for_holdout(trial: Trial) -> None:
    """The holdout is one batch, and not a list of it."""
    trial.train(Net(), holdout=HELD_OUT)


@refused(
    "holdout is a dict, and iterating over it gives its keys; give one list of batches or "
    "DataLoader, as holdout['near']"
)
def two_holdouts(trial: Trial) -> None:
    """The holdout is a dictionary of loaders by name."""
    trial.train(Net(), holdout={"near": loader(), "far": loader()})
