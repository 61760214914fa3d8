"""Toys of the laws of integrations, trained in the real frameworks: ``train`` of each module."""

from collections.abc import Callable, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from esper.testing.integration_laws import Batch, Toy

OF_THEIR_OWN = (
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:The '(train|val)_dataloader' does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
)
"""Warnings about code of the frameworks."""


class Loader(DataLoader[Any]):
    """A loader that goes on within an epoch where its state was taken, as those of torchdata."""

    _first = _given = 0

    @override
    def __iter__(self) -> Any:
        self._given, self._first = self._first, 0
        for batch in islice(super().__iter__(), self._given, None):
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._first = state["given"]


def loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    """Loader of batches, which a framework may deal out to its processes."""
    return Loader(batches, batch_size=1, collate_fn=itemgetter(0))  # type: ignore[arg-type]


def rate(toy: Toy) -> Callable[[Any], Any]:
    """Makes the scheduler of a toy."""
    return lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, toy.decay)
