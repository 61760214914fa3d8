"""How much is known against a seed, and how much was already spent on knowing it.

The index of a seed, in nats; the smallest is the next to be tried:

    I = gap^2 / (2 s^2) * n^2 / (n + 1/2) + c * phi(n)

``gap`` is how far its mean is behind the best one, ``s`` the standard deviation of a reward about
its seed's mean, ``n`` the trials. The first term is the evidence against the seed: the logarithm of
how unlikely its rewards would be if it were as good as the best, with a grain of salt while ``n``
is small. The second is ``ln n``, and rises more slowly beyond a horizon: what is not found out by
then does not pay any more.

Honda & Takemura (2015), Non-Asymptotic Analysis of a New Bandit Algorithm for Semi-Bounded Rewards,
JMLR 16, algorithm 1 (IMED: ``n * K + ln n``); Lai (1987), Adaptive Treatment Allocation and the
Multi-Armed Bandit Problem, Annals of Statistics 15, section 2 (bounds that depend on the horizon).
"""

from collections.abc import Mapping
from math import inf, log

_SALT = 0.5
"""Outcomes that a Normal prior about the best mean is worth."""

_SLOW = 0.05
"""Slope of ``phi`` beyond the horizon, relative to that of ``ln``."""


def merits(
    standings: Mapping[int, tuple[float, float]], scale: float, exploration: float, horizon: float
) -> dict[int, float]:
    """The negative index of every seed: as with other strategies, the highest is chosen.

    Args:
        standings: Mean and trials of each seed; trials of 0 give infinity.
        scale: Standard deviation of a reward about its seed's mean; inf if rewards do not differ.
        exploration: ``c``, > 0.
        horizon: Trials beyond which ``phi`` is nearly flat, >= 1.

    Example:
        Means 0.3 and 0.1, 12 and 3 outcomes, a standard deviation of 0.2: indices ``0.85 ln 12``
        and ``1 / 2 * 9 / 3.5 + 0.85 ln 3``. The second seed is not ruled out.

        >>> found = merits({0: (0.3, 12.0), 1: (0.1, 3.0)}, 0.2, 0.85, 250.0)
        >>> {seed: round(merit, 3) for seed, merit in found.items()}
        {0: -2.112, 1: -2.22}
        >>> found = merits({0: (0.3, 14.0), 1: (0.1, 3.0)}, 0.2, 0.85, 250.0)
        >>> {seed: round(merit, 3) for seed, merit in found.items()}
        {0: -2.243, 1: -2.22}

        Ten times as many trials add 2.303 to the second term, beyond the horizon a twentieth.

        >>> found = merits({n: (0.0, float(n)) for n in (10, 100, 250, 2500)}, 0.2, 1.0, 250.0)
        >>> round(found[10] - found[100], 3), round(found[250] - found[2500], 3)
        (2.303, 0.115)
    """
    top = -inf
    for mean, trials in standings.values():
        if trials and mean > top:
            top = mean
    steep, beyond = exploration * _SLOW, exploration * (1 - _SLOW) * log(horizon)
    found = {}
    for seed, (mean, trials) in standings.items():
        if not trials:
            found[seed] = inf
            continue
        gap = (top - mean) / scale
        spent = exploration * log(trials) if trials <= horizon else beyond + steep * log(trials)
        found[seed] = -0.5 * gap * gap * trials * trials / (trials + _SALT) - spent
    return found


def shared(scores: Mapping[int, float], share: float) -> dict[int, float]:
    """The probability of every seed where the best are drawn from, each with ``share``.

    Example:
        >>> shared({0: 1.0, 1: 2.0, 2: 2.0}, 0.5)
        {0: 0.0, 1: 0.5, 2: 0.5}
    """
    tied = sorted(scores, key=lambda seed: -scores[seed])[: round(1 / share)]
    return {seed: share if seed in tied else 0.0 for seed in scores}
