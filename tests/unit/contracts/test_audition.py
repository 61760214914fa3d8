"""Worths: who auditions, by the expected gain of knowing better."""

from dataclasses import replace
from math import erf, exp, pi, sqrt

import numpy as np
import pytest

from esper.contracts.audition import NO_WORTHS, PRICE, Contrast, Worths

ARMS = (("fc1", 0), ("fc1", 1), ("fc2", 0))


def _worths(means: tuple[float, ...], sds: tuple[float, ...], shared: float = 0.0) -> Worths:
    matrix = np.diag(np.square(sds)) + shared
    return Worths(ARMS, means, tuple(tuple(row) for row in matrix.tolist()))


def test_the_expected_gain_is_that_of_the_better_of_two() -> None:
    """``E max(a, b) - E a`` of two normals, by the formula of Clark (1961)."""
    worths = _worths((1.0, 0.7, -9.0), (0.5, 0.4, 0.1))
    spread = sqrt(0.5**2 + 0.4**2)
    z = 0.3 / spread
    below = 0.5 * (1 + erf(z / sqrt(2)))
    expected = 1.0 * below + 0.7 * (1 - below) + spread * exp(-z * z / 2) / sqrt(2 * pi) - 1.0
    assert worths.cohort(price=expected - 1e-9) == [("fc1", 0), ("fc1", 1)]
    assert worths.cohort(price=expected + 1e-9) == []


def test_an_audition_is_worth_what_its_noise_leaves() -> None:
    """The mean of the better of two, after one noisy look at each, by drawing both."""
    sds, noise = (0.8, 0.6), 0.5
    worths = replace(_worths((1.0, 0.9, -9.0), (*sds, 0.1)), noise=noise)
    rng = np.random.default_rng(0)
    truths = rng.normal((1.0, 0.9), sds, (400_000, 2))
    looks = truths + rng.normal(0.0, sqrt(noise), truths.shape)
    shares = np.square(sds) / (np.square(sds) + noise)
    posterior = (1.0, 0.9) + shares * (looks - (1.0, 0.9))
    # One number stands for both looks: that of their difference, whose noise is the sum.
    variance = float(np.square(sds).sum())
    spread = variance / sqrt(variance + 2 * noise)
    z = 0.1 / spread
    expected = spread * exp(-z * z / 2) / sqrt(2 * pi) - 0.1 * (1 - erf(z / sqrt(2))) / 2
    assert posterior.max(axis=1).mean() - 1.0 == pytest.approx(expected, abs=0.01)
    assert worths.cohort(price=expected - 1e-9) == [("fc1", 0), ("fc1", 1)]
    assert worths.cohort(price=expected + 1e-9) == []


def test_what_arms_share_does_not_matter() -> None:
    alone, together = (
        _worths((1.0, 0.7, 0.2), (0.2,) * 3),
        _worths((1.0, 0.7, 0.2), (0.2,) * 3, 9.0),
    )
    assert alone.cohort(0.01) == together.cohort(0.01)
    assert together.cohort(0.5) == []


def test_what_has_grown_there_makes_a_layer_worth_less() -> None:
    worths = _worths((1.0, 0.4, 0.8), (0.3, 0.3, 0.3))
    assert worths.arms[worths.best] == ("fc1", 0)
    faded = worths.scaled({"fc1": 0.5})
    assert faded.arms[faded.best] == ("fc2", 0)
    assert [faded.sd(at) for at in range(3)] == pytest.approx([0.15, 0.15, 0.3])


def test_nothing_known_is_worth_an_audition_and_nobody_is_nobody() -> None:
    assert _worths((1.0, 1.0, 1.0), (0.8, 0.8, 0.8)).cohort() == list(ARMS)
    assert _worths((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)).cohort() == []
    assert NO_WORTHS.cohort(PRICE) == []


def test_a_contrast_is_relative_to_its_cohort() -> None:
    one = Contrast(point="a/fc1/0", gain=0.03, stderr=0.01, mean=0.02, noise=0.01, cohort=4)
    assert one.relative == pytest.approx(0.01)


def test_a_starved_seed_auditions_beside_the_best() -> None:
    worths = _worths((1.0, 0.1, 0.2), (0.01, 0.01, 0.01))
    assert worths.cohort() == []
    starved = replace(worths, starved=(("fc2", 0),)).scaled({"fc1": 0.9})
    assert starved.cohort() == [("fc1", 0), ("fc2", 0)]
    assert replace(worths, starved=(("fc1", 0),)).cohort() == []
