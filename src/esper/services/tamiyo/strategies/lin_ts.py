"""Linear Thompson sampling: draw what rewards may depend on, take what would then be best here."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import Chance, SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.strategies._base import (
    Metrics,
    SelectionStrategy,
    others,
    pick_best,
    require_number,
)
from esper.services.tamiyo.strategies._contextual import (
    MODELS,
    LinearKnowledge,
    Model,
    Prediction,
    known_of,
)
from esper.services.tamiyo.strategies._posteriors import BestDraw
from esper.services.tamiyo.strategies._ridge import draw_together, factor_of

_SURE = 1e-12
"""Standard deviations below are rounding."""


@final
@dataclass(frozen=True)
class LinTS(SelectionStrategy):
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
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> context = SelectionContext(current_epoch=19)
        >>> _, reason = LinTS().decide([0, 1], metrics, context, Draws(0, "fc1", 2))
        >>> {seed: round(chance, 2) for seed, chance in reason.propensities.items()}
        {0: 0.09, 1: 0.91}
    """

    name: ClassVar[str] = "lin_ts"
    v: float = 1.0
    ridge: float = 1.0
    model: Model = "disjoint"

    def __post_init__(self) -> None:
        require_number("lin_ts.v", self.v, above=0)
        require_number("lin_ts.ridge", self.ridge, at_least=1e-6)
        if self.model not in MODELS:
            raise ConfigError(unknown_name("lin_ts.model", self.model, MODELS))

    @override
    def begin(self, layer_name: str) -> LinearKnowledge:
        return LinearKnowledge(layer_name, self.model, self.ridge)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        known = known_of(metrics, context, self.model, self.ridge)
        expected = known.predict(viable, metrics, context)
        scores, chance = self._draw(expected, rng)
        chosen, _ = pick_best(scores, rng)
        at = expected.seeds.index(chosen)
        return chosen, SelectionReason(
            "lin_ts",
            chosen,
            scores[chosen],
            scores,
            chance,
            f"highest draw, {scores[chosen]:.2f} sd, of {len(scores)}: "
            f"{expected.means[at]:+.2f} expected here, give or take "
            f"{self.v * sqrt(max(expected.variances[at], 0.0)):.2f}; {expected.outcomes[chosen]}",
            False,
            others(viable, chosen),
            expected.features[chosen],
        )

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
