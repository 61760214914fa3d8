"""Scores of libraries from PyPI on a fixed history, recorded for a test of our formulas.

Run in the environment of ``make bench-peers``: ``python -m benchmarks.peer_scores``. The history is
in the file too. Scores are kept as a mean of rewards and a bonus that does not depend on rewards,
so that they can be compared in any unit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from bayesianbandits import NormalInverseGammaRegressor
from mabwiser.mab import MAB, LearningPolicy
from pymab.policies import DiscountedUCBPolicy, SlidingWindowUCBPolicy, UCBPolicy

from benchmarks.peer_libraries import LIBRARIES, installed

FILE = Path(__file__).parents[1] / "tests" / "unit" / "studies" / "peer_scores.json"
_ARMS, _OUTCOMES, _FEATURES = 4, 40, 3


def record() -> dict[str, Any]:
    """Everything that the file holds."""
    generator = np.random.default_rng(7)
    arms = [*range(_ARMS), *generator.integers(0, _ARMS, _OUTCOMES - _ARMS).tolist()]
    noise = generator.normal(0.01, 0.02, _OUTCOMES)
    rewards = [round(float(x) + 0.005 * arm, 4) for arm, x in zip(arms, noise, strict=True)]
    features = generator.normal(size=(_OUTCOMES, _FEATURES)).round(3).tolist()
    return {
        "versions": {name: installed(name) for name in LIBRARIES},
        "arms": arms,
        "rewards": rewards,
        "features": features,
        "mabwiser UCB1": _mabwiser(arms, rewards),
        "pymab UCB": _pymab(UCBPolicy(n_arms=_ARMS), arms, rewards),
        "pymab DiscountedUCB": _pymab(
            DiscountedUCBPolicy(n_arms=_ARMS, discount_factor=0.95), arms, rewards
        ),
        "pymab SlidingWindowUCB": _pymab(
            SlidingWindowUCBPolicy(n_arms=_ARMS, window_size=25), arms, rewards
        ),
        "bayesianbandits NormalInverseGamma": _nig(rewards),
        "mabwiser LinUCB": _linucb(arms, rewards, features),
    }


def _mabwiser(arms: list[int], rewards: list[float]) -> dict[str, list[float]]:
    def expectations(rewards: list[float]) -> list[float]:
        mab = MAB(list(range(_ARMS)), LearningPolicy.UCB1(alpha=1))
        mab.fit(arms, rewards)
        found = mab.predict_expectations()
        return [float(found[arm]) for arm in range(_ARMS)]

    return {"scores": expectations(rewards), "bonus": expectations([0.0] * len(rewards))}


def _pymab(policy: Any, arms: list[int], rewards: list[float]) -> dict[str, list[float]]:
    for arm, reward in zip(arms, rewards, strict=True):
        policy.update(action=arm, reward=reward)
    return {"means": policy.estimates.tolist(), "bonus": policy._confidence_bonus().tolist()}


def _nig(rewards: list[float]) -> dict[str, float]:
    learner = NormalInverseGammaRegressor(mu=0.0, lam=1.5, a=2.0, b=2.0)
    learner.partial_fit(np.ones((len(rewards), 1)), 50 * np.array(rewards))
    return {
        "location": float(np.ravel(learner.coef_)[0]),
        "kappa": float(np.ravel(learner.cov_inv_)[0]),
        "a": float(learner.a_),
        "b": float(learner.b_),
    }


def _linucb(arms: list[int], rewards: list[float], features: list[list[float]]) -> dict[str, Any]:
    at = [0.5, -1.0, 0.25]

    def expectations(rewards: list[float], alpha: float) -> np.ndarray:
        mab = MAB(list(range(_ARMS)), LearningPolicy.LinUCB(alpha=alpha, l2_lambda=1.0))
        mab.fit(arms, rewards, features)
        found = mab.predict_expectations([at])
        return np.array([float(found[arm]) for arm in range(_ARMS)])

    means = expectations(rewards, 0.0)
    return {
        "at": at,
        "means": means.tolist(),
        "means of ones": expectations([1.0] * len(rewards), 0.0).tolist(),
        "bonus": (expectations(rewards, 1.0) - means).tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
