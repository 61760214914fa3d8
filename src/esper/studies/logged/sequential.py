"""Sequential tests: valid at every look, however often, and whenever they are stopped.

The test of two means is a mixture sequential probability ratio test on Student's t. With ``n_a``
and ``n_b`` outcomes, ``m = n_a * n_b / (n_a + n_b)``, ``v = n_a + n_b - 2`` and ``tau`` the
standard deviation of the mixture over the standardised difference ``d``, the evidence against a
difference of ``delta`` is the likelihood ratio

    (1 + m tau**2) ** -0.5 * ((1 + t**2 / v) / (1 + t**2 / (v * (1 + m tau**2)))) ** ((v + 1) / 2)

of ``t = (mean_b - mean_a - delta) / (s / sqrt(m))``. Level and spread of the rewards, both unknown,
drop out of ``t``, so for normal rewards the ratio is a martingale with mean 1 and exceeds
``1 / alpha`` at some look, ever, with a probability of at most ``alpha`` (Ville's inequality). For
other rewards this holds in the limit. The differences that are not rejected are a confidence
sequence: with a probability of ``1 - alpha`` all its intervals, one for each look, hold at once.
They are not intersected: strategies that learn may differ more later than at first.

Sources: Robbins (1970), Statistical Methods Related to the Law of the Iterated Logarithm; Johari,
Pekelis & Walsh (2017), Always Valid Inference (the mixture SPRT); Gönen, Johnson, Lu & Westfall
(2005), The Bayesian Two-Sample t Test (the ratio); Hendriksen, de Heide & Grünwald (2021), Optional
Stopping with Bayes Factors (why it may be stopped).
"""

from dataclasses import dataclass
from math import erfc, exp, gamma, log, sqrt
from typing import final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = 0.05
"""Probability, over all looks, of deciding between arms that do not differ."""

MIXTURE_SD = 0.3
"""``tau``: differences of about this many standard deviations are found soonest."""

FIRST_LOOK = 5
"""Outcomes of each arm before the first look: of fewer, a mean is not nearly normal."""

FOREVER = 1_000_000
"""Outcomes after which waiting is hopeless."""


def log_evidence(t: Array, pairs: Array, freedom: Array) -> Array:
    """Logarithm of the likelihood ratio above, elementwise.

    Args:
        t: Student's t of the difference.
        pairs: ``m``, > 0.
        freedom: ``v``, > 0.

    Example:
        m 50, v 198, t 3: ``5.5 ** -0.5 * (1.04545 / 1.00826) ** 99.5`` is 15.67.

        >>> found = log_evidence(np.array([3.0]), np.array([50.0]), np.array([198.0]))
        >>> round(float(np.exp(found[0])), 2)
        15.67
    """
    grown = 1 + pairs * MIXTURE_SD**2
    squares = t * t / freedom
    ratio = np.log1p(squares) - np.log1p(squares / grown)
    found: Array = -0.5 * np.log(grown) + (freedom + 1) / 2 * ratio
    return found


