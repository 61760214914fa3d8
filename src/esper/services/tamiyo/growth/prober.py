"""Prober: health of the layers, read now and then from batches that reach them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

from esper.contracts.config import Growth
from esper.contracts.health import HealthSignal
from esper.execution.kernel import spec_from
from esper.execution.passes.probes import Readings, probe
from esper.execution.seeded import Seeded
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.graft import Training
from esper.services.tamiyo.policies.heuristic import loss_trend

_PATIENCE = 4
"""Further batches that are tried for a layer that a probe did not reach."""


@final
class Prober:
    """Probes the wrapped layers every so many batches, and keeps the readings of an epoch.

    A layer that a pass does not reach, as the head of another task, is looked for in the batches
    that follow: a fixed interval may meet the same task each time. What is never found is looked
    for half as long the next time.

    Args:
        training: The user's objects.
        layers: The wrapped layers by name.
        growth: Settings: batches between two probes, epochs of a trend.
        aside: Catches what fails.
        observe: Called with a batch before it is probed; specifies layers seen for the first time.
    """

    def __init__(
        self,
        training: Training,
        layers: Mapping[str, Seeded],
        *,
        growth: Growth,
        aside: Aside,
        observe: Callable[[Any], None],
    ) -> None:
        self.training = training
        self.layers = layers
        self.growth = growth
        self.aside = aside
        self.observe = observe
        self._readings = Readings()
        self._missing: set[str] = set()
        self._patience = _PATIENCE
        self._tries = 0
        self._order: list[str] = []
        self._ahead: Mapping[str, Any] | None = None

    def on_batch(self, number: int, batch: Any) -> None:
        """Probe if it is time, or if a layer is still looked for.

        Args:
            number: Batches of the run so far, this one included.
            batch: As ``loss_fn`` takes it.
        """
        if number % self.growth.probe_every == 0:
            self.probe(batch)
        elif self._missing and self._tries > 0:
            self._tries -= 1
            self._read(batch)

    def probe(self, batch: Any) -> None:
        """Measure every layer that the batch reaches; look for the others in those that follow."""
        if self._missing and self._tries == 0:
            self._patience //= 2
        self._missing, self._tries = set(self.layers), self._patience
        self._read(batch)

    def _read(self, batch: Any) -> None:
        with self.aside("the probe of the layers"):
            self.observe(batch)
            training = self.training
            found = probe(training.model, self.layers, loss_fn=training.loss_fn, batch=batch)
            self._readings.add(found)
            if len(found) >= len(self._order):
                self._order = list(found)  # that of the forward pass
            self._missing -= found.keys()
            if not self._missing:
                self._patience = _PATIENCE

    def health(
        self, epoch: int, losses: Sequence[float], batches: Sequence[Any]
    ) -> list[HealthSignal]:
        """Health of every layer over the epoch that ended; the readings start again.

        Args:
            epoch: The epoch that ended.
            losses: Held-out loss at the end of every epoch so far, this one last.
            batches: Its last batches; one is probed if no probe fell into the epoch.
        """
        if batches and not self._readings:
            self.probe(batches[-1])
        elif self._ahead and not self._readings:  # resumed after the last batch of an epoch
            self._take_up(self._ahead)
        self._ahead = None
        means = self._readings.take()
        trend = loss_trend(losses, self.growth.plateau_window)
        return [
            HealthSignal(
                layer_name=name,
                epoch=epoch,
                holdout_loss=losses[-1],
                loss_trend=trend,
                depth=self._depth(name),
                **means.get(name, {}),
            )
            for name in self.layers
        ]

    def _depth(self, name: str) -> float | None:
        order = self._order
        return (order.index(name) + 0.5) / len(order) if name in order else None

    def forget(self) -> None:
        """Drop the readings of this epoch."""
        self._readings.take()

    def state_dict(self, batches: Sequence[Any] = ()) -> dict[str, Any]:
        """State, as JSON data: what is still looked for, what was seen, the readings so far.

        ``batches`` are the epoch's so far. No checkpoint holds them, so where the epoch has no
        readings yet, its last batch is probed and that kept beside, for a run that is resumed
        without another batch; not in several processes, of which one alone may save.
        """
        state = self._state()
        if batches and not self._readings and self.training.replicas.alone:
            self.probe(batches[-1])
            state["ahead"] = self._state()
            self._take_up(state)
        elif not batches and self._ahead:
            state["ahead"] = self._ahead
        return state

    def _state(self) -> dict[str, Any]:
        return {
            "missing": sorted(self._missing),
            "patience": self._patience,
            "tries": self._tries,
            "order": self._order,
            "readings": self._readings.state_dict(),
            "specs": {n: asdict(layer.spec) for n, layer in self.layers.items() if layer.spec},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``; an empty state, as of an older checkpoint, looks for nothing."""
        self._ahead = state.get("ahead")
        self._take_up(state)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self._missing = set(state.get("missing", ()))
        self._patience = state.get("patience", _PATIENCE)
        self._tries = state.get("tries", 0)
        self._order = list(state.get("order", ()))
        self._readings.load_state_dict(state.get("readings", {}))
        for name, fields in state.get("specs", {}).items():
            if (
                name in self.layers and self.layers[name].spec is None
            ):  # no holdout batch reaches it
                self.layers[name].spec = spec_from(fields)
