"""Integration: the contract of a framework's training loop, and what all of them share.

A framework calls; an integration answers with the two calls of a plain loop: ``on_batch_end`` after
each batch, also those between two steps of the optimizer, and ``on_epoch_end`` right after the last
one, before any validation, checkpoint or scheduler of the epoch.
"""

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import Parameter, signature
from typing import Any, ClassVar, TypeVar

from torch import nn

from esper.contracts.errors import ConfigError, unknown_name
from esper.execution.passes.isolation import LossFn
from esper.execution.replicas.data_parallel import unwrapped
from esper.execution.surgery import seeded_modules
from esper.services.tamiyo.report import EpochReport
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.widths.wrap import wrap

_OWN = ("layers", "seeds", "widen", "every", "loss_fn", "holdout")
_OPTIONS = tuple(
    name
    for name, given in signature(Tamiyo).parameters.items()
    if given.kind is Parameter.KEYWORD_ONLY and name not in (*_OWN, "scheduler")
)

Batch = TypeVar("Batch")


class Integration(ABC):
    """Feeds one ``Tamiyo`` from a loop that a framework drives.

    Args:
        loss_fn: As for ``Tamiyo``: model and batch to losses, one per example.
        holdout: As for ``Tamiyo``: batches that are never trained on.
        layers: Layers to wrap, as for ``esper.wrap``, if the model is not wrapped yet.
        seeds: Their seeds, as for ``esper.wrap``.
        widen: Widths to wrap, as for ``esper.wrap``; the holdout's first batch is the example.
        every: Optimizer steps that count as an epoch of growth; by default the loop's own epochs.
        options: Further arguments of ``Tamiyo``, as ``config``, ``store`` and ``seed``.

    Attributes:
        name: Name in the table.
        when: When to use it, half a sentence.
        tamiyo: The engine; ``None`` until the framework has made the optimizer.
        report: Report of the latest epoch; ``None`` before the first.
    """

    name: ClassVar[str]
    when: ClassVar[str]

    def __init__(
        self,
        *,
        loss_fn: LossFn,
        holdout: Iterable[Any],
        layers: Sequence[str] | str = (),
        seeds: Any = None,
        widen: Sequence[str] | str = (),
        every: int | None = None,
        **options: Any,
    ) -> None:
        whole = isinstance(every, int) and not isinstance(every, bool)
        if every is not None and not (whole and every >= 1):
            raise ConfigError(
                f"every is {every!r}; it counts optimizer steps, and must be a whole number, 1 or "
                "more"
            )
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(unknown_name("argument of Growth", name, (*_OWN, *_OPTIONS)))
        self.loss_fn = loss_fn
        self.holdout = holdout
        self.every = every
        self.tamiyo: Tamiyo | None = None
        self.report: EpochReport | None = None
        self._wrapping = {"layers": layers, "seeds": seeds, "widen": widen}
        self._options = options
        self._steps = 0
        self._under_way: list[Any] = []
        self._counted = 0
        """Batches of the epoch under way."""
        self._state: Mapping[str, Any] | None = None

    # --- what a framework's hooks call ------------------------------------------------------------

    def wrap(self, model: nn.Module) -> None:
        """Wrap the model in place, unless it is, or nothing was named.

        Raises:
            ConfigError: as `esper.wrap`; if it would return another module; or if there is nothing
                that could grow.
        """
        layers, widen = self._wrapping["layers"], self._wrapping["widen"]
        if seeded_modules(model):
            return
        if not layers and not widen:
            raise ConfigError(
                "the model is not wrapped; name its layers, as Growth(..., layers=['*.mlp']), or "
                "call esper.wrap(model, layers=[...]) before"
            )
        if "" in ([layers] if isinstance(layers, str) else layers):
            raise ConfigError(
                "layers has '', the whole model, in whose place another module would stand; call "
                "esper.wrap(model, layers=['']) before, and train what it returns"
            )
        given: dict[str, Any] = dict(self._wrapping)
        if widen:
            given |= {"example": next(iter(self.holdout), None), "loss_fn": self.loss_fn}
        wrap(model, **given)

    def begin(self, model: nn.Module, optimizer: Any, scheduler: Any = None) -> Tamiyo:
        """Make the engine, and take up a state that was loaded before.

        Args:
            model: The model, wrapped or to be wrapped; in a ``DistributedDataParallel`` or not.
            optimizer: One, or a list.
            scheduler: One, several or ``None``.
        """
        model = unwrapped(model)
        self.wrap(model)
        given = {"loss_fn": self.loss_fn, "holdout": self.holdout, "scheduler": scheduler}
        self.tamiyo = Tamiyo(model, optimizer, **(given | self._options))
        if self._state is not None:
            state, self._state = self._state, None
            self._take(state)
        return self.tamiyo

    def batch_ended(self, batch: Any) -> None:
        """A batch was trained on, whether the optimizer stepped or not."""
        if self.tamiyo is not None:
            self.tamiyo.on_batch_end(batch)

    def settle(self) -> None:
        """Count the batch under way as trained on: before a checkpoint inside a loop of one's own.

        It counts once: nothing happens at the next batch then, nor at another call.
        """
        while self._under_way:
            self._counted += 1
            self.batch_ended(self._under_way.pop())
            if self._has_stepped():
                self.stepped()

    def _has_stepped(self) -> bool:
        """True if the optimizer stepped after the batch under way."""
        return True

    def _each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of an epoch; each counts when the next one is asked for, or at `settle`.

        An epoch that the loop left ends when the next one begins.
        """
        self._under_way.clear()
        if self._counted:
            self._close()
        for batch in batches:
            self._under_way = [batch]
            yield batch
            self.settle()
        self._close()

    def _close(self) -> None:
        self._counted = 0
        self.epoch_ended()

    def stepped(self) -> None:
        """The optimizer stepped; with ``every``, an epoch of growth may end."""
        self._steps += 1
        if self.every is not None and self._steps % self.every == 0:
            self._end_epoch()

    def epoch_ended(self) -> None:
        """The last batch of an epoch of the loop was trained on."""
        if self.every is None:
            self._end_epoch()

    def _end_epoch(self) -> None:
        if self.tamiyo is not None:
            self.report = self.tamiyo.on_evaluation()

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State of the growth, beside those of model, optimizer and scheduler."""
        if self.tamiyo is None:
            return {}
        return {"tamiyo": self.tamiyo.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``: at once if the engine is there, else as soon as it is made."""
        if not state:
            return
        if self.tamiyo is None:
            self._state = state
        else:
            self._take(state)

    def _take(self, state: Mapping[str, Any]) -> None:
        assert self.tamiyo is not None
        self._under_way.clear()  # of another state
        self._counted = 0
        self.tamiyo.load_state_dict(state["tamiyo"])
        self._steps = state["steps"]


def within(context: Callable[[], AbstractContextManager[Any]], loss_fn: LossFn) -> LossFn:
    """``loss_fn`` inside a context that is made for each call, as a framework's autocast."""
    if not callable(loss_fn):
        return loss_fn  # refused by its name, where it would be called

    def inside(model: nn.Module, batch: Any) -> Any:
        with context():
            return loss_fn(model, batch)

    return inside
