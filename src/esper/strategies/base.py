"""SelectionStrategy: the contract of a strategy, and the names that one is written with.

A strategy is a frozen dataclass whose fields are its settings, all with defaults; a setting out of
range is a `ConfigError` that names it. All that it may use is passed to `decide`; it keeps no state
between calls, since outcomes are in the metrics. The smallest is `esper.strategies.uniform`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, TypeVar, final

from esper.contracts.audition import NO_WORTHS, Worths
from esper.contracts.errors import ConfigError, SelectionError, unknown_name
from esper.contracts.performance import SeedPerformanceMetrics, SeedStatistics
from esper.contracts.propensities import Chance, Propensities, spread
from esper.contracts.reason import SelectionReason
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerKnowledge
from esper.records.seed import SeedRecord

__all__ = ["Choice", "Draws", "Metrics", "Seeds", "SelectionContext", "SelectionStrategy"]

Seeds = Sequence[int]
"""Viable seeds; at least one, each once, in any order."""

Metrics = Mapping[int, SeedStatistics]
"""Statistics by seed; a seed without an entry was never tried."""

Layers = Mapping[str, tuple[Seeds, Metrics, SelectionContext]]
"""Layers by name: viable seeds, their statistics, and the context of a choice."""

Choice = tuple[int, SelectionReason]
"""The chosen seed and its reason."""

Kind = TypeVar("Kind", bound=LayerKnowledge)

_HUGE = 1e100
"""Limit of a setting's size; squares of larger ones overflow."""

_PROBES = 64
"""Trial choices that estimate propensities which a strategy does not state."""

_NO_CONTEXT = SelectionContext()

_last_reason: ContextVar["tuple[SelectionStrategy, SelectionReason] | None"] = ContextVar(
    "_last_reason", default=None
)


