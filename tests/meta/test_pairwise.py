"""The cases that are drawn pairwise lose no pair."""

from itertools import combinations, product

import pytest

from tests.pairwise import every_pair


@pytest.mark.parametrize("sizes", [(2, 2), (3, 4), (24, 5, 2), (2, 5, 24), (5, 2, 2, 2), (4, 4, 4)])
def test_every_two_values_of_different_factors_meet(sizes: tuple[int, ...]) -> None:
    cases = every_pair(*map(range, sizes))
    for i, j in combinations(range(len(sizes)), 2):
        met = {(case[i], case[j]) for case in cases}
        assert met == set(product(range(sizes[i]), range(sizes[j])))


def test_few_cases_are_enough() -> None:
    assert len(every_pair(range(24), range(5), range(2))) == 24 * 5  # no fewer would do
    assert len(every_pair(range(5), range(2), range(2), range(2))) <= 12  # of 40
    assert every_pair("a", "b", "c") == [("a", "b", "c")]


def test_the_same_cases_each_time_and_none_twice() -> None:
    cases = every_pair(range(5), range(4), range(3))
    assert cases == every_pair(range(5), range(4), range(3))
    assert len(set(cases)) == len(cases)
