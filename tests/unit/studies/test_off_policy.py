"""The estimators on simulated logs: hardly biased, and their intervals hold what they promise."""

import numpy as np
import pytest

from esper.studies.logged.off_policy import Array, effective_sample_size, estimates

MEANS = np.array([0.0, 0.010, 0.020, 0.005])
LOGGED = np.array([0.4, 0.3, 0.1, 0.2])
TARGET = np.array([0.1, 0.1, 0.7, 0.1])
TRUTH = float((TARGET * MEANS).sum())


def simulate(rng: np.random.Generator, model: Array, size: int = 300) -> list[tuple[float, ...]]:
    chosen = rng.choice(4, size=size, p=LOGGED)
    rewards = MEANS[chosen] + rng.normal(scale=0.02, size=size)
    weights = (TARGET / LOGGED)[chosen]
    expected = np.full(size, float((TARGET * model).sum()))
    found = estimates(rewards, weights, expected, model[chosen])
    return [(one.value, *one.interval, one.gain, *one.gain_interval) for one in found]


@pytest.mark.parametrize("model", [MEANS, np.zeros(4), np.array([0.05, 0.0, -0.05, 0.1])])
def test_bias_is_small_and_intervals_cover_whatever_the_model(model: Array) -> None:
    rng = np.random.default_rng(7)
    runs = np.array([simulate(rng, model) for _ in range(2000)])  # run, estimator, number
    gain = TRUTH - float((LOGGED * MEANS).sum())
    for estimator in range(1, 4):
        value, low, high, gained, worst, best = runs[:, estimator].T
        spread = value.std() / np.sqrt(len(value))
        assert abs(value.mean() - TRUTH) < 4 * spread + 1e-4
        assert abs(gained.mean() - gain) < 4 * spread + 1e-4
        assert 0.925 < float(((low <= TRUTH) & (high >= TRUTH)).mean()) < 0.97
        assert 0.925 < float(((worst <= gain) & (best >= gain)).mean()) < 0.97


def test_a_good_model_narrows_the_doubly_robust_interval() -> None:
    rng = np.random.default_rng(8)
    runs = np.array([simulate(rng, MEANS) for _ in range(400)])
    width = (runs[:, :, 2] - runs[:, :, 1]).mean(axis=0)
    assert width[3] < 0.95 * width[1]


def test_shifting_rewards_shifts_what_is_self_normalised_and_doubly_robust() -> None:
    rng = np.random.default_rng(9)
    rewards, weights = rng.normal(size=50), rng.exponential(size=50)
    none = np.zeros(50)
    _, _, plain, _ = estimates(rewards, weights, none, none)
    _, _, shifted, _ = estimates(rewards + 5, weights, none, none)
    assert shifted.value - plain.value == pytest.approx(5)
    assert shifted.stderr == pytest.approx(plain.stderr)


def test_equal_weights_count_in_full() -> None:
    assert effective_sample_size(np.full(40, 0.3)) == pytest.approx(40)
    assert effective_sample_size(np.zeros(40)) == 0
