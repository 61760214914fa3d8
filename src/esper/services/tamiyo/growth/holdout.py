"""The holdout: it can be read again and again, and none of its batches is trained on."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from esper.contracts.errors import ConfigError
from esper.execution.passes.batches import addresses
from esper.execution.passes.isolation import example_losses
from esper.execution.side_effect_free import side_effect_free
from esper.execution.undoing.reachable import walk
from esper.services.tamiyo.growth.graft import Training

logger = logging.getLogger(__name__)

ONCE = "holdout is an iterator and can be read only once; give a list of batches, or a DataLoader"


@final
class HoldoutWatch:
    """Says that a batch that was trained on is one of the holdout's, by where its tensors lie.

    Args:
        holdout: Watched if it is kept in memory; of any other nothing is known.
    """

    def __init__(self, holdout: Iterable[Any]) -> None:
        kept = holdout if isinstance(holdout, list | tuple) else ()
        self._held_out = frozenset(map(addresses, kept)) - {()}

    def on_batch(self, batch: Any) -> None:
        """Warn, once, if the batch is one of the holdout."""
        if self._held_out and addresses(batch) in self._held_out:
            self.stop()
            logger.warning(
                "the holdout holds a batch that is trained on, so a kernel that learns it by heart "
                "looks good; give a holdout whose batches on_batch_end never gets"
            )

    def stop(self) -> None:
        """Watch no longer: one epoch has shown every batch."""
        self._held_out = frozenset()


def refuse_unreadable(holdout: Iterable[Any]) -> None:
    """Refuse what gives no batches, or gives them once.

    Raises:
        ConfigError: that says which.
    """
    if isinstance(holdout, Mapping):
        first = next(iter(holdout), "name")
        raise ConfigError(
            f"holdout is a {type(holdout).__name__}, and iterating over it gives its keys; give "
            f"one list of batches or DataLoader, as holdout[{first!r}]"
        )
    if not any(hasattr(type(holdout), name) for name in ("__iter__", "__getitem__")):
        raise ConfigError(
            f"holdout is {holdout!r}, and cannot be iterated; give a list of batches that are "
            "never trained on, or a DataLoader"
        )
    if not _can_be_read_again(holdout):
        raise ConfigError(ONCE)


def refuse_one_example(training: Training) -> None:
    """Refuse a holdout of one example; that of several processes is judged as a whole.

    Raises:
        ConfigError: if it is so.
    """
    model, examples = training.model, 0
    with side_effect_free(model, training=False, reads=training.holdout), torch.no_grad():
        for batch in training.holdout:
            examples += len(example_losses(training.loss_fn, model, batch))
            if examples > 1 or not training.replicas.alone:
                return
    if examples == 1:
        raise ConfigError(
            "holdout has 1 example, whose gain has no standard error, so that no kernel could ever "
            "be kept; give at least 2, better hundreds"
        )


def _can_be_read_again(holdout: Iterable[Any]) -> bool:
    """False for an iterator, and for a source with one inside that it hands out each time."""
    datasets = [
        value for _, value in walk(holdout, data=True) if isinstance(value, IterableDataset)
    ]
    own = [] if isinstance(holdout, DataLoader) else [holdout]
    with side_effect_free(nn.Identity(), reads=holdout):  # iter() may draw
        return not any(iter(source) is iter(source) for source in (*own, *datasets))
