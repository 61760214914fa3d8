"""Draws from what seeds are expected to earn: what may be the best is drawn now and then."""

import numpy as np

from esper.contracts.audition import DRAWN, Arm, Worths
from esper.records.draws import Draws


def draw_arms(worths: Worths, count: int, rng: Draws) -> list[Arm]:
    """Arms, each the best in a draw of all worths of its own; none twice.

    The best few of one draw would be alike, since worths are correlated: what makes one of them
    look good makes them all. Standard deviations are ``DRAWN`` times what they are.

    Args:
        worths: The arms, and what is known of them.
        count: Number of arms, at most.
        rng: The only randomness.

    Source:
        Thompson (1933), Biometrika 25; Kandasamy et al. (2018), Parallelised Bayesian Optimisation
        via Thompson Sampling, AISTATS, algorithm 2; Phan, Abbasi-Yadkori & Domke (2019), Thompson
        Sampling and Approximate Inference, NeurIPS (draws of another spread).
    """
    means, covariance = np.array(worths.means), np.array(worths.covariance)
    arms = len(means)
    if arms <= count:
        return list(worths.arms)
    variances, axes = np.linalg.eigh((covariance + covariance.T) / 2)
    scaled = axes * np.sqrt(np.maximum(variances, 0.0)) * DRAWN
    chosen: list[int] = []
    for _ in range(count):
        drawn = means + scaled @ [rng.normal(0.0, 1.0) for _ in range(arms)]
        drawn[chosen] = -np.inf
        chosen.append(int(drawn.argmax()))
    return [worths.arms[at] for at in chosen]
