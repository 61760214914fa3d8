"""LinUCB: the seed whose reward here, going by what was seen elsewhere, could be best."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log1p, sqrt
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.records.draws import Draws
from esper.strategies.contextual.knowledge import Model
from esper.strategies.contextual.linear import Linear
from esper.strategies.contextual.predictions import Prediction, evidence
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import require_number


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
        grows: Whether the interval widens with the number of outcomes.
        ridge: What the coefficients are known by beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"``, a regression for each blueprint over all layers, or ``"shared"``, one
            for all.

    Raises:
        ConfigError: if a setting is out of range.

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
        >>> from esper.contracts.selection import SelectionContext
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> context = SelectionContext(current_epoch=19)
        >>> chosen, reason = LinUCB().decide([0, 1], metrics, context, Draws(0, "fc1", 2))
        >>> chosen, reason.reason
        (1, 'best mean by 1.6 sd, give or take 0.9, +0.82 expected here; 1 outcome')
    """

    when: ClassVar[str] = "what pays depends on the layer: health, type, size of the kernel"
    name: ClassVar[str] = "linucb"
    alpha: float = 1.0
    grows: bool = True
    ridge: float = 1.0
    model: Model = "disjoint"

    def __post_init__(self) -> None:
        require_number("linucb.alpha", self.alpha, above=0)
        if not isinstance(self.grows, bool):
            raise ConfigError(f"linucb.grows is {self.grows!r}; it must be true or false")
        self.check_regression()

    @override
    def score(
        self, expected: Prediction, rng: Draws
    ) -> tuple[dict[int, float], None, Callable[[int], Callable[[], str]]]:
        width = self.alpha * (sqrt(log1p(max(expected.total, 1))) if self.grows else 1.0)
        bounds = [
            mean + width * sqrt(max(variance, 0.0))
            for mean, variance in zip(expected.means, expected.variances, strict=True)
        ]
        return (
            dict(zip(expected.seeds, bounds, strict=True)),
            None,
            lambda at: partial(_why, at, bounds, expected.means, *expected.behind[at]),
        )


def _why(
    at: int, bounds: list[float], means: list[float], outcomes: int, of: str, in_all: int
) -> str:
    known = f"{means[at]:+.2f} expected here; {evidence(outcomes, of, in_all)}"
    standings = {place: (mean, 1.0) for place, mean in enumerate(means)}
    return bound_reason(at, standings, dict(enumerate(bounds)), known)
