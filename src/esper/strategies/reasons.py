"""Sentences of reasons that several strategies share: the deciding number and its uncertainty."""

from collections.abc import Mapping
from math import inf, sqrt

from esper.strategies.posteriors import Parameters, Posterior
from esper.strategies.scoring import TIE, count_in_words


def bound_reason(
    chosen: int, means: Mapping[int, float], scores: Mapping[int, float], evidence: str | int
) -> str:
    """Sentence on an upper bound: the best mean's, the widest interval's, or neither's.

    Args:
        chosen: The seed.
        means: Standardised mean of every viable seed.
        scores: Upper bound of every viable seed.
        evidence: Outcomes of the seed: a number, or words as ``"after 3 outcomes"``.

    Example:
        >>> means = {0: 1.0, 1: 0.5, 2: 0.4}
        >>> bound_reason(0, means, {0: 2.5, 1: 2.0, 2: 1.4}, 9)
        'best mean by 0.5 sd, give or take 1.5, after 9 outcomes'
        >>> bound_reason(1, means, {0: 2.0, 1: 2.1, 2: 1.4}, "after 4 outcomes")
        'widest interval, give or take 1.6 sd, its mean 0.5 sd behind the best, after 4 outcomes'
        >>> bound_reason(2, means, {2: 1.4}, "after 16 outcomes")
        'the only viable seed, after 16 outcomes'
    """
    evidence = _in_words(evidence)
    if len(scores) == 1:
        return f"the only viable seed, {evidence}"
    if scores[chosen] == inf:
        return f"nothing rules it out, {evidence}"
    halves = {seed: score - means[seed] for seed, score in scores.items()}
    ahead = means[chosen] - max(means[seed] for seed in scores if seed != chosen)
    half = halves[chosen]
    if ahead > -TIE:
        return f"best mean by {max(ahead, 0.0):.1f} sd, give or take {half:.1f}, {evidence}"
    behind = f"its mean {-ahead:.1f} sd behind the best, {evidence}"
    if half > max(halves.values()) - TIE:
        return f"widest interval, give or take {half:.1f} sd, {behind}"
    return f"highest upper bound, give or take {half:.1f} sd, {behind}"


def draw_reason(
    posterior: Posterior, parameters: Parameters, score: float, viable: int, evidence: str | int
) -> str:
    """Sentence on the highest draw: its value, mean and standard deviation.

    Args:
        posterior: Its kind.
        parameters: Of the chosen seed.
        score: The draw.
        viable: Number of viable seeds.
        evidence: Outcomes of the seed: a number, or words as ``"after 3 outcomes"``.

    Example:
        >>> draw_reason("gaussian", (0.3, 0.5), 0.8, 4, "after 3 outcomes")
        'highest draw, 0.80 sd, of 4: +0.30 expected, give or take 0.50, after 3 outcomes'
        >>> draw_reason("beta", (3.0, 1.0), 0.8, 4, "after 3 outcomes")
        'highest draw, 0.80, of 4: 0.75 expected, give or take 0.19, after 3 outcomes'
    """
    evidence = _in_words(evidence)
    if posterior == "beta":
        alpha, beta = parameters
        mean = alpha / (alpha + beta)
        spread = sqrt(mean * (1 - mean) / (alpha + beta + 1))
        expected = f"{mean:.2f} expected, give or take {spread:.2f}"
        return f"highest draw, {score:.2f}, of {viable}: {expected}, {evidence}"
    mean, spread, *freedom = parameters
    if freedom and freedom[0] > 2:  # Student's t
        spread *= sqrt(freedom[0] / (freedom[0] - 2))
    expected = f"{mean:+.2f} expected, give or take {spread:.2f}"
    return f"highest draw, {score:.2f} sd, of {viable}: {expected}, {evidence}"


def _in_words(evidence: str | int) -> str:
    if isinstance(evidence, str):
        return evidence
    return f"after {count_in_words(evidence)}" if evidence else count_in_words(0)
