"""SelectionStrategy: the contract of a strategy, and the names that one is written with.

A strategy is a frozen dataclass whose fields are its settings, all with defaults. It is given all
that it may use, decides, and remembers nothing: what is known is in the metrics. The smallest one
is `esper.strategies.uniform`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, final

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
"""Seeds to choose from; at least one, each once, in any order."""

Metrics = Mapping[int, SeedStatistics]
"""Statistics by seed; a seed without an entry was never tried."""

Choice = tuple[int, SelectionReason]
"""A seed, and why it was chosen."""

_HUGE = 1e100
"""Settings beyond are mistakes, and their squares no numbers."""

_PROBES = 64
"""Choices that are tried out to find how likely each seed is, where a strategy does not say."""

_last_reason: ContextVar["tuple[SelectionStrategy, SelectionReason] | None"] = ContextVar(
    "_last_reason", default=None
)


@dataclass(frozen=True)
class SelectionStrategy(ABC):
    """Chooses among viable seeds.

    A new strategy is one file with one such class, one line in ``STRATEGIES``, and passes
    ``esper.testing.strategy_laws``. It must define ``name`` and `decide`, which ends with `chosen`.
    First tries, cooldowns, refusals and reservations are the selector's.
    """

    name: ClassVar[str]
    """Its name in ``STRATEGIES``."""

    when: ClassVar[str] = ""
    """When to use it, in a few words."""

    learns: ClassVar[bool] = True
    """Whether it claims to do better than chance; false for a baseline."""

    @abstractmethod
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        """Choose one of ``viable``; changes nothing.

        Args:
            viable: Seeds to choose from.
            metrics: The layer's seeds so far.
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
        """What `decide` returns.

        Args:
            seed_idx: The chosen seed.
            scores: Score of every viable seed, in the strategy's own units.
            chances: Probability of ``seed_idx``, or of every viable seed, or what computes them.
            why: One sentence, or a call that makes it from values of this moment.
            features: What was seen of the chosen seed, for a strategy that learns from it later.
        """
        rest = tuple([seed for seed in scores if seed != seed_idx])
        return seed_idx, SelectionReason(
            self.name, seed_idx, scores[seed_idx], scores, chances, why, False, rest, features
        )

    def begin(self, layer_name: str) -> LayerKnowledge | None:
        """Begin to learn a layer; ``None``: the strategy reads the records alone, as most do.

        What this makes is taught every outcome in the order of the log and handed to `decide` as
        ``metrics.knowledge``.
        """
        del layer_name
        return None

    def knows(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> Collection[int]:
        """The seeds of ``viable`` that need no first try, since there is evidence on them already.

        None by default: all that is known of a seed is its own outcomes. A strategy that says more
        must choose such a seed in the end, whatever it takes it to be worth.
        """
        del viable, metrics, context
        return ()

    def propensities(
        self,
        viable: Seeds,
        metrics: Metrics,
        context: SelectionContext,
        *,
        known: Mapping[int, float] | None = None,
    ) -> Propensities:
        """How likely `decide` is to choose each of ``viable`` here.

        What the reason of one choice says, if it knows them all. Otherwise choices are tried out
        with random numbers of their own: each seed that comes up has the propensity that its reason
        states, and what is left after 64 tries is spread evenly over the seeds that did not.

        Args:
            viable: Seeds to choose from.
            metrics: The layer's seeds so far.
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
        """What was learnt and is not in the metrics, as JSON data; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` was asked.

        Raises:
            ConfigError: if ``state`` is not this strategy's.
        """
        if state:
            raise ConfigError(
                f"strategy {self.name!r} keeps no state, but was given {', '.join(state)}; the "
                "state belongs to another strategy"
            )

    @final
    def knowledge(self, metrics: Metrics) -> LayerKnowledge:
        """What `begin` began and the log has taught; rebuilt from the windows of other metrics."""
        found = getattr(metrics, "knowledge", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
        made = self.begin("")
        if made is None:
            raise SelectionError(f"strategy {self.name!r} reads the records alone")
        for seed_idx in sorted(metrics):
            for reward in rewards_of(metrics[seed_idx]):
                made.learn(seed_idx, reward, None)
        return made

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

        The reason is kept for `get_reason`, apart for every thread and asyncio task. Inside Esper
        use `decide`, which hands it over.
        """
        layer_names = {getattr(seed, "layer_name", "") for seed in metrics.values()}
        number = sum(seed.total_activations for seed in metrics.values())
        rng = Draws(0, min(layer_names, default=""), number)
        seed_idx, reason = self.decide(viable, metrics, context, rng)
        _last_reason.set((self, reason))
        return seed_idx

    @final
    def get_reason(self) -> SelectionReason:
        """Why the last `select` of this strategy, in this thread or task, chose as it did.

        Raises:
            SelectionError: if this strategy was not the last to be asked here.
        """
        last = _last_reason.get()
        if last is None or last[0] is not self:
            raise SelectionError(
                f"strategy {self.name!r} has no reason to give here: call select() first, in the "
                "same thread or task and with no other strategy in between, or use decide()"
            )
        return last[1]


def rewards_of(record: SeedStatistics) -> Sequence[float]:
    """The rewards that a seed's window holds, oldest first."""
    if isinstance(record, SeedRecord):
        return record.measured()[0]
    return record.window() if isinstance(record, SeedPerformanceMetrics) else ()
