"""Upper confidence bound: the seed that could be best, given how little is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, log, sqrt
from operator import attrgetter
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.performance import SeedStatistics
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.strategies.base import Metrics, SelectionStrategy
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import pick_best, require_number, sums_of

_OPEN = attrgetter("open")

Known = tuple[int, list[float]]
"""Outcomes ever, and one over the square root of every seed's trials."""


def upper_bound(mean: float, trials: int, total: int, exploration_constant: float) -> float:
    """``mean + sqrt(c * ln(total) / trials)``; infinite for a seed never tried.

    Example:
        Tried four times at 0.50 against once at 0.40: bounds 1.397 and 2.194.

        >>> f"{upper_bound(0.50, 4, 5, 2.0):.3f}, {upper_bound(0.40, 1, 5, 2.0):.3f}"
        '1.397, 2.194'
    """
    if not trials:
        return inf
    return mean + sqrt(exploration_constant * log(total) / trials)


def upper_bounds(
    means: list[float],
    roots: list[float],
    units: tuple[float, float, int],
    exploration_constant: float,
) -> list[float]:
    """`upper_bound` of some seeds of a layer, in its `Units`; ``roots`` are ``1 / sqrt(trials)``.

    Example:
        As above, in units of 0.2 about 0.4:

        >>> [round(bound, 3) for bound in upper_bounds([0.50, 0.40], [0.5, 1], (0.4, 0.2, 5), 2.0)]
        [1.397, 1.794]
    """
    centre, scale, total = units
    width = sqrt(exploration_constant * log(total)) if total > 1 else 0.0
    rows = zip(means, roots)  # noqa: B905 (to ask for equal lengths takes 0.2 µs)
    return [(mean - centre) / scale + width * root for mean, root in rows]


@final
@dataclass(frozen=True)
class UCB(SelectionStrategy):
    """Score a seed by ``mean + sqrt(c * ln(total) / trials)``; the highest is chosen.

    ``mean`` is the standardised mean reward of the window, ``trials`` the outcomes inside the
    window, ``total`` the outcomes ever in the layer, and both count the choices whose outcome has
    not come, so that parallel trainers spread. The bonus of a seed that is left alone grows without
    limit, so none starves (docs/decisions/0003).

    Args:
        exploration_constant: ``c``, > 0, inside the root; 2.0 is UCB1.

    Raises:
        ConfigError: if ``exploration_constant`` is not positive.

    Source:
        Auer, Cesa-Bianchi & Fischer (2002), Machine Learning 47, figure 1.

    Example:
        See `upper_bound`.
    """

    when: ClassVar[str] = "rewards are steady; the textbook's, deterministic, one setting"
    name: ClassVar[str] = "ucb"
    exploration_constant: float = 2.0

    def __post_init__(self) -> None:
        require_number("ucb.exploration_constant", self.exploration_constant, above=0)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        sums, pending, c = sums_of(metrics), _pending(metrics), self.exploration_constant
        centre, scale, total = sums.units()
        total += sum(pending)
        if viable == sums.seeds and sums.tried == len(viable):
            roots = sums.roots
            if pending:
                roots = [(n + more) ** -0.5 for n, more in zip(sums.counts, pending, strict=True)]
            bounds = upper_bounds(sums.means, roots, (centre, scale, total), c)
            scores = dict(zip(viable, bounds, strict=True))
        else:
            scores = self.scores(viable, metrics)
            roots = [_root(metrics.get(seed)) for seed in viable]
        chosen, propensity = pick_best(scores, rng)
        count = metrics[chosen].count if chosen in metrics else 0
        why = partial(_why, chosen, scores, (total, roots), c, count)
        return self.chosen(chosen, scores, propensity, why)

    def scores(self, viable: Sequence[int], metrics: Metrics) -> dict[int, float]:
        """Upper bounds in standard deviations of the layer's rewards; inf where untried."""
        centre, scale, total = sums_of(metrics).units()
        units, c = (centre, scale, total + sum(_pending(metrics))), self.exploration_constant
        scores = {}
        for seed in viable:
            record = metrics.get(seed)
            if record is None:
                scores[seed] = inf
            else:
                # Chosen, but nothing heard of it: an average seed, less promising at each try.
                mean, root = record.mean if record.count else units[0], _root(record)
                scores[seed] = upper_bounds([mean], [root], units, c)[0] if root < inf else inf
        return scores


def _root(record: SeedStatistics | None) -> float:
    if record is None:
        return inf
    trials = record.count + record.pending if record.count else record.total_activations
    return trials**-0.5 if trials else inf


def _pending(metrics: Metrics) -> list[int]:
    """Choices without an outcome, seed by seed; empty where there are none, as mostly."""
    if isinstance(metrics, LayerMetrics) and not any(map(_OPEN, metrics.values())):
        return []
    return [record.pending for record in metrics.values()]


def _why(chosen: int, scores: dict[int, float], known: Known, c: float, count: int) -> str:
    total, roots = known
    width = sqrt(c * log(total)) if total > 1 else 0.0
    halves = [width * root if root < inf else inf for root in roots]
    standings = {
        seed: (score - half if half < inf else 0.0, 1.0)
        for (seed, score), half in zip(scores.items(), halves, strict=True)
    }
    return bound_reason(chosen, standings, scores, count)
