"""What a regression expects of each viable seed, as strategies read it.

Shapes: K seeds, J of them with choices whose outcome has not come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from esper.strategies.contextual.features import Features
from esper.strategies.contextual.ridge import Array
from esper.strategies.scoring import tried


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of each viable seed.

    Attributes:
        seeds: The seeds, in ascending order.
        means: Standardised rewards.
        variances: Of these means, choices without an outcome counted as trials.
        covariance: The same with what lies between seeds; ``None`` if they are independent.
        features: What was seen of each seed.
        behind: What stands behind each seed, as `evidence` takes it.
        total: How many stand behind all of them.
    """

    seeds: list[int]
    means: list[float]
    variances: list[float]
    covariance: Array | None
    features: dict[int, Features]
    behind: list[tuple[int, str, int]]
    total: int

    @property
    def outcomes(self) -> dict[int, str]:
        """How many outcomes stand behind each seed, in words."""
        return {
            seed: evidence(*behind) for seed, behind in zip(self.seeds, self.behind, strict=True)
        }


def evidence(outcomes: int, of: str, in_all: int) -> str:
    """How many outcomes a prediction stands on, in words.

    Args:
        outcomes: Outcomes of the seed, or of its blueprint.
        of: That blueprint; empty if it was asked about the seed itself.
        in_all: Outcomes of all seeds, where they say something of this one; else -1.

    Example:
        >>> evidence(3, "glu", -1), evidence(1, "", -1), evidence(3, "", 20)
        ("3 outcomes of 'glu'", '1 outcome', '3 outcomes here, 20 outcomes in all')
    """
    if in_all >= 0:
        return f"{tried(outcomes)} here, {tried(in_all)} in all"
    return f"{tried(outcomes)} of {of!r}" if of else tried(outcomes)


def after_trials(covariance_KK: Array, trials: Sequence[int]) -> Array:
    """The covariance once each seed is tried so often again, whatever comes of it.

    Example:
        Variance 1, tried three times more with noise of variance 1: a quarter.

        >>> after_trials(np.array([[1.0]]), [3])
        array([[0.25]])
    """
    waiting = [index for index, count in enumerate(trials) if count]
    if not waiting:
        return covariance_KK
    noise_JJ = np.diag([1.0 / trials[index] for index in waiting])
    seen_KJ = covariance_KK[:, waiting]
    return covariance_KK - seen_KJ @ np.linalg.solve(seen_KJ[waiting] + noise_JJ, seen_KJ.T)
