"""Toys of the laws of integrations, trained in the real frameworks: ``train`` of each module."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch.utils.data import DataLoader

from esper.testing.integration_laws import Batch, Toy

OF_THEIR_OWN = (
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:The '(train|val)_dataloader' does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
)
"""Warnings about code of the frameworks."""


def loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    """Loader of batches, which a framework may deal out to its processes."""
    return DataLoader(batches, batch_size=1, collate_fn=itemgetter(0))  # type: ignore[arg-type]


def rate(toy: Toy) -> Callable[[Any], Any]:
    """Makes the scheduler of a toy."""
    return lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, toy.decay)
