"""What a strategy is, and what strategies share: standardised rewards, ties, checked settings.

A strategy is a frozen dataclass whose fields are its settings, all with defaults. It is told
everything it may use, decides, and remembers nothing: what it knows is in the metrics.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from math import isfinite
from typing import Any, ClassVar, final

from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.performance import SeedPerformanceMetrics, SeedStatistics
from esper.contracts.propensities import Propensities, spread
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.records.layer import LayerKnowledge, LayerMetrics
from esper.records.layer_sums import Standing, Units
from esper.records.seed import SeedRecord

Metrics = Mapping[int, SeedStatistics]

TIE = 1e-9
"""Scores that differ by less, in standardised units, are the same score."""

_HUGE = 1e100
"""Settings beyond are mistakes, and their squares no numbers."""

_PROBES = 64
"""Choices that are tried out to find how likely each seed is, where a strategy does not say."""

_last_reason: ContextVar["tuple[SelectionStrategy, SelectionReason] | None"] = ContextVar(
    "_last_reason", default=None
)


class SelectionStrategy(ABC):
    """Chooses among viable seeds.

    A new strategy is one file with one such class, one line in ``STRATEGIES``, and passes
    ``esper.testing.strategy_laws``. The first try of every seed, cooldowns, refusals and
    reservations are the selector's business, not a strategy's.
    """

    name: ClassVar[str]
    """Its name in ``STRATEGIES``."""

    when: ClassVar[str] = ""
    """When to use it, in a few words for a person."""

    learns: ClassVar[bool] = True
    """Whether it claims to do better than chance; false for a baseline."""

    @abstractmethod
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        """Choose one of ``viable``; changes nothing.

        Args:
            viable: Seeds to choose from; at least one, each once, in any order.
            metrics: What is known of the layer's seeds; a seed without an entry was never tried.
            context: Epoch, layer type, health.
            rng: The only randomness.

        Returns:
            The seed, and why, with the probability of this choice.
        """

    def propensities(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext
    ) -> Propensities:
        """How likely `decide` is to choose each of ``viable`` here.

        What the reason of one choice says, if it knows them all. Otherwise choices are tried out
        with random numbers of their own: each seed that comes up has the propensity that its reason
        states, and what is left after 64 tries is spread evenly over the seeds that did not.

        Returns:
            Probabilities that add up to 1 within their error, which is 0 where they are exact.
        """
        known: dict[int, float] = {}
        for number in range(_PROBES):
            chosen, reason = self.decide(viable, metrics, context, Draws(0, "propensities", number))
            if reason.knows_propensities:
                return Propensities(reason.propensities, reason.propensity_error)
            known[chosen] = reason.propensity
            if len(known) == len(viable) or sum(known.values()) >= 1 - TIE:
                break
        return spread(known, sorted(viable))

    def knows(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext
    ) -> Collection[int]:
        """The seeds of ``viable`` that need no first try, since there is evidence on them already.

        None, for most: all that is known of a seed is its own outcomes. A strategy that says more
        must choose such a seed in the end, whatever it takes it to be worth.
        """
        del viable, metrics, context
        return ()

    def begin(self, layer_name: str) -> LayerKnowledge | None:
        """Begin to learn a layer; ``None``: the strategy reads the records alone, as most do.

        What this makes is taught every outcome in the order of the log and handed to `decide` as
        ``metrics.knowledge``.
        """
        del layer_name
        return None

    @final
    def knowledge(self, metrics: Metrics) -> LayerKnowledge:
        """What `begin` began and the log has taught; made up from the windows where it is missing.

        It is missing where somebody calls `decide` with metrics of his own.
        """
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
    def select(self, viable: Sequence[int], metrics: Metrics, context: SelectionContext) -> int:
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


def standardise(metrics: Metrics) -> Units:
    """The units in which every strategy reads rewards; a shift or a factor on all changes nothing.

    The scale is the standard deviation *within* seeds, pooled, so that what separates good seeds
    from bad does not count as noise. While few seeds were tried twice it leans on the standard
    deviation of all rewards: ``sqrt((sum m2 + total variance) / (sum (n - 1) + 1))``.

    Example:
        Two seeds, rewards (1, 3) and (5, 7): within 2 and 2 with 2 degrees of freedom, total
        variance 20/3, so the scale is ``sqrt((4 + 20/3) / 3)``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> units = standardise({0: Seed(0, "fc1", rewards=[1, 3]),
        ...                      1: Seed(1, "fc1", rewards=[5, 7])})
        >>> units.centre, round(units.scale, 4), round((32 / 3 / 3) ** 0.5, 4)
        (4.0, 1.8856, 1.8856)
    """
    return Units(*standing_of(metrics).units())


def standing_of(metrics: Metrics) -> Standing:
    """The columns of a layer: those that its live records keep, or made up from a snapshot."""
    if isinstance(metrics, LayerMetrics) and len(metrics) == len(metrics.standing.seeds):
        return metrics.standing
    made = Standing()
    made.replace(metrics, metrics.values())
    return made


def pick_best(scores: Mapping[int, float], rng: Draws) -> tuple[int, float]:
    """The seed of the highest score, and the probability of picking it; ties are drawn.

    Example:
        >>> pick_best({0: 0.5, 1: 0.7}, Draws(0, "fc1", 0))
        (1, 1.0)
        >>> pick_best({0: 0.7, 1: 0.7}, Draws(0, "fc1", 0))[1]
        0.5
    """
    at = alone_at_top(list(scores.values()))
    if at >= 0:
        return list(scores)[at], 1.0
    seeds = sorted(scores)
    at, propensity = pick_row([scores[seed] for seed in seeds], rng)
    return seeds[at], propensity


def pick_row(scores: list[float], rng: Draws) -> tuple[int, float]:
    """`pick_best` over a column, in the order of seeds."""
    at = alone_at_top(scores)
    if at >= 0:
        return at, 1.0
    least = max(scores) - TIE
    tied = [row for row, score in enumerate(scores) if score >= least]
    return tied[rng.index(len(tied))], 1 / len(tied)


def alone_at_top(values: list[float]) -> int:
    """Where the highest of ``values`` stands; -1 if another is as high, within `TIE`.

    Example:
        >>> alone_at_top([0.5, 0.7]), alone_at_top([0.7, 0.7])
        (1, -1)
    """
    ordered = sorted(values)
    best = ordered[-1]
    if len(ordered) > 1 and ordered[-2] >= best - TIE:
        return -1
    return values.index(best)


def others(viable: Sequence[int], seed_idx: int) -> tuple[int, ...]:
    """The seeds of ``viable`` that were not chosen."""
    left = list(viable)
    left.remove(seed_idx)
    return tuple(left)


def tried(outcomes: int) -> str:
    """How often a seed was tried, in words.

    Example:
        >>> tried(0), tried(1), tried(12)
        ('no outcome yet', '1 outcome', '12 outcomes')
    """
    if not outcomes:
        return "no outcome yet"
    return "1 outcome" if outcomes == 1 else f"{outcomes} outcomes"


def require_number(
    setting: str,
    value: object,
    *,
    above: float = -float("inf"),
    at_least: float = -float("inf"),
    at_most: float = float("inf"),
) -> None:
    """Refuse a setting that is no finite number (below 1e100) or is out of range.

    Raises:
        ConfigError: naming the setting, its value and what it may be.

    Example:
        >>> require_number("ucb.exploration_constant", -1, above=0)
        Traceback (most recent call last):
        ...
        esper.contracts.errors.ConfigError: ucb.exploration_constant is -1; it must be a number > 0
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and -_HUGE < value < _HUGE and above < value and at_least <= value <= at_most:  # type: ignore[operator]  # a number by now
        return
    limits = [
        f"{sign} {limit:g}"
        for sign, limit in ((">", above), (">=", at_least), ("<=", at_most))
        if isfinite(limit)
    ]
    if number and not -_HUGE < value < _HUGE:  # type: ignore[operator]
        limits.append(f"below {_HUGE:g} in size")
    wanted = " ".join(["a number", " and ".join(limits)]).strip()
    raise ConfigError(f"{setting} is {value!r}; it must be {wanted}")