def largest_t(pairs: Array, freedom: Array, alpha: float = ALPHA) -> Array:
    """The ``t`` at which the evidence is ``1 / alpha``; inf where no ``t`` is evidence enough.

    Example:
        >>> pairs, freedom = np.array([0.5, 50.0]), np.array([2.0, 198.0])
        >>> limit = largest_t(pairs, freedom)
        >>> float(limit[0]), round(float(limit[1]), 2)
        (inf, 3.1)
        >>> round(float(np.exp(log_evidence(limit[1:], pairs[1:], freedom[1:])[0])), 9)
        20.0
    """
    grown = 1 + pairs * MIXTURE_SD**2
    factor = np.exp((2 * np.log(1 / alpha) + np.log(grown)) / (freedom + 1))
    slope = 1 - factor / grown
    reached = slope > 0
    square = freedom * (factor - 1) / np.where(reached, slope, 1.0)
    return np.where(reached, np.sqrt(square), np.inf)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A difference of means, second minus first, at every look.

    Attributes:
        counts: Outcomes of both arms so far, shape (looks,).
        difference: Difference of the means.
        low: Low end of the confidence sequence; -inf before it has one.
        high: High end; inf before it has one.
        sd: Pooled standard deviation within the arms.
    """

    counts: Array
    difference: Array
    low: Array
    high: Array
    sd: Array

    @property
    def decided_at(self) -> int | None:
        """First look at which 0 was not in the interval; ``None`` if it always was."""
        out = np.flatnonzero((self.low > 0) | (self.high < 0))
        return int(out[0]) if len(out) else None


def compare(
    values: Array, second: NDArray[np.bool_], *, alpha: float = ALPHA, least_sd: Array | None = None
) -> Sequence:
    """Follow the difference of two means, with a look after every value.

    Args:
        values: Rewards in the order in which they came, shape (N,).
        second: Whether each is the second arm's, shape (N,).
        alpha: Probability of ever excluding the true difference.
        least_sd: Lower limit of the standard deviation at each look.

    Example:
        >>> rewards, second = np.tile([0.0, 2.0, 0.2, 1.8], 6), np.arange(24) % 2 == 1
        >>> found = compare(rewards, second)
        >>> round(float(found.difference[-1]), 2), found.decided_at
        (1.8, 19)
    """
    counts = np.arange(1.0, len(values) + 1)
    # Centred, so that the squares of large rewards that differ little do not cancel.
    centred = values - values.mean() if len(values) else values
    rounding = 1e-12 * float(np.abs(values).max(initial=0.0))
    ones = second.astype(float)
    n_b = np.cumsum(ones)
    n_a = counts - n_b
    sum_b, sum_a = np.cumsum(centred * ones), np.cumsum(centred * (1 - ones))
    squares = np.cumsum(centred**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sum_b / n_b - sum_a / n_a
        within = squares - sum_b**2 / n_b - sum_a**2 / n_a
        pairs, freedom = n_a * n_b / counts, counts - 2
        sd = np.sqrt(np.maximum(within, 0.0) / freedom)
        sd = sd if least_sd is None else np.fmax(sd, least_sd)
        looked = (np.minimum(n_a, n_b) >= FIRST_LOOK) & (sd > rounding)
        half = largest_t(np.where(looked, pairs, 1.0), np.where(looked, freedom, 1.0), alpha)
        half = np.where(looked, half * sd / np.sqrt(pairs), np.inf)
    low = np.where(looked, difference - half, -np.inf)
    high = np.where(looked, difference + half, np.inf)
    return Sequence(counts=counts, difference=difference, low=low, high=high, sd=sd)


def compare_shares(
    hits: NDArray[np.bool_], second: NDArray[np.bool_], *, alpha: float = ALPHA
) -> Sequence:
    """Follow the difference of two shares; while all or none hit, the spread is not taken for 0.

    One hit and one miss are imagined: the standard deviation is at least that of a share of
    ``(hits + 1) / (n + 2)``.

    Example:
        >>> nothing = compare_shares(np.zeros(20, bool), np.arange(20) % 2 == 1)
        >>> float(nothing.difference[-1]), float(nothing.low[-1]) < -0.2
        (0.0, True)
    """
    share = (np.cumsum(hits) + 1) / (np.arange(len(hits)) + 3)
    return compare(hits.astype(float), second, alpha=alpha, least_sd=np.sqrt(share * (1 - share)))


def still_needed(effect: float, count: int, share: float, *, alpha: float = ALPHA) -> int | None:
    """Outcomes of both arms that are still missing for a decision, if the difference stays.

    Args:
        effect: Difference in standard deviations.
        count: Outcomes so far.
        share: Share of the second arm in them, in (0, 1).
        alpha: As for the test.

    Returns:
        Their number, >= 1; ``None`` if it is more than a million.

    Example:
        >>> still_needed(0.3, 100, 0.5), still_needed(0.0, 100, 0.5)
        (314, None)
    """

    def decides(total: int) -> bool:
        pairs = np.array([total * share * (1 - share)])
        t = abs(effect) * np.sqrt(pairs)
        return bool(log_evidence(t, pairs, np.array([total - 2.0]))[0] >= log(1 / alpha))

    low, high = max(count, 3), max(count, 3) + 1
    while not decides(high):
        if high > FOREVER:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high - count


def chi_square(counts: list[int], weights: list[float]) -> tuple[float, float]:
    """Pearson's chi-square of counts against weights, and its p-value.

    Example:
        60 and 40 where 50 and 50 were promised: ``100 / 50 + 100 / 50``.

        >>> value, p = chi_square([60, 40], [1.0, 1.0])
        >>> value, round(p, 4)
        (4.0, 0.0455)
    """
    total, scale = sum(counts), sum(weights)
    wanted = [total * weight / scale for weight in weights]
    value = sum((n - w) ** 2 / w for n, w in zip(counts, wanted, strict=True)) if total else 0.0
    return value, chi_square_tail(value, len(counts) - 1)


def chi_square_tail(value: float, freedom: int) -> float:
    """Probability that a chi-square with ``freedom`` degrees exceeds ``value``.

    ``Q(a, x)``, ``a = freedom / 2``, ``x = value / 2``, from ``Q(1/2, x) = erfc(sqrt(x))`` or
    ``Q(1, x) = exp(-x)`` by ``Q(a + 1, x) = Q(a, x) + x**a * exp(-x) / gamma(a + 1)``.

    Example:
        >>> [round(chi_square_tail(value, freedom), 4)
        ...  for value, freedom in ((3.8415, 1), (5.9915, 2), (7.8147, 3), (9.4877, 4))]
        [0.05, 0.05, 0.05, 0.05]
    """
    x = value / 2
    a, tail = (0.5, erfc(sqrt(x))) if freedom % 2 else (1.0, exp(-x))
    while a < freedom / 2:
        tail += x**a * exp(-x) / gamma(a + 1)
        a += 1
    return tail
