"""Thompson sampling: draw what each seed may be worth, take the best draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erfc, exp, log, log1p, sqrt
from typing import ClassVar, Literal, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.strategies._base import (
    Metrics,
    SelectionStrategy,
    others,
    pick_best,
    require_number,
    standardise,
    tried,
)

Parameters = tuple[float, float]
_POSTERIORS = ("beta", "gaussian")
_POINTS = 200


@final
@dataclass(frozen=True)
class Thompson(SelectionStrategy):
    """Draw from every seed's posterior and take the highest draw.

    ``beta``: a mean reward of ``z`` standard deviations above the mean of the layer's seeds over
    ``n`` outcomes counts as ``n * p`` successes and ``n * (1 - p)`` failures, ``p = Phi(z)``; the
    posterior is Beta(``prior_alpha`` + successes, ``prior_beta`` + failures).

    ``gaussian``: Normal with mean ``z * n / (n + prior_count)`` and standard deviation
    ``1 / sqrt(n + prior_count)``.

    Neither a shift of all rewards nor a factor on them changes a choice.

    Args:
        prior_alpha: Successes assumed beforehand, > 0.
        prior_beta: Failures assumed beforehand, > 0.
        posterior: ``"beta"`` or ``"gaussian"``.
        prior_count: Average outcomes assumed beforehand by ``gaussian``, > 0.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, algorithm 2 (Beta);
        Agrawal & Goyal (2013), Further Optimal Regret Bounds, algorithm 2 (Gaussian).

    Example:
        Rewards 1 and 3, once each: spread ``sqrt(2)``, z is -/+ 0.7071, p is 0.2398 and 0.7602; the
        posteriors are Beta(1.24, 1.76) and Beta(1.76, 1.24).

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> [(round(a, 2), round(b, 2)) for a, b in Thompson().posteriors([0, 1], metrics).values()]
        [(1.24, 1.76), (1.76, 1.24)]
    """

    name: ClassVar[str] = "thompson"
    prior_alpha: float = 1.0
    prior_beta: float = 1.0
    posterior: Literal["beta", "gaussian"] = "beta"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        require_number("thompson.prior_alpha", self.prior_alpha, above=0)
        require_number("thompson.prior_beta", self.prior_beta, above=0)
        require_number("thompson.prior_count", self.prior_count, above=0)
        if self.posterior not in _POSTERIORS:
            raise ConfigError(unknown_name("thompson.posterior", self.posterior, _POSTERIORS))

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        posteriors = self.posteriors(sorted(viable), metrics)
        draw = rng.beta if self.posterior == "beta" else rng.normal
        scores = {seed: draw(first, second) for seed, (first, second) in posteriors.items()}
        chosen, _ = pick_best(scores, rng)
        record = metrics.get(chosen)
        return chosen, SelectionReason(
            "thompson",
            chosen,
            scores[chosen],
            scores,
            BestDraw(self.posterior, tuple(posteriors.items())),
            f"highest draw, {scores[chosen]:.2f}, of {len(scores)}; "
            f"{tried(record.count if record else 0)}",
            False,
            others(viable, chosen),
        )

    def posteriors(self, viable: Sequence[int], metrics: Metrics) -> dict[int, Parameters]:
        """Alpha and beta, or mean and standard deviation, of each seed."""
        centre, scale, _ = standardise(metrics)
        found = {}
        for seed in viable:
            record = metrics.get(seed)
            count = record.count if record else 0
            z = (record.mean - centre) / scale if record and count else 0.0
            if self.posterior == "gaussian":
                weight = count + self.prior_count
                found[seed] = (z * count / weight, 1 / sqrt(weight))
            else:
                successes = count * 0.5 * erfc(-z / sqrt(2))
                found[seed] = (self.prior_alpha + successes, self.prior_beta + count - successes)
        return found


@final
@dataclass(frozen=True, slots=True)
class BestDraw:
    """Probability that a seed's draw is the highest, by quadrature; absolute error below 0.002.

    ``P(i is best) = integral of f_i * product of F_j``, over the draws themselves (``gaussian``) or
    their logits (``beta``, where the density has no poles), by the trapezoid rule.

    Attributes:
        posterior: ``"beta"`` or ``"gaussian"``.
        parameters: Seed and the two parameters of its posterior.

    Example:
        Beta(1, 1) against Beta(2, 1): the second is higher with probability 2/3.

        >>> chance = BestDraw("beta", ((0, (1.0, 1.0)), (1, (2.0, 1.0))))
        >>> round(chance.of(0), 2), round(chance.of(1), 2)
        (0.33, 0.67)
    """

    posterior: str
    parameters: tuple[tuple[int, Parameters], ...]

    def of(self, seed_idx: int) -> float:
        """Probability that the draw of ``seed_idx`` is the highest, in (0, 1]."""
        if len(self.parameters) == 1:
            return 1.0
        shape = _beta_shape if self.posterior == "beta" else _normal_shape
        shapes = {seed: shape(first, second) for seed, (first, second) in self.parameters}
        grid = _grid(list(shapes.values()))
        chance = [0.0] * len(grid)
        below = [1.0] * len(grid)
        for seed, (_, _, log_density) in shapes.items():
            density = [exp(log_density(point)) * width for point, width in grid]
            total = sum(density)
            if seed == seed_idx:
                chance = [value / total for value in density]
                continue
            reached = 0.0
            for index, value in enumerate(density):
                below[index] *= (reached + value / 2) / total
                reached += value
        best = sum([value * under for value, under in zip(chance, below, strict=True)])
        return min(max(best, 1e-12), 1.0)


_Shape = tuple[float, float, Callable[[float], float]]
"""Where a density begins and ends for our purposes, and its logarithm, 0 at the mode."""


def _beta_shape(alpha: float, beta: float) -> _Shape:
    mode = log(alpha / beta)
    spread = sqrt(1 / alpha + 1 / beta)
    peak = alpha * mode - (alpha + beta) * _softplus(mode)
    # In logits the tails fall like exp(alpha * t) and exp(-beta * t).
    return (
        mode - 8 * spread - 20 / alpha,
        mode + 8 * spread + 20 / beta,
        lambda t: alpha * t - (alpha + beta) * _softplus(t) - peak,
    )


def _normal_shape(mean: float, sd: float) -> _Shape:
    return mean - 8 * sd, mean + 8 * sd, lambda t: -0.5 * ((t - mean) / sd) ** 2


def _softplus(t: float) -> float:
    return t + log1p(exp(-t)) if t > 0 else log1p(exp(t))


def _grid(shapes: Sequence[_Shape]) -> list[tuple[float, float]]:
    # Every density brings its own points, so that narrow and wide ones are resolved alike.
    points = sorted(
        [
            low + (high - low) * (index + 0.5) / _POINTS
            for low, high, _ in shapes
            for index in range(_POINTS)
        ]
    )
    ends = [points[0], *points, points[-1]]
    return [
        (point, (after - before) / 2)
        for before, point, after in zip(ends, points, ends[2:], strict=False)
    ]
