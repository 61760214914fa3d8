"""Upper confidence bound: the highest mean plus a bonus for few trials (UCB1)."""

from dataclasses import dataclass
from functools import partial
from math import inf, log, sqrt
from typing import final

from typing_extensions import override

from esper.contracts.performance import SeedStatistics
from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import outcomes_of, pending_of, pick_best, sums_of


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

    Source:
        Auer, Cesa-Bianchi & Fischer (2002), Machine Learning 47, figure 1.

    Example:
        Rewards 1 and 3 of seed 0, 4 and 6 of seed 1: means 2 and 5 about 3.5, a scale of
        ``sqrt((4 + 13 / 3) / 3) = 1.667``, a bonus of ``sqrt(2 * ln(4) / 2) = 1.177`` for both.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1, 3]), 1: Seed(1, "fc1", rewards=[4, 6])}
        >>> [round(score, 3) for score in UCB().scores([0, 1], metrics).values()]
        [0.277, 2.077]
    """

    name = "ucb"
    when = "rewards are steady; the textbook's, deterministic, one setting"
    exploration_constant: float = 2.0

    def __post_init__(self) -> None:
        self.require("exploration_constant", above=0)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        scores, roots, width = self._bounds(viable, metrics)
        chosen, propensity = pick_best(scores, rng)
        count = outcomes_of(metrics, chosen)
        why = partial(_why, chosen, scores, roots, width, count)
        return self.chosen(chosen, scores, propensity, why)

    def scores(self, viable: Seeds, metrics: Metrics) -> dict[int, float]:
        """Upper bounds in standard deviations of the layer's rewards; inf where untried."""
        return self._bounds(viable, metrics)[0]

    def _bounds(
        self, viable: Seeds, metrics: Metrics
    ) -> tuple[dict[int, float], list[float], float]:
        """Upper bounds, ``1 / sqrt(trials)`` of every seed, and the factor on it."""
        sums, pending = sums_of(metrics), pending_of(metrics)
        centre, scale, total = sums.units()
        total += sum(pending)
        width = sqrt(self.exploration_constant * log(total)) if total > 1 else 0.0
        if viable == sums.seeds and sums.tried == len(viable):  # most choices, and faster
            roots = sums.roots
            if pending:
                roots = [(n + more) ** -0.5 for n, more in zip(sums.counts, pending, strict=True)]
            rows = zip(viable, sums.means, roots, strict=True)
            bounds = {seed: (mean - centre) / scale + width * root for seed, mean, root in rows}
            return bounds, roots, width
        roots, scores = [], {}
        for seed in viable:
            record = metrics.get(seed)
            # Chosen, but without an outcome: an average seed, less promising at each try.
            mean = record.mean if record and record.count else centre
            roots.append(root := _root(record))
            scores[seed] = (mean - centre) / scale + width * root if root < inf else inf
        return scores, roots, width


def _root(record: SeedStatistics | None) -> float:
    if record is None:
        return inf
    trials = record.count + record.pending if record.count else record.total_activations
    return trials**-0.5 if trials else inf


def _why(
    chosen: int, scores: dict[int, float], roots: list[float], width: float, count: int
) -> str:
    means = {
        seed: score - width * root if root < inf else 0.0
        for (seed, score), root in zip(scores.items(), roots, strict=True)
    }
    return bound_reason(chosen, means, scores, count)
