"""Predictions of a regression for each viable seed, as linear strategies read them.

Shapes: K seeds, J of them with choices whose outcome has not come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from esper.strategies.contextual.features import Features
from esper.strategies.contextual.ridge import Array
from esper.strategies.scoring import count_in_words

Support = tuple[int, str, int]
"""Outcomes of a seed or its blueprint; that blueprint, empty for the seed itself; outcomes of all
seeds, where the prediction draws on all, else -1."""


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted rewards of the viable seeds.

    Attributes:
        seeds: The seeds, in ascending order.
        means: Standardised rewards.
        variances: Variances of these means, choices without an outcome counted as trials.
        covariance: The same with covariances; ``None`` if the seeds are independent.
        features: Features of each seed.
        support: Outcomes that each prediction is based on.
        total: Outcomes that all of them are based on.
    """

    seeds: list[int]
    means: list[float]
    variances: list[float]
    covariance: Array | None
    features: dict[int, Features]
    support: list[Support]
    total: int


def support_in_words(outcomes: int, blueprint: str, total: int) -> str:
    """`Support` in words.

    Example:
        >>> support_in_words(3, "glu", -1), support_in_words(1, "", -1)
        ("3 outcomes of 'glu'", '1 outcome')
        >>> support_in_words(3, "", 20)
        '3 outcomes here, 20 outcomes in all'
    """
    if total >= 0:
        return f"{count_in_words(outcomes)} here, {count_in_words(total)} in all"
    return count_in_words(outcomes) + (f" of {blueprint!r}" if blueprint else "")


def after_trials(covariance_KK: Array, trials: Sequence[int]) -> Array:
    """Covariance after so many more trials of each seed, whatever their outcomes.

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
