"""Runs of outcomes that are evidence of a change, and falls that all rewards share."""

from math import inf, log, sqrt
from typing import Final, NamedTuple, final

Run = tuple[float, float, int]
"""Run of a seed's outcomes that is evidence of a change in one direction: the evidence, >= 0; its
mean reward, relative to the seed's mean; its length, up to 255."""

NONE: Final[Run] = (0.0, 0.0, 0)

_LONGEST, _SINGLE = 2**8 - 1, 3e38

_EVIDENCE: Final = 3.0
"""Evidence in nats for a smaller spread with which a fall is one that all rewards share."""

_ALIKE: Final = 0.5
"""Largest logarithm of the ratio of the factors by which mean and spread fell then."""

_PRIOR: Final = 2.0
"""Degrees of freedom of the spread before the run in that of the run."""


@final
class Fall(NamedTuple):
    """Fall that all rewards share.

    Attributes:
        before: Mean of the seed before its run.
        after: Mean of the run.
        factor: What the spread of rewards was multiplied by, in (0, 1).
        variance: Variance of a reward about its seed's mean, from now on.
    """

    before: float
    after: float
    factor: float
    variance: float


def followed(run: Run, push: float, off: float) -> Run:
    """Run after an outcome ``off`` the mean, which adds ``push`` to the evidence.

    Source:
        Page (1954), Continuous Inspection Schemes, Biometrika 41 (CUSUM).
    """
    evidence, mean, length = run
    evidence += push
    if evidence <= 0:
        return NONE
    length = min(length + 1, _LONGEST)
    return evidence, single(mean + (off - mean) / length), length


def shared_fall(
    run: Run, squares: float, *, mean: float, known: float, m2: float, surprises: int
) -> Fall | None:
    """The fall of a run, if the spread of rewards fell by about the factor of the mean.

    The log-likelihood ratio of a variance ``v`` times the one before is ``f / 2 (v - 1 - ln v)``
    with ``f`` degrees of freedom.

    Args:
        run: A seed's falling run.
        squares: Sum of squares of the run about its mean.
        mean: Mean of the seed, of whose outcomes all of the run but the last are part.
        known: Outcomes that it is the mean of.
        m2: Sum of squared surprises in the layer, those of the run included.
        surprises: Their number.

    Example:
        Hundred outcomes of mean 2 and standard deviation 1, then a run of thirty of mean 1 and
        standard deviation 0.5: squares of 29 / 4 about its mean.

        >>> mean = (100 * 2 + 29 * 1) / 129
        >>> squares, m2 = 29 / 4, 100 + 29 / 4 + 30 * (1 - mean) ** 2
        >>> fall = shared_fall((15.1, 1 - mean, 30), squares, mean=mean, known=129, m2=m2,
        ...                    surprises=130)
        >>> fall.before, fall.after, round(fall.factor, 3)  # sqrt((29 / 4 + 2) / 31)
        (2.0, 1.0, 0.546)
    """
    _, off, length = run
    if surprises <= length:
        return None
    after = mean + off
    before = (mean * known - (length - 1) * after) / max(known - length + 1, 1.0)
    variance = max(m2 - squares - length * off * off, 1e-4 * m2) / (surprises - length)
    freedom = max(length - 1, 1)
    ratio = (squares / variance + _PRIOR) / (freedom + _PRIOR) if variance > 0 else 1.0
    factor = sqrt(ratio)
    evidence = freedom / 2 * (ratio - 1 - log(ratio))
    fallen = max(after / before, 1e-3) if before > 0 else inf
    if factor >= 1 or evidence <= _EVIDENCE or abs(log(fallen / factor)) >= _ALIKE:
        return None
    return Fall(before, after, factor, variance * ratio)


def single(number: float) -> float:
    """Number within the range of single precision."""
    return max(-_SINGLE, min(number, _SINGLE))
