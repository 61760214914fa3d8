"""How much is known against a seed, and how much was already spent on knowing it.

The index of a seed, in nats; the smallest is the next to be tried:

    I = gap^2 / (2 s^2 (1/n + 1/n*)) + c * phi(n)

``gap`` is how far its mean is behind the best one, ``s`` the standard deviation of a reward about
its seed's mean, ``n`` its trials, ``n*`` those of the best. The first term is the evidence against
the seed: the logarithm of how unlikely the gap would be if both were alike. The second is ``ln n``,
and rises more slowly beyond a horizon: what is not found out by then does not pay any more.

Honda & Takemura (2015), Non-Asymptotic Analysis of a New Bandit Algorithm for Semi-Bounded Rewards,
JMLR 16, algorithm 1 (IMED: ``n * K + ln n``); Lai (1987), Adaptive Treatment Allocation and the
Multi-Armed Bandit Problem, Annals of Statistics 15, section 2 (bounds that depend on the horizon).
"""

from collections.abc import Mapping, Sequence
from math import inf, log

_SLOW = 0.05
"""Slope of ``phi`` beyond the horizon, relative to that of ``ln``."""


def merits(
    means: Sequence[float],
    trials: Sequence[float],
    scale: float,
    exploration: float,
    horizon: float,
) -> list[float]:
    """The negative index of every seed: as with other strategies, the highest is chosen.

    Args:
        means: Mean reward of each seed; that of a seed without trials does not matter.
        trials: How many outcomes each mean is worth, >= 0; none give infinity.
        scale: Standard deviation of a reward about its seed's mean; inf if rewards do not differ.
        exploration: ``c``, > 0.
        horizon: Trials beyond which ``phi`` is nearly flat, >= 1.

    Example:
        Means 0.3 and 0.1, 12 and 3 outcomes, a standard deviation of 0.2: indices ``ln 12`` and
        ``1 / (2 (1/3 + 1/12)) + ln 3``. The second seed is not ruled out; four more outcomes of
        the first one would not rule it out either.

        >>> [round(merit, 3) for merit in merits([0.3, 0.1], [12.0, 3.0], 0.2, 1.0, 250.0)]
        [-2.485, -2.299]

        Ten times as many trials add 2.303 to the second term, beyond the horizon a twentieth.

        >>> found = merits([0.0] * 4, [10.0, 100.0, 250.0, 2500.0], 0.2, 1.0, 250.0)
        >>> round(found[0] - found[1], 3), round(found[2] - found[3], 3)
        (2.303, 0.115)
    """
    if 0.0 in trials:
        tried = [at for at, count in enumerate(trials) if count]
        values = [inf] * len(trials)
        if tried:
            within = [means[at] for at in tried], [trials[at] for at in tried]
            for at, value in zip(tried, merits(*within, scale, exploration, horizon), strict=True):
                values[at] = value
        return values
    top = max(means)
    spread = 1 / trials[means.index(top)]
    unit = 2**0.5 * scale
    spent = [log(count) for count in trials]
    if max(trials) > horizon:
        knee = log(horizon)
        spent = [value if value <= knee else knee + _SLOW * (value - knee) for value in spent]
    return [
        -((gap := (top - mean) / unit) * gap / (1 / count + spread) + exploration * known)
        for mean, count, known in zip(means, trials, spent, strict=True)
    ]


def shared(scores: Mapping[int, float], share: float) -> dict[int, float]:
    """The probability of every seed where the best are drawn from, each with ``share``.

    Example:
        >>> shared({0: 1.0, 1: 2.0, 2: 2.0}, 0.5)
        {0: 0.0, 1: 0.5, 2: 0.5}
    """
    tied = sorted(scores, key=lambda seed: -scores[seed])[: round(1 / share)]
    return {seed: share if seed in tied else 0.0 for seed in scores}
