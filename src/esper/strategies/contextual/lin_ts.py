"""Linear Thompson sampling: draw what rewards may depend on, take what would then be best here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.propensities import Chance
from esper.records.draws import Draws
from esper.strategies.contextual.joint_draws import draw_together, factor_of
from esper.strategies.contextual.knowledge import Model
from esper.strategies.contextual.linear import Linear
from esper.strategies.contextual.predictions import Prediction, evidence
from esper.strategies.posteriors import BestDraw
from esper.strategies.scoring import require_number

_SURE = 1e-12
"""Standard deviations below are rounding."""


@final
@dataclass(frozen=True)
class LinTS(Linear):
    """Draw ``theta`` from Normal(``A^-1 b``, ``v**2 A^-1``); the highest ``x' theta`` is chosen.

    ``x``, ``A`` and ``b`` are those of `linucb`, rewards standardised. What is drawn is
    ``x' theta`` of the viable seeds together, which is the same. Propensities are exact to 0.002
    where seeds have regressions of their own, else by Monte Carlo.

    Args:
        v: Spread of the draws, in posterior standard deviations, > 0.
        ridge: What the coefficients are known by beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"``, a regression for each blueprint over all layers, or ``"shared"``, one
            for all.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Agrawal & Goyal (2013), Thompson Sampling for Contextual Bandits with Linear Payoffs,
        algorithm 1.

    Example:
        Rewards 1 and 3 as for `linucb`: means -/+ 0.822, variances 3/4; the second draw is higher
        with probability ``Phi(1.643 / sqrt(1.5)) = 0.910``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> from esper.contracts.selection import SelectionContext
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> context = SelectionContext(current_epoch=19)
        >>> _, reason = LinTS().decide([0, 1], metrics, context, Draws(0, "fc1", 2))
        >>> {seed: round(chance, 2) for seed, chance in reason.propensities.items()}
        {0: 0.09, 1: 0.91}
    """

    when: ClassVar[str] = "as linucb, and choices should be drawn"
    name: ClassVar[str] = "lin_ts"
    v: float = 1.0
    ridge: float = 1.0
    model: Model = "disjoint"

    def __post_init__(self) -> None:
        require_number("lin_ts.v", self.v, above=0)
        self.check_regression()

    @override
    def score(
        self, expected: Prediction, rng: Draws
    ) -> tuple[dict[int, float], Chance, Callable[[int], Callable[[], str]]]:
        scores, chance = self._draw(expected, rng)

        def why(at: int) -> Callable[[], str]:
            doubt = self.v * sqrt(max(expected.variances[at], 0.0))
            score = scores[expected.seeds[at]]
            known = expected.behind[at]
            return partial(_why, score, len(scores), expected.means[at], doubt, *known)

        return scores, chance, why

    def _draw(self, expected: Prediction, rng: Draws) -> tuple[dict[int, float], Chance]:
        if expected.covariance is not None:
            factor_KK = self.v * factor_of(expected.covariance)
            return draw_together(expected.seeds, expected.means, factor_KK, rng)
        posteriors = {
            seed: (mean, max(self.v * sqrt(max(variance, 0.0)), _SURE))
            for seed, mean, variance in zip(
                expected.seeds, expected.means, expected.variances, strict=True
            )
        }
        scores = {seed: rng.normal(mean, sd) for seed, (mean, sd) in posteriors.items()}
        return scores, BestDraw("gaussian", tuple(posteriors.items()))


def _why(
    score: float, viable: int, mean: float, doubt: float, outcomes: int, of: str, in_all: int
) -> str:
    return (
        f"highest draw, {score:.2f} sd, of {viable}: {mean:+.2f} expected here, give or take "
        f"{doubt:.2f}; {evidence(outcomes, of, in_all)}"
    )