@dataclass(frozen=True)
class SelectionStrategy(ABC):
    """Rule that chooses among viable seeds.

    A new strategy is one file with one such class, one line in ``STRATEGIES``, and passes
    ``esper.testing.strategy_laws``. It must define ``name`` and `decide`, which ends with `chosen`.
    First tries, cooldowns, refusals and reservations are the selector's.
    """

    name: ClassVar[str]
    """Key in ``STRATEGIES``."""

    when: ClassVar[str] = ""
    """Recommended use, in a few words, for the table of strategies."""

    learns: ClassVar[bool] = True
    """Claim to do better than chance; false for a baseline, which gets no first tries."""

    least_share: ClassVar[float] = 0.0
    """Share of its layer's choices that a viable seed has at least, in [0, 1]; 0: none stated."""

    @abstractmethod
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        """Choose one of ``viable``; changes nothing.

        Args:
            viable: Seeds to choose from.
            metrics: Statistics of the layer's seeds.
            context: Epoch, layer type, health.
            rng: The only randomness.
        """

    @final
    def chosen(
        self,
        seed_idx: int,
        scores: Mapping[int, float],
        chances: float | Mapping[int, float] | Chance,
        why: str | Callable[[], str],
        features: tuple[float, ...] = (),
    ) -> Choice:
        """Choice of ``seed_idx``, as `decide` returns it.

        Args:
            seed_idx: The chosen seed.
            scores: Score of every viable seed, in the strategy's own units.
            chances: Probability of ``seed_idx``, or of every viable seed, or a `Chance`.
            why: One sentence, or a call that makes it from values of this moment.
            features: Features of the chosen seed, for a strategy that learns from them later.
        """
        score, name = scores[seed_idx], self.name
        return seed_idx, SelectionReason(
            name, seed_idx, score, scores, chances, why, features=features
        )

    def begin(self, layer_name: str) -> LayerKnowledge | None:
        """Empty knowledge of a layer; ``None`` for a strategy that reads the records alone.

        It learns every outcome in the order of the log; `decide` finds it by `knowledge`.
        """
        del layer_name
        return None

    def knows(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> Collection[int]:
        """Seeds of ``viable`` that need no first try, since there is evidence on them already.

        Empty by default. A strategy that names seeds must choose each of them in the end, however
        low its estimate.
        """
        del viable, metrics, context
        return ()

    def worths(self, layers: Layers) -> Worths:
        """What the viable seeds of some layers are expected to earn, relative to each other.

        Nothing by default: a strategy that does not learn from auditions only pays for them.
        """
        del layers
        return NO_WORTHS

    def propensities(
        self,
        viable: Seeds,
        metrics: Metrics,
        context: SelectionContext,
        *,
        known: Mapping[int, float] | None = None,
    ) -> Propensities:
        """Probability that `decide` chooses each of ``viable`` here.

        Those of one choice's reason, if it has them all. Otherwise up to 64 trial choices, with
        separate random numbers: each seed that comes up has the propensity that its reason states,
        and the remainder is spread evenly over the others.

        Args:
            viable: Seeds to choose from.
            metrics: Statistics of the layer's seeds.
            context: Epoch, layer type, health.
            known: Propensities that are known already.

        Returns:
            Probabilities that add up to 1 within their error, which is 0 where they are exact.
        """
        found = dict(known or {})
        for number in range(_PROBES):
            chosen, reason = self.decide(viable, metrics, context, Draws(0, "propensities", number))
            if reason.knows_propensities:
                return Propensities(reason.propensities, reason.propensity_error)
            found[chosen] = reason.propensity
            if len(found) == len(viable) or sum(found.values()) >= 1 - 1e-9:
                break
        return spread(found, sorted(viable))

    def state_dict(self) -> dict[str, Any]:
        """State that is not in the metrics, as JSON data; empty for most strategies."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned.

        Raises:
            ConfigError: if ``state`` is not this strategy's.
        """
        if state:
            raise ConfigError(
                f"strategy {self.name!r} keeps no state, but was given {', '.join(state)}; the "
                "state belongs to another strategy"
            )

    @final
    def knowledge(
        self, metrics: Metrics, kind: type[Kind], context: SelectionContext = _NO_CONTEXT
    ) -> Kind:
        """Knowledge that `begin` made and the log has taught.

        For metrics that were not made by a tracker it learns the rewards of their windows, as if
        they had been earned in ``context``.

        Raises:
            SelectionError: if the metrics hold knowledge of another kind.
        """
        found = getattr(metrics, "knowledge", None)
        if found is None and (found := self.begin("")):
            for seed_idx in sorted(metrics):
                blueprint = blueprint_of(metrics, context, seed_idx)
                for reward in rewards_of(metrics[seed_idx]):
                    found.learn_unlogged(seed_idx, reward, blueprint, context)
        if isinstance(found, kind):
            return found
        raise SelectionError(
            f"the tracker learns {type(found).__name__} for another strategy, but "
            f"{kind.__name__} is needed; give each strategy a tracker of its own"
        )

    @final
    def require(
        self,
        setting: str,
        *,
        above: float = float("-inf"),
        at_least: float = float("-inf"),
        at_most: float = float("inf"),
        whole: bool = False,
    ) -> None:
        """Refuse a setting that is no finite number (below 1e100) or is out of range.

        Raises:
            ConfigError: naming the setting, its value and what it may be.
        """
        value = getattr(self, setting)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if number and -_HUGE < value < _HUGE and above < value and at_least <= value <= at_most:
            return
        limits = [
            f"{sign} {limit:g}"
            for sign, limit in ((">", above), (">=", at_least), ("<=", at_most))
            if isfinite(limit)
        ]
        if number and not -_HUGE < value < _HUGE:
            limits.append(f"below {_HUGE:g} in size")
        kind = "a whole number" if whole else "a number"
        wanted = " ".join([kind, " and ".join(limits)]).strip()
        raise ConfigError(f"{self.name}.{setting} is {value!r}; it must be {wanted}")

    @final
    def require_one_of(self, setting: str, names: Sequence[str]) -> None:
        """Refuse a setting that is none of some names.

        Raises:
            ConfigError: suggesting the nearest name.
        """
        value = getattr(self, setting)
        if value not in names:
            raise ConfigError(unknown_name(f"{self.name}.{setting}", value, names))

    @final
    def select(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> int:
        """Choose as `decide` does, with randomness from the layer's name and number of choices.

        The reason is kept for `get_reason`, separately for every thread and asyncio task. Inside
        Esper use `decide`, which returns it.
        """
        layer_names = {getattr(seed, "layer_name", "") for seed in metrics.values()}
        number = sum(seed.total_activations for seed in metrics.values())
        rng = Draws(0, min(layer_names, default=""), number)
        seed_idx, reason = self.decide(viable, metrics, context, rng)
        _last_reason.set((self, reason))
        return seed_idx

    @final
    def get_reason(self) -> SelectionReason:
        """Reason of this strategy's last `select` in this thread or task.

        Raises:
            SelectionError: if the last `select` here was another strategy's, or there was none.
        """
        last = _last_reason.get()
        if last is None or last[0] is not self:
            raise SelectionError(
                f"strategy {self.name!r} has no reason to give here: call select() first, in the "
                "same thread or task and with no other strategy in between, or use decide()"
            )
        return last[1]


def rewards_of(record: SeedStatistics) -> Sequence[float]:
    """Rewards in a seed's window, oldest first."""
    if isinstance(record, SeedRecord):
        return record.measured()[0]
    return record.window() if isinstance(record, SeedPerformanceMetrics) else ()


def blueprint_of(metrics: Metrics, context: SelectionContext, seed_idx: int) -> str:
    """Blueprint of a seed, by the context or else by its record; empty if unknown."""
    blueprint: str = getattr(metrics.get(seed_idx), "blueprint", "")
    return context.blueprints.get(seed_idx, blueprint)
