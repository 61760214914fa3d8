"""Off-policy estimates of a mean reward, from choices whose propensities were logged.

Each estimator averages one number for each decision ``i``, with reward ``r``, weight
``w = target propensity / logged propensity`` of the chosen seed, and a model ``q`` of rewards:

| name | number |
|---|---|
| ``ips`` | ``w * r`` |
| ``snips`` | ``w * r / mean(w)`` |
| ``dr`` | ``sum over seeds of target propensity * q + w * (r - q of the chosen seed)`` |

``ips`` and ``dr`` are unbiased where every seed that the target may choose had a logged propensity
above 0, ``dr`` whatever ``q`` is, provided ``q`` was made of earlier outcomes only. ``snips`` is
biased by a term of order ``1 / n`` and does not change if all rewards are shifted.

Sources: Horvitz & Thompson (1952), JASA 47; Swaminathan & Joachims (2015), The Self-Normalized
Estimator for Counterfactual Learning, NIPS 28; Dudik, Langford & Li (2011), Doubly Robust Policy
Evaluation and Learning, ICML 28.
"""

from dataclasses import dataclass
from math import sqrt
from typing import final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LABELS = {
    "logged": "logged",
    "ips": "importance-weighted",
    "snips": "self-normalised",
    "dr": "doubly robust",
}

Z = 1.959963984540054
"""Half width of a 95 % normal interval, in standard errors."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Mean reward per decision and its 95 % interval, in the reward's own units.

    The interval is normal: 1.96 standard errors of the mean of the decisions' numbers on both
    sides, for ``snips`` by the delta method. Decisions that depend on earlier outcomes, as a
    bandit's do, leave it valid: the deviations are martingale differences.

    Attributes:
        name: ``"logged"``, ``"ips"``, ``"snips"`` or ``"dr"``.
        value: The estimate.
        stderr: Its standard error.
        gain: ``value`` minus the mean of the logged rewards.
        gain_stderr: Standard error of ``gain``, the decisions paired.
    """

    name: str
    value: float
    stderr: float
    gain: float = 0.0
    gain_stderr: float = 0.0

    @property
    def label(self) -> str:
        """Name in tables and pictures."""
        return _LABELS[self.name]

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end of ``value``."""
        return self.value - Z * self.stderr, self.value + Z * self.stderr

    @property
    def gain_interval(self) -> tuple[float, float]:
        """Low and high end of ``gain``."""
        return self.gain - Z * self.gain_stderr, self.gain + Z * self.gain_stderr


def effective_sample_size(weights: Array) -> float:
    """Effective sample size ``(sum w)**2 / sum w**2`` of weighted decisions.

    Source:
        Kish (1965), Survey Sampling, section 11.2.

    Example:
        >>> round(effective_sample_size(np.array([1.0, 1.0, 2.0])), 3)
        2.667
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def estimates(rewards: Array, weights: Array, expected: Array, predicted: Array) -> list[Estimate]:
    """Logged mean, and three estimates of the target policy's mean.

    Args:
        rewards: Reward of each decision, shape (N,), N >= 2.
        weights: Target propensity over logged propensity of the chosen seed, shape (N,).
        expected: Reward that the model expects of the target at each decision, shape (N,).
        predicted: Reward that the model expects of the chosen seed, shape (N,).

    Example:
        Two decisions, weights 2 and 0, rewards 1 and 5, a model that expects 1 throughout:
        ips ``(2 + 0) / 2``, snips ``2 / 2``, dr ``(1 + 0 + 1 + 0) / 2``.

        >>> found = estimates(np.array([1.0, 5.0]), np.array([2.0, 0.0]), np.ones(2), np.ones(2))
        >>> [(one.name, one.value) for one in found]
        [('logged', 3.0), ('ips', 1.0), ('snips', 1.0), ('dr', 1.0)]
    """
    weighted = weights * rewards
    robust = expected + weights * (rewards - predicted)
    total = float(weights.sum())
    ratio = float(weighted.sum()) / total if total else 0.0
    scale = len(weights) / total if total else 0.0
    normalised = ratio + scale * weights * (rewards - ratio)
    logged = _mean_of("logged", rewards, rewards)
    found = [("ips", weighted), ("snips", normalised), ("dr", robust)]
    return [logged, *(_mean_of(name, numbers, rewards) for name, numbers in found)]


def _mean_of(name: str, numbers: Array, rewards: Array) -> Estimate:
    gains = numbers - rewards
    root = sqrt(len(numbers))
    return Estimate(
        name=name,
        value=float(numbers.mean()),
        stderr=float(numbers.std(ddof=1)) / root,
        gain=float(gains.mean()),
        gain_stderr=float(gains.std(ddof=1)) / root,
    )
