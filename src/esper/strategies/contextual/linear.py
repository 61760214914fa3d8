"""LinUCB and linear Thompson sampling: ridge regressions of rewards on features of a choice."""

from abc import ABC
from dataclasses import dataclass
from functools import partial
from math import log1p, sqrt
from typing import final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.propensities import Chance
from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.contextual.joint_draws import draw_together, factor_of
from esper.strategies.contextual.knowledge import MODELS, LinearKnowledge, Model
from esper.strategies.contextual.predictions import Prediction, support_in_words
from esper.strategies.posteriors import BestDraw
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import pick_best

_SURE = 1e-12
"""Lower limit of a standard deviation; smaller ones are rounding."""


class Linear(SelectionStrategy, ABC):
    """Choice by regressions on features.

    Attributes:
        ridge: Precision of the coefficients beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"`` or ``"shared"``.
    """

    ridge: float
    model: Model

    @override
    def begin(self, layer_name: str) -> LinearKnowledge:
        return LinearKnowledge(layer_name, self.model, self.ridge)

    def predict(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> Prediction:
        """Prediction for each of ``viable`` in ``context``."""
        learned = self.knowledge(metrics, LinearKnowledge, context)
        return learned.predict(viable, metrics, context)

    def require_regression(self) -> None:
        """Refuse a ridge or a model that is out of range."""
        self.require("ridge", at_least=1e-6)
        self.require_one_of("model", MODELS)


@final
@dataclass(frozen=True)
class LinUCB(Linear):
    """Score a seed by ``x' theta + width * sqrt(x' A^-1 x)``; the highest is chosen.

    ``x`` are features of the layer, its health and the seed's kernel, ``A = ridge * I + sum x x'``
    and ``theta = A^-1 sum r x`` over the outcomes so far, ``r`` standardised by the centre and the
    spread of all rewards so far. A choice without an outcome counts as a trial.

    ``width`` is ``alpha``, or ``alpha * sqrt(ln(1 + n))`` after ``n`` outcomes where it grows. One
    that is constant can leave a seed alone for ever after an unlucky outcome.

    Args:
        alpha: Width of the interval in standard deviations, > 0.
        grows: The interval widens with the number of outcomes.
        ridge: Precision of the coefficients beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"``, a regression for each blueprint over all layers, or ``"shared"``, one
            for all.

    Source:
        Li, Chu, Langford & Schapire (2010), A Contextual-Bandit Approach to Personalized News
        Article Recommendation, algorithm 1: there ``ridge`` is 1 and ``grows`` is false. Growth:
        docs/decisions/0014.

    Example:
        Nothing is measured, and epoch 19 is the middle of its scale: ``x`` is the constant and
        eight flags of 0.5, ``x'x = 3``. One outcome makes ``x' A^-1 x = 3 - 9 / 4 = 3 / 4``.
        Rewards 1 and 3, -/+ 1 about their mean, make means of -/+ 0.75. Each was ``1 / (1 + 3)``
        of a surprise, the total variance is 2: a spread of ``sqrt((0.5 + 2) / 3) = 0.913``. Means
        of -/+ 0.822 and intervals of ``sqrt(ln 3 * 3 / 4) = 0.908`` make bounds of 0.086 and 1.729.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> context = SelectionContext(current_epoch=19)
        >>> chosen, reason = LinUCB().decide([0, 1], metrics, context, Draws(0, "fc1", 2))
        >>> chosen, reason.reason
        (1, 'best mean by 1.6 sd, give or take 0.9, +0.82 expected here; 1 outcome')
    """

    name = "linucb"
    when = "what pays depends on the layer: health, type, size of the kernel"
    alpha: float = 1.0
    grows: bool = True
    ridge: float = 1.0
    model: Model = "disjoint"

    def __post_init__(self) -> None:
        self.require("alpha", above=0)
        if not isinstance(self.grows, bool):
            raise ConfigError(f"linucb.grows is {self.grows!r}; it must be true or false")
        self.require_regression()

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        expected = self.predict(viable, metrics, context)
        width = self.alpha * (sqrt(log1p(max(expected.total, 1))) if self.grows else 1.0)
        means = dict(zip(expected.seeds, expected.means, strict=True))
        rows = zip(means.items(), expected.variances, strict=True)
        bounds = {seed: mean + width * sqrt(max(variance, 0.0)) for (seed, mean), variance in rows}
        chosen, share = pick_best(bounds, rng)
        support = expected.support[expected.seeds.index(chosen)]
        why = partial(_why_bound, chosen, means, bounds, *support)
        return self.chosen(chosen, bounds, share, why, expected.features[chosen])


@final
@dataclass(frozen=True)
class LinTS(Linear):
    """Draw ``theta`` from Normal(``A^-1 b``, ``v**2 A^-1``); the highest ``x' theta`` is chosen.

    ``x``, ``A`` and ``b`` are those of `linucb`, rewards standardised. The draws are ``x' theta``
    of the viable seeds together, which is the same. Propensities are exact to 0.002 where seeds
    have regressions of their own, else by Monte Carlo.

    Args:
        v: Spread of the draws, in posterior standard deviations, > 0.
        ridge: Precision of the coefficients beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"``, a regression for each blueprint over all layers, or ``"shared"``, one
            for all.

    Source:
        Agrawal & Goyal (2013), Thompson Sampling for Contextual Bandits with Linear Payoffs,
        algorithm 1.

    Example:
        Rewards 1 and 3 as for `LinUCB`: means -/+ 0.822, variances 3/4; the second draw is higher
        with probability ``Phi(1.643 / sqrt(1.5)) = 0.910``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> context = SelectionContext(current_epoch=19)
        >>> _, reason = LinTS().decide([0, 1], metrics, context, Draws(0, "fc1", 2))
        >>> {seed: round(chance, 2) for seed, chance in reason.propensities.items()}
        {0: 0.09, 1: 0.91}
    """

    name = "lin_ts"
    when = "as linucb, and choices should be drawn"
    v: float = 1.0
    ridge: float = 1.0
    model: Model = "disjoint"

    def __post_init__(self) -> None:
        self.require("v", above=0)
        self.require_regression()

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        expected = self.predict(viable, metrics, context)
        scores, chances = self._draw(expected, rng)
        chosen, _ = pick_best(scores, rng)
        at = expected.seeds.index(chosen)
        spread = self.v * sqrt(max(expected.variances[at], 0.0))
        drawn = scores[chosen], len(scores), expected.means[at], spread
        why = partial(_why_draw, *drawn, *expected.support[at])
        return self.chosen(chosen, scores, chances, why, expected.features[chosen])

    def _draw(self, expected: Prediction, rng: Draws) -> tuple[dict[int, float], Chance]:
        seeds, means = expected.seeds, expected.means
        if expected.covariance is not None:
            factor_KK = self.v * factor_of(expected.covariance)
            return draw_together(seeds, means, factor_KK, rng)
        sds = [max(self.v * sqrt(max(one, 0.0)), _SURE) for one in expected.variances]
        posteriors = list(zip(seeds, zip(means, sds, strict=True), strict=True))
        scores = {seed: rng.normal(mean, sd) for seed, (mean, sd) in posteriors}
        return scores, BestDraw("gaussian", tuple(posteriors))


def _why_bound(
    chosen: int,
    means: dict[int, float],
    bounds: dict[int, float],
    outcomes: int,
    blueprint: str,
    total: int,
) -> str:
    support = support_in_words(outcomes, blueprint, total)
    return bound_reason(chosen, means, bounds, f"{means[chosen]:+.2f} expected here; {support}")


def _why_draw(
    score: float, viable: int, mean: float, sd: float, outcomes: int, blueprint: str, total: int
) -> str:
    return (
        f"highest draw, {score:.2f} sd, of {viable}: {mean:+.2f} expected here, give or take "
        f"{sd:.2f}; {support_in_words(outcomes, blueprint, total)}"
    )
