"""Standardised rewards, the best of some scores with ties drawn, and counts in words."""

from collections.abc import Mapping, Sequence
from math import isfinite

from esper.contracts.errors import ConfigError
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.records.layer_sums import LayerSums, Units
from esper.strategies.base import Metrics

_HUGE = 1e100

TIE = 1e-9
"""Scores that differ by less, in standardised units, are the same score."""


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
    return Units(*sums_of(metrics).units())


def sums_of(metrics: Metrics) -> LayerSums:
    """The sums of a layer: those that its live records keep, or computed from a snapshot."""
    if isinstance(metrics, LayerMetrics) and len(metrics) == len(metrics.sums.seeds):
        return metrics.sums
    made = LayerSums()
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
    values = list(scores.values())
    ordered = sorted(values)
    best = ordered[-1]
    if len(ordered) == 1 or ordered[-2] < best - TIE:
        return list(scores)[values.index(best)], 1.0
    tied = sorted([seed for seed, score in scores.items() if score >= best - TIE])
    return tied[rng.index(len(tied))], 1 / len(tied)


def tried(outcomes: int) -> str:
    """The number of a seed's outcomes, in words.

    Example:
        >>> tried(0), tried(1), tried(12)
        ('no outcome yet', '1 outcome', '12 outcomes')
    """
    if not outcomes:
        return "no outcome yet"
    return "1 outcome" if outcomes == 1 else f"{outcomes} outcomes"


def others(viable: Sequence[int], seed_idx: int) -> tuple[int, ...]:
    """The seeds of ``viable`` that were not chosen."""
    left = list(viable)
    left.remove(seed_idx)
    return tuple(left)


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
