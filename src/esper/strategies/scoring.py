"""Standardised rewards, upper bounds, draws among scores, and counts in words."""

from collections.abc import Mapping
from math import inf, log, sqrt
from operator import attrgetter

from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.records.layer_sums import LayerSums, Units
from esper.strategies.base import Metrics

TIE = 1e-9
"""Scores that differ by less, in standardised units, are equal."""

_FEWEST = 1e-6
"""Lower limit of trials in an upper bound, so that it stays finite."""

_OPEN = attrgetter("open")


def standardise(metrics: Metrics) -> Units:
    """Units in which every strategy reads rewards; a shift or a factor on all changes nothing.

    The scale is the standard deviation *within* seeds, pooled, so that differences between seeds do
    not count as noise. While few seeds were tried twice it leans on the standard deviation of all
    rewards: ``sqrt((sum m2 + total variance) / (sum (n - 1) + 1))``.

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
    """Sums of a layer: those that its live records keep, or computed from a snapshot."""
    if isinstance(metrics, LayerMetrics) and len(metrics) == len(metrics.sums.seeds):
        return metrics.sums
    made = LayerSums()
    made.replace(metrics, metrics.values())
    return made


def pending_of(metrics: Metrics) -> list[int]:
    """Choices without an outcome, seed by seed; empty if live records have none, as mostly."""
    if isinstance(metrics, LayerMetrics) and not any(map(_OPEN, metrics.values())):
        return []
    return [record.pending for record in metrics.values()]


def upper_bound(mean: float, trials: float, total: float, exploration_constant: float) -> float:
    """``mean + sqrt(c * ln(total) / trials)``; infinite for a seed never tried.

    Example:
        Tried four times at 0.50 against once at 0.40: bounds 1.397 and 2.194.

        >>> f"{upper_bound(0.50, 4, 5, 2.0):.3f}, {upper_bound(0.40, 1, 5, 2.0):.3f}"
        '1.397, 2.194'
    """
    if not trials:
        return inf
    return mean + sqrt(exploration_constant * log(max(total, 1.0)) / max(trials, _FEWEST))


def pick_best(scores: Mapping[int, float], rng: Draws) -> tuple[int, float]:
    """Seed of the highest score, and the probability of picking it; ties are drawn.

    Example:
        >>> pick_best({0: 0.5, 1: 0.7}, Draws(0, "fc1", 0))
        (1, 1.0)
        >>> pick_best({0: 0.7, 1: 0.7}, Draws(0, "fc1", 0))[1]
        0.5
    """
    least = max(scores.values()) - TIE
    tied = [seed for seed, score in scores.items() if score >= least]
    if len(tied) == 1:
        return tied[0], 1.0
    return sorted(tied)[rng.index(len(tied))], 1 / len(tied)


def draw_best(scores: Mapping[int, float], rng: Draws) -> tuple[int, dict[int, float]]:
    """Seed that `pick_best` picks, and the probability of every seed.

    Example:
        >>> draw_best({4: 0.5, 7: 0.7}, Draws(0, "fc1", 0))
        (7, {4: 0.0, 7: 1.0})
    """
    chosen, share = pick_best(scores, rng)
    chances = dict.fromkeys(scores, 0.0)
    chances[chosen] = share
    if share < 1:
        least = max(scores.values()) - TIE
        chances = {seed: share if score >= least else 0.0 for seed, score in scores.items()}
    return chosen, chances


def draw_from(chances: Mapping[int, float], rng: Draws) -> int:
    """Seed drawn with these probabilities, which add up to 1 within rounding."""
    left = rng.uniform()
    for seed, chance in chances.items():  # noqa: B007 (the last one, if rounding leaves some)
        left -= chance
        if left < 0:
            break
    return seed


def outcomes_of(metrics: Metrics, seed_idx: int) -> int:
    """Outcomes in a seed's window; 0 for a seed without a record."""
    return metrics[seed_idx].count if seed_idx in metrics else 0


def count_in_words(outcomes: int) -> str:
    """Number of outcomes in words.

    Example:
        >>> count_in_words(0), count_in_words(1), count_in_words(12)
        ('no outcome yet', '1 outcome', '12 outcomes')
    """
    if not outcomes:
        return "no outcome yet"
    return "1 outcome" if outcomes == 1 else f"{outcomes} outcomes"
