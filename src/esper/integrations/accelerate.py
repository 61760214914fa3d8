"""Accelerate: growth in a loop whose model, optimizer and batches an ``Accelerator`` prepared."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, final

from torch import nn
from typing_extensions import override

from esper.integrations.base import Batch, Integration, within
from esper.integrations.requirements import require

require("accelerate", "1.0", extra="accelerate")

from accelerate import Accelerator  # noqa: E402 (checked above)


@final
class Growth(Integration):
    """Growth in a loop of Accelerate's.

    ``accelerator.save_state`` saves the growth and ``load_state`` loads it. On several processes
    call ``settle()`` on all of them before, if you save inside an epoch.

    Args:
        accelerator: The one that prepared the others.
        model: The model that it returned.
        optimizer: The optimizer that it returned, or a list of them.
        scheduler: The scheduler that it returned, if there is one.
        loss_fn: As for ``Tamiyo``.
        holdout: As for ``Tamiyo``.
        given: Further arguments of `Integration`, and of ``Tamiyo``.

    Example:
        ::

            model, optimizer, train = accelerator.prepare(model, optimizer, train)
            growth = Growth(accelerator, model, optimizer, layers=["fc1"], loss_fn=..., holdout=...)
            for epoch in range(epochs):
                for batch in growth.epoch(train):
                    ...                              # accelerator.backward, step
    """

    name: ClassVar[str] = "accelerate"
    when: ClassVar[str] = "a loop of your own with an Accelerator"

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        *,
        loss_fn: Any,
        holdout: Iterable[Any],
        scheduler: Any = None,
        **given: Any,
    ) -> None:
        loss_fn = within(accelerator.autocast, loss_fn)
        super().__init__(loss_fn=loss_fn, holdout=holdout, **given)
        self.accelerator = accelerator
        self.begin(accelerator.unwrap_model(model), optimizer, scheduler)
        accelerator.register_for_checkpointing(self)
        accelerator.register_save_state_pre_hook(self._before_saving)

    def epoch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of an epoch; each counts as trained on when the next one is asked for."""
        return self._each(batches)

    @override
    def _has_stepped(self) -> bool:
        return bool(self.accelerator.sync_gradients)

    def _before_saving(self, models: list[nn.Module], weights: list[Any], _: str) -> None:
        """Count the batch under way; on several processes, not all of which may save, leave it."""
        if self._under_way and self.tamiyo is not None and self.tamiyo.replicas.alone:
            self.settle()
            if weights:  # taken before
                weights[:] = [self.accelerator.get_state_dict(one, unwrap=False) for one in models]
