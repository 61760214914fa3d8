"""The test that may be looked at every day, against thousands of experiments with a known truth."""

from math import sqrt
from typing import Any

import numpy as np
import pytest

from esper.studies.logged.sequential import (
    FIRST_LOOK,
    Array,
    chi_square,
    chi_square_tail,
    compare,
    compare_shares,
    largest_t,
    log_evidence,
    still_needed,
)

RUNS, LOOKS = 1000, 200


def experiments(
    difference: float, *, looks: int = LOOKS, share: float = 0.5, skewed: bool = False
) -> list[tuple[Array, Any]]:
    rng = np.random.default_rng(20_260_101)
    found = []
    for _ in range(RUNS):
        second = rng.random(looks) < share
        noise = rng.exponential(size=looks) if skewed else rng.normal(size=looks)
        found.append((noise + difference * second, second))
    return found


def rejected(difference: float, **how: Any) -> float:
    """Share of the experiments in which some look of 200 excluded no difference."""
    return float(
        np.mean(
            [compare(values, arm).decided_at is not None for values, arm in
             experiments(difference, **how)]
        )
    )  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"share": 0.1}, {"skewed": True}, {"looks": 1000}])
def test_looking_all_the_time_inflates_no_error(how: dict[str, Any]) -> None:
    assert rejected(0.0, **how) <= 0.06


def test_a_t_test_looked_at_all_the_time_errs_often() -> None:
    wrong = 0
    for values, second in experiments(0.0):
        path = compare(values, second)
        n_b = np.cumsum(second)
        n_a = path.counts - n_b
        looked = np.minimum(n_a, n_b) >= FIRST_LOOK
        pairs = (n_a * n_b / path.counts)[looked]
        t = np.abs(path.difference[looked]) / path.sd[looked] * np.sqrt(pairs)
        # Upper 2.5 % point of Student's t by Cornish and Fisher's expansion of the normal's.
        z, freedom = 1.959964, path.counts[looked] - 2
        wrong += bool((t > z + (z**3 + z) / (4 * freedom)).any())
    assert wrong / RUNS > 0.25


def test_differences_are_found_the_sooner_the_larger() -> None:
    power = [rejected(difference) for difference in (0.0, 0.3, 0.5, 0.8)]
    assert power == sorted(power)
    assert power[1] > 0.15
    assert power[3] > 0.97
    assert rejected(0.3, looks=800) > 0.9


def test_the_sequence_holds_the_truth_at_all_looks_at_once() -> None:
    missed = 0
    for values, second in experiments(0.3, looks=400):
        path = compare(values, second)
        missed += bool(((path.low > 0.3) | (path.high < 0.3)).any())
    assert missed / RUNS <= 0.06


def test_evidence_is_the_ratio_of_two_averaged_likelihoods() -> None:
    """By quadrature: noncentral t over the mixture against central t, from the joint density."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=14) + 3.0
    second = np.arange(14) % 2 == 1
    values[second] += 0.8
    path = compare(values, second)
    pairs, freedom = np.array([14 / 4]), np.array([12.0])
    t = path.difference[-1:] / path.sd[-1:] * np.sqrt(pairs)

    # The invariant likelihood of an effect d, the level and the spread integrated out (right Haar):
    # integral over log sigma of sigma**-13 exp(-(S + m (D - d sigma)**2) / (2 sigma**2)).
    sigma = np.exp(np.linspace(-4, 4, 4001))
    within = path.sd[-1] ** 2 * 12
    effects = np.linspace(-3, 3, 2001)
    prior = np.exp(-0.5 * (effects / 0.3) ** 2)

    def likelihood(effect: float) -> float:
        rest = 3.5 * (path.difference[-1] - effect * sigma) ** 2
        return float((sigma**-13.0 * np.exp(-(within + rest) / (2 * sigma**2))).sum())

    averaged = sum(likelihood(d) * p for d, p in zip(effects, prior, strict=True)) / prior.sum()
    assert np.exp(log_evidence(t, pairs, freedom))[0] == pytest.approx(
        averaged / likelihood(0.0), rel=1e-3
    )


def test_neither_level_nor_unit_of_rewards_matters() -> None:
    values, second = experiments(0.5)[0]
    plain = compare(values, second)
    for factor, shift in ((1e-9, 0.0), (1e6, 0.0), (1.0, 1e6), (1e-3, -5.0)):
        other = compare(factor * values + shift, second)
        assert other.decided_at == plain.decided_at
        looked = np.isfinite(plain.low)
        assert looked.sum() > 150
        assert other.low[looked] / factor == pytest.approx(plain.low[looked], rel=1e-4, abs=1e-6)


def test_swapping_the_arms_turns_the_sequence_over() -> None:
    values, second = experiments(0.5)[1]
    one, two = compare(values, second), compare(values, ~second)
    assert two.low[30:] == pytest.approx(-one.high[30:])
    assert two.decided_at == one.decided_at


def test_a_few_outcomes_decide_nothing_however_different() -> None:
    second = np.arange(12) % 2 == 1
    path = compare(np.where(second, 1e6, 0.0) + np.linspace(0, 1, 12), second)
    assert path.decided_at is None
    assert not np.isfinite(path.low[: 2 * FIRST_LOOK - 1]).any()


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 50])
def test_nothing_to_go_by_gives_no_bound(values: list[float]) -> None:
    path = compare(np.array(values), np.arange(len(values)) % 2 == 1)
    assert path.decided_at is None
    assert len(path.counts) == len(values)
    assert not np.isfinite(path.low).any()


def test_shares_that_are_all_zero_are_not_known_exactly() -> None:
    path = compare_shares(np.zeros(60, dtype=bool), np.arange(60) % 2 == 1)
    assert path.difference[-1] == 0
    assert path.low[30] < path.low[59] < -0.03


def test_shares_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    second = rng.random(400) < 0.5
    hits = rng.random(400) < np.where(second, 0.4, 0.1)
    path = compare_shares(hits, second)
    assert path.decided_at is not None
    assert path.low[-1] < 0.3 < path.high[-1]


def test_what_is_still_needed_is_what_then_decides() -> None:
    more = still_needed(0.4, 60, 0.25)
    assert more is not None
    total = 60 + more
    for count, decided in ((total, True), (total - 1, False)):
        pairs, freedom = np.array([count * 0.25 * 0.75]), np.array([count - 2.0])
        t = 0.4 * sqrt(float(pairs[0]))
        assert (t >= float(largest_t(pairs, freedom)[0])) is decided


@pytest.mark.parametrize(
    ("value", "freedom", "tail"),
    [  # from tables
        (3.841459, 1, 0.05),
        (6.634897, 1, 0.01),
        (10.827566, 1, 0.001),
        (5.991465, 2, 0.05),
        (7.814728, 3, 0.05),
        (18.307038, 10, 0.05),
        (21.665994, 9, 0.01),
        (0.0, 4, 1.0),
    ],
)
def test_chi_square_is_that_of_the_tables(value: float, freedom: int, tail: float) -> None:
    assert chi_square_tail(value, freedom) == pytest.approx(tail, rel=1e-5)


def test_an_honest_split_is_seldom_called_uneven() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(300, [0.2, 0.3, 0.5], size=2000)
    p_values = np.array([chi_square(list(map(int, row)), [2.0, 3.0, 5.0])[1] for row in counts])
    assert 0.035 < float((p_values < 0.05).mean()) < 0.065
    assert chi_square([900, 1100], [1.0, 1.0])[1] < 1e-4
