"""The interval of a mean: Student's t from tables, and that it holds what it says."""

from random import Random  # noqa: TID251 (seeded)

import pytest

from esper.contracts.performance import SeedPerformanceMetrics
from esper.records.interval import mean_interval, t_quantile


@pytest.mark.parametrize(
    ("freedom", "exceeded"),  # any table of the t distribution, two-sided 0.05
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (19, 2.0930),
     (30, 2.0423), (60, 2.0003), (120, 1.9799), (400, 1.9659), (401, 1.9659), (10**9, 1.9600)],
)  # fmt: skip
def test_the_quantile_is_that_of_the_tables(freedom: int, exceeded: float) -> None:
    assert t_quantile(freedom) == pytest.approx(exceeded, abs=6e-5)


def test_the_quantile_falls_with_the_degrees_of_freedom() -> None:
    found = [t_quantile(freedom) for freedom in range(1, 450)]
    assert found == sorted(found, reverse=True)


def seed(rewards: list[float]) -> SeedPerformanceMetrics:
    return SeedPerformanceMetrics(0, "fc1", rewards=rewards)


def test_fewer_than_two_outcomes_have_no_interval() -> None:
    assert mean_interval(seed([])) is None
    assert mean_interval(seed([0.5])) is None
    assert mean_interval(seed([0.5, 0.5])) == (0.5, 0.5)


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    random, held, runs = Random(1), 0, 2000
    for _ in range(runs):
        ends = mean_interval(seed([random.gauss(0.3, 2.0) for _ in range(4)]))
        assert ends is not None
        held += ends[0] <= 0.3 <= ends[1]
    assert abs(held / runs - 0.95) < 3.5 * (0.95 * 0.05 / runs) ** 0.5


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_it_is_in_the_units_of_the_rewards(factor: float) -> None:
    ends = mean_interval(seed([1.0 * factor, 2.0 * factor, 3.0 * factor]))
    assert ends == pytest.approx((-0.4841377 * factor, 4.4841377 * factor))
