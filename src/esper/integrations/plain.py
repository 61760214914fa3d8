"""A loop of the user's own: batches go through ``Growth.epoch``, in one process or in several."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, final

from torch import nn

from esper.integrations.base import Batch, Integration


@final
class Growth(Integration):
    """Growth in a plain loop.

    Save states between epochs; within an epoch call ``settle()`` before you save the first.

    Args:
        model: The model; wrapped in place if ``layers`` or ``widen`` say so.
        optimizer: Trains it.
        scheduler: Of the optimizer, if there is one.
        loss_fn: As for ``Tamiyo``.
        holdout: As for ``Tamiyo``.
        given: Further arguments of `Integration`, and of ``Tamiyo``.

    Example:
        ::

            growth = Growth(model, optimizer, layers=["fc1"], loss_fn=loss_fn, holdout=holdout)
            for epoch in range(epochs):
                for batch in growth.epoch(train_batches):
                    ...                                       # zero_grad, backward, step
    """

    name: ClassVar[str] = "plain"
    when: ClassVar[str] = "a loop of your own, under torchrun too"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        loss_fn: Any,
        holdout: Iterable[Any],
        scheduler: Any = None,
        **given: Any,
    ) -> None:
        super().__init__(loss_fn=loss_fn, holdout=holdout, **given)
        self.begin(model, optimizer, scheduler)

    def epoch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of an epoch; each counts as trained on when the next one is asked for.

        ``report`` then has the epoch's report. An epoch that the loop leaves by ``break`` ends when
        the next one begins; the batch that it was left at counts if ``settle()`` was called.
        """
        return self._each(batches)
