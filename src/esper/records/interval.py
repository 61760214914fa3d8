"""Confidence intervals at 95 %: of a mean of few outcomes, by Student's t, and of a share."""

from math import cos, inf, pi, sin, sqrt, tan

from esper.contracts.performance import SeedStatistics

LEVEL = 0.95

_MANY = 400
"""Degrees of freedom from which a series in their inverse is exact to nine digits."""

_NORMAL = 1.959963984540054


def mean_interval(record: SeedStatistics) -> tuple[float, float] | None:
    """Student's t interval at 95 % of a seed's mean reward, over the outcomes of its window.

    ``mean -+ t * sqrt(m2 / (n - 1) / n)``, ``t`` with ``n - 1`` degrees of freedom: valid for
    independent, roughly normal rewards that do not drift inside the window. Not corrected for the
    selection of the best of several seeds.

    Returns:
        Its ends, in the reward's own units; ``None`` with fewer than two outcomes, or if it
        overflows.

    Example:
        Rewards 1, 2 and 3: standard error ``1 / sqrt(3)``, and 4.303 of them.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> [round(end, 3) for end in mean_interval(Seed(0, "fc1", rewards=[1, 2, 3]))]
        [-0.484, 4.484]
    """
    count = record.count
    if count < 2:
        return None
    half = t_quantile(count - 1) * sqrt(max(record.m2, 0.0) / (count - 1) / count)
    return (record.mean - half, record.mean + half) if half < inf else None


def share_interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson interval at 95 % of a share, ``part`` of ``whole`` >= 1 independent cases.

    Source:
        Wilson (1927), Journal of the American Statistical Association 22, 209-212.

    Example:
        >>> [round(end, 3) for end in share_interval(1, 10)]
        [0.018, 0.404]
    """
    z2, share = _NORMAL**2, part / whole
    middle, scale = share + z2 / (2 * whole), 1 + z2 / whole
    half = sqrt(z2 * (share * (1 - share) + z2 / (4 * whole)) / whole)
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def t_quantile(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t with ``freedom`` >= 1 degrees of freedom.

    Source:
        Abramowitz & Stegun (1964), 26.7.3 and 26.7.4, inverted by halving; 26.7.5 beyond 400.

    Example:
        >>> [round(t_quantile(freedom), 3) for freedom in (1, 2, 3, 10, 19, 1000)]
        [12.706, 4.303, 3.182, 2.228, 2.093, 1.962]
    """
    if freedom > _MANY:
        x = _NORMAL
        return x + (x**3 + x) / (4 * freedom) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < LEVEL:
            low = middle
        else:
            high = middle
    return sqrt(freedom) * tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """Probability that ``|t| < sqrt(freedom) * tan(angle)``."""
    square, odd = cos(angle) ** 2, freedom % 2
    term, total = cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
