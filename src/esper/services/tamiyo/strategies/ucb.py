"""Upper confidence bound: the seed that could be best, given how little is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, log, sqrt
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.standing import Standing
from esper.services.tamiyo.strategies._base import (
    Metrics,
    SelectionStrategy,
    others,
    pick_best,
    require_number,
    standing_of,
    tried,
)

if TYPE_CHECKING:
    from numpy.random import Generator

    from esper.services.tamiyo.columns import Flags, Floats, WindowColumns


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


@final
@dataclass(frozen=True)
class UCB(SelectionStrategy):
    """Score a seed by ``mean + sqrt(c * ln(total) / trials)``; the highest is chosen.

    ``mean`` is the standardised mean reward of the window, ``trials`` the outcomes inside the
    window, ``total`` the outcomes ever in the layer: the bonus of a seed that is left alone grows
    without limit, so none starves (docs/decisions/0003).

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
    columns: ClassVar[str] = "window"
    exploration_constant: float = 2.0

    def __post_init__(self) -> None:
        require_number("ucb.exploration_constant", self.exploration_constant, above=0)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        scores = self.scores(viable, metrics)
        chosen, propensity = pick_best(scores, rng)
        score = scores[chosen]
        record = metrics.get(chosen)
        return chosen, SelectionReason(
            "ucb",
            chosen,
            score,
            scores,
            propensity,
            partial(_why, score, record.count if record else 0),
            False,
            others(viable, chosen),
        )

    def scores(self, viable: Sequence[int], metrics: Metrics) -> dict[int, float]:
        """Upper bounds in standard deviations of the layer's rewards; inf where untried."""
        standing = standing_of(metrics)
        if viable == standing.seeds and standing.tried == len(viable):
            return dict(zip(viable, self.bounds(standing), strict=True))
        units = standing.units()
        scores = {}
        for seed in viable:
            record = metrics.get(seed)
            if record is None:
                scores[seed] = inf
            elif record.count:
                [scores[seed]] = self._bounds([record.mean], [record.count], units)
            else:
                # Chosen, but nothing heard of it: an average seed, less promising at each try.
                tries = record.total_activations
                scores[seed] = self._bounds([units[0]], [tries], units)[0] if tries else inf
        return scores

    def bounds(self, standing: Standing) -> list[float]:
        """Upper bound of every seed of a layer in which all have been tried."""
        return self._bounds(standing.means, standing.counts, standing.units())

    def _bounds(
        self, means: list[float], trials: list[int], units: tuple[float, float, int]
    ) -> list[float]:
        centre, scale, total = units
        width = self.exploration_constant * log(total) if total > 1 else 0.0
        if trials.count(trials[0]) == len(trials):  # as when all windows are full
            bonus = sqrt(width / trials[0])
            return [(mean - centre) / scale + bonus for mean in means]
        return [
            (mean - centre) / scale + sqrt(width / count)
            for mean, count in zip(means, trials, strict=True)
        ]

    @override
    def score_layers(
        self,
        known: "WindowColumns",
        viable_KL: "Flags | None",
        rng: "Generator",
        out_KL: "Floats",
    ) -> None:
        known.standardised(out_KL)
        out_KL += known.intervals(self.exploration_constant)


def _why(score: float, count: int) -> str:
    return f"highest upper bound, {score:.2f} sd, after {tried(count)}"
