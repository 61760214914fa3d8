"""Knowledge of `auto`: rewards as they are, and contrasts in units of what a run earns.

Within a run rewards fall tenfold, whichever seed earns them; seeds at one moment differ two- to
threefold. An audition measures several seeds at one moment, so the time that they share drops out
of the difference to their mean. It is learnt in units of what an average seed of this run earns
now, so that what one run learns serves another, on a task with other losses.
"""

from collections.abc import Mapping
from typing import Any, Final, final

from typing_extensions import override

from esper.contracts.audition import Contrast
from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext
from esper.records.history import writer_of
from esper.records.layer import LayerKnowledge
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.pooling import kind_of

_LOWEST, _HIGHEST = -2.0, 5.0
"""Limits of a reward in units of the run, so that one outlier teaches little."""

_PACE: Final = 0.4
"""Weight of the newest measurement in a run's unit, on a logarithmic scale."""

_MODEST: Final = 0.2
"""Smallest relative worth of a seed whose reward tells what an average seed would earn."""

_RUNS: Final = 256
"""Runs whose units are remembered."""


@final
class Earnings:
    """What an average seed earns now, run by run; shared by the layers of a history.

    Attributes:
        taught: True if any run has auditioned seeds.
        first: Contrasts of the history's first layer, which the others share their pool with.
    """

    __slots__ = ("_units", "first", "taught")

    def __init__(self) -> None:
        self.taught = False
        self.first: Beliefs | None = None
        self._units: dict[str, tuple[float, str]] = {}

    def unit(self, run: str, size: float, point: str) -> float:
        """Unit of a run after a measurement; inf if it has earned nothing yet.

        Args:
            run: The run.
            size: What an average seed earned by this measurement, >= 0.
            point: Id of the measurement; the same one counts once.
        """
        unit, last = self._units.pop(run, (0.0, ""))
        if point != last and size > 0:
            unit = unit * (size / unit) ** _PACE if unit else size
        self._units[run] = unit, point
        while len(self._units) > _RUNS:
            del self._units[next(iter(self._units))]
        return unit or float("inf")

    def state_dict(self) -> dict[str, Any]:
        """Units of the runs, as JSON data."""
        return {"taught": self.taught, "units": [[run, *it] for run, it in self._units.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.taught = bool(state["taught"])
        self._units = {str(run): (float(unit), str(point)) for run, unit, point in state["units"]}


@final
class PooledKnowledge(LayerKnowledge):
    """Rewards of a layer's seeds, and their contrasts once any run of the history auditioned.

    An audition counts as one outcome of ``1 + (gain - mean of the cohort) / unit`` for each of its
    seeds, where the unit follows the cohort's mean gain; any other reward as ``reward / unit``,
    where it then follows the reward over the seed's own worth. Both are cut at -2 and 5.

    Attributes:
        rewards: In the reward's own units.
    """

    __slots__ = ("_contrasts", "_earnings", "rewards")

    def __init__(self, *, restarts: bool = True) -> None:
        self.rewards = Beliefs(restarts=restarts)
        self._contrasts: Beliefs | None = None
        self._earnings = Earnings()

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, PooledKnowledge):
            self._earnings = other._earnings
            self.rewards.join(other.rewards)

    @property
    def beliefs(self) -> Beliefs:
        """What to choose by: contrasts as soon as there are any, otherwise rewards."""
        return self._relative() if self._earnings.taught else self.rewards

    @property
    def relative(self) -> bool:
        """True if `beliefs` are in units of what an average seed earns."""
        return self._earnings.taught

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        self.rewards.learn(seed_idx, reward, decision)
        if decision is None or not self._earnings.taught or decision.audition:
            return  # what auditioned is known by its contrast
        learned, kind = self._relative(), kind_of(decision.layer_type, decision.blueprint)
        worth, _ = learned.forecast(seed_idx, kind, 1.0)
        size = max(reward, 0.0) / max(worth, _MODEST)
        unit = self._earnings.unit(_run_of(decision), size, decision.decision_id)
        learned.take(seed_idx, kind, _cut(reward / unit))

    @override
    def learn_audition(self, seed_idx: int, contrast: Contrast, decision: Decision) -> None:
        self._earnings.taught = True
        unit = self._earnings.unit(_run_of(decision), contrast.size, contrast.point)
        kind = kind_of(decision.layer_type, decision.blueprint)
        self._relative().take(seed_idx, kind, _cut(1.0 + contrast.relative / unit))

    @override
    def learn_unlogged(
        self, seed_idx: int, reward: float, blueprint: str, context: SelectionContext
    ) -> None:
        self.rewards.learn_unlogged(seed_idx, reward, blueprint, context)

    @override
    def forget(self, seed_idx: int) -> None:
        self.rewards.forget(seed_idx)
        if self._contrasts is not None:
            self._contrasts.forget(seed_idx)

    @override
    def state_dict(self) -> dict[str, Any]:
        known = self._contrasts
        return {
            **self.rewards.state_dict(),
            "contrasts": None if known is None else known.state_dict(),
            "earnings": self._earnings.state_dict(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewards.load_state_dict(state)
        try:
            # A state of 0.1.0 has neither.
            self._earnings.load_state_dict(state.get("earnings", {"taught": False, "units": []}))
            if (contrasts := state.get("contrasts")) is not None:
                self._relative().load_state_dict(contrasts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the contrasts of a state cannot be read: {error!r}") from error

    def _relative(self) -> Beliefs:
        if self._contrasts is None:
            self._contrasts = made = Beliefs(restarts=self.rewards.pool.restarts)
            if self._earnings.first is None:
                self._earnings.first = made
            else:
                made.join(self._earnings.first)
        return self._contrasts


def _run_of(decision: Decision) -> str:
    return writer_of(decision.decision_id, decision.layer_name)


def _cut(value: float) -> float:
    return max(_LOWEST, min(value, _HIGHEST))
