"""Posteriors of a seed's mean reward, and the probability that its draw is the highest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import asinh, erfc, exp, log, log1p, sinh, sqrt
from operator import mul
from typing import Literal, final, get_args

from esper.records.draws import Draws

Posterior = Literal["beta", "gaussian", "nig"]
POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
Parameters = tuple[float, ...]
"""``beta``: alpha, beta. ``gaussian``: mean, sd. ``nig``: location, scale, degrees of freedom."""

_POINTS = 480
"""Points of quadrature for all densities together; each has at least a fifth of them."""

_ERROR = 0.002
_NEVER = 1e-300


def beta_posterior(z: float, weight: float, prior: tuple[float, float]) -> Parameters:
    """Alpha and beta after ``weight`` outcomes of mean ``z``, as ``Phi(z)`` successes each.

    Args:
        z: Standardised mean reward.
        weight: Outcomes that it is the mean of, >= 0; need not be whole.
        prior: Successes and failures assumed beforehand.

    Example:
        >>> beta_posterior(0.0, 4, (1.0, 1.0))
        (3.0, 3.0)
    """
    successes = weight * 0.5 * erfc(-z / sqrt(2))
    return prior[0] + successes, prior[1] + weight - successes


def gaussian_posterior(z: float, weight: float, prior_count: float) -> Parameters:
    """Mean and sd after ``weight`` outcomes of mean ``z`` and ``prior_count`` of mean 0, all sd 1.

    Example:
        >>> gaussian_posterior(2.0, 3, 1.0)
        (1.5, 0.5)
    """
    total = weight + prior_count
    return z * (weight / total), 1 / sqrt(total)


def nig_posterior(
    z: float, weight: float, squares: float, prior_count: float, prior_shape: float
) -> Parameters:
    """Student-t of a seed's mean where its noise is unknown too: location, scale, freedom.

    Normal-inverse-gamma with ``m0 = 0``, ``kappa0 = prior_count``, ``a0 = b0 = prior_shape``: the
    precision assumed beforehand averages that of the layer. With ``n = weight``,
    ``kappa = kappa0 + n``, ``a = a0 + n / 2`` and
    ``b = b0 + squares / 2 + kappa0 * n * z**2 / (2 * kappa)``, the mean is Student-t with ``2 a``
    degrees of freedom, location ``n * z / kappa`` and scale ``sqrt(b / (a * kappa))``.

    Args:
        z: Standardised mean reward.
        weight: Outcomes that it is the mean of, >= 0.
        squares: Sum of their squared deviations from it, standardised.
        prior_count: ``kappa0``, > 0.
        prior_shape: ``a0``, > 0.

    Source:
        Murphy (2007), Conjugate Bayesian Analysis of the Gaussian Distribution, section 6.

    Example:
        Two outcomes, 1 and 3, on a prior of 1 and 1: kappa 3, a 2, ``b = 1 + 1 + 8 / 6 = 10 / 3``;
        location 4 / 3, scale ``sqrt(10 / 18) = 0.745``, 4 degrees of freedom.

        >>> [round(value, 3) for value in nig_posterior(2.0, 2, 2.0, 1.0, 1.0)]
        [1.333, 0.745, 4.0]
    """
    kappa = prior_count + weight
    shape = prior_shape + weight / 2
    rate = prior_shape + squares / 2 + prior_count * weight * z * z / (2 * kappa)
    return weight * z / kappa, sqrt(rate / (shape * kappa)), 2 * shape


def draw(posterior: Posterior, parameters: Parameters, rng: Draws) -> float:
    """One number from the posterior."""
    if posterior == "beta":
        return rng.beta(parameters[0], parameters[1])
    if posterior == "gaussian":
        return rng.normal(parameters[0], parameters[1])
    location, scale, freedom = parameters
    # If B is Beta(v / 2, v / 2), then sqrt(v) (B - 1 / 2) / sqrt(B (1 - B)) is Student-t with v.
    share = rng.beta(freedom / 2, freedom / 2)
    spread = sqrt(max(share * (1 - share), _NEVER))
    return location + scale * sqrt(freedom) * (share - 0.5) / spread


@final
@dataclass(frozen=True, slots=True)
class BestDraw:
    """Probability of every seed that its draw is the highest, by quadrature; a `Chances`.

    ``P(i is best) = integral of f_i * product of F_j``, over the draws themselves (``gaussian``,
    ``nig``) or their logits (``beta``, where the density has no poles), by the trapezoid rule.

    Attributes:
        posterior: ``"beta"``, ``"gaussian"`` or ``"nig"``.
        parameters: Seed and the parameters of its posterior.

    Example:
        Beta(1, 1) against Beta(2, 1): the second is higher with probability 2/3.

        >>> chance = BestDraw("beta", ((0, (1.0, 1.0)), (1, (2.0, 1.0))))
        >>> round(chance.of(0), 2), round(chance.of(1), 2)
        (0.33, 0.67)
    """

    posterior: Posterior
    parameters: tuple[tuple[int, Parameters], ...]

    @property
    def error(self) -> float:
        """Largest absolute error of a probability."""
        return 0.0 if len(self.parameters) == 1 else _ERROR

    def of(self, seed_idx: int) -> float:
        """Probability that the draw of ``seed_idx`` is the highest, in (0, 1]."""
        return self.all()[seed_idx]

    def all(self) -> dict[int, float]:
        """Probability of every seed."""
        if len(self.parameters) == 1:
            return {self.parameters[0][0]: 1.0}
        points = max(_POINTS // len(self.parameters), _POINTS // 5)
        shapes = [_SHAPES[self.posterior](points, *own) for _, own in self.parameters]
        grid = _grid(shapes)
        masses, reached = zip(*[_on(grid, density) for _, density in shapes], strict=True)
        # The product of the others' distributions, without dividing by one that may be zero.
        before = list(accumulate(reached, _times, initial=[1.0] * len(grid)))
        after = list(accumulate(reversed(reached), _times, initial=[1.0] * len(grid)))[::-1]
        return {
            seed: min(max(sum(map(mul, mass, _times(lower, higher))), 1e-12), 1.0)
            for (seed, _), mass, lower, higher in zip(
                self.parameters, masses, before, after[1:], strict=False
            )
        }


_Grid = list[tuple[float, float]]
"""Points, and the width that each stands for."""


def _on(grid: _Grid, log_density: Callable[[float], float]) -> tuple[list[float], list[float]]:
    """Probability at each point of the grid, and up to the middle of it."""
    masses = [exp(log_density(point)) * width for point, width in grid]
    total = sum(masses)
    masses = [mass / total for mass in masses]
    return masses, [
        up_to - mass / 2 for up_to, mass in zip(accumulate(masses), masses, strict=True)
    ]


def _times(one: list[float], two: list[float]) -> list[float]:
    return list(map(mul, one, two))


_Shape = tuple[list[float], Callable[[float], float]]
"""Points that resolve a density, and its logarithm, 0 at the mode."""


def _beta_shape(points: int, alpha: float, beta: float) -> _Shape:
    mode = log(alpha / beta)
    spread = sqrt(1 / alpha + 1 / beta)
    peak = alpha * mode - (alpha + beta) * _softplus(mode)
    # In logits the tails fall like exp(alpha * t) and exp(-beta * t).
    return (
        _between(mode - 8 * spread - 20 / alpha, mode + 8 * spread + 20 / beta, points),
        lambda t: alpha * t - (alpha + beta) * _softplus(t) - peak,
    )


def _normal_shape(points: int, mean: float, sd: float) -> _Shape:
    return _between(mean - 8 * sd, mean + 8 * sd, points), lambda t: -0.5 * ((t - mean) / sd) ** 2


def _student_shape(points: int, location: float, scale: float, freedom: float) -> _Shape:
    # The tails fall like a power: points ever farther apart reach them.
    end = asinh(max(8.0, 10 ** min(6 / freedom, 12.0)))
    half = (freedom + 1) / 2
    return (
        [location + scale * sinh(step) for step in _between(-end, end, points)],
        lambda t: -half * log1p(((t - location) / scale) ** 2 / freedom),
    )


_SHAPES: dict[Posterior, Callable[..., _Shape]] = {
    "beta": _beta_shape,
    "gaussian": _normal_shape,
    "nig": _student_shape,
}


def _softplus(t: float) -> float:
    return t + log1p(exp(-t)) if t > 0 else log1p(exp(t))


def _between(low: float, high: float, points: int) -> list[float]:
    return [low + (high - low) * (index + 0.5) / points for index in range(points)]


def _grid(shapes: Sequence[_Shape]) -> _Grid:
    # Every density brings its own points, so that narrow and wide ones are resolved alike.
    points = sorted([point for own, _ in shapes for point in own])
    ends = [points[0], *points, points[-1]]
    return [
        (point, (after - before) / 2)
        for before, point, after in zip(ends, points, ends[2:], strict=False)
    ]
