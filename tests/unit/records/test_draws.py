"""Draws: even, apart from one another, and the same tomorrow."""

from statistics import fmean, pstdev

import pytest

from esper.records.draws import Draws

FIRST = [0.51432, 0.876836, 0.027273]
NORMAL = [0.18115, 1.432998]


def test_the_numbers_of_a_choice_never_change() -> None:
    draws = Draws(7, "fc1", 3)
    assert [round(draws.uniform(), 6) for _ in range(3)] == FIRST
    assert [Draws(7, "fc1", 3).index(10) for _ in range(2)] == [int(FIRST[0] * 10)] * 2


def test_neighbouring_choices_share_nothing() -> None:
    keys = [(7, "fc1", 3), (8, "fc1", 3), (7, "fc2", 3), (7, "fc1", 4), (73, "fc1", 3)]
    assert len({Draws(*key).uniform() for key in keys}) == len(keys)
    assert len({Draws(*key).beta(2, 3) for key in keys}) == len(keys)


def test_numbers_are_spread_as_they_should_be() -> None:
    draws = Draws(0, "fc1", 0)
    uniform = [draws.uniform() for _ in range(4000)]
    assert 0 <= min(uniform) < max(uniform) < 1
    assert fmean(uniform) == pytest.approx(0.5, abs=0.02)
    assert pstdev(uniform) == pytest.approx(12**-0.5, abs=0.01)
    counts = [0] * 5
    for number in range(4000):
        counts[Draws(0, "fc1", number).index(5)] += 1
    assert counts == pytest.approx([800] * 5, abs=110)
    assert fmean([draws.beta(2, 6) for _ in range(2000)]) == pytest.approx(0.25, abs=0.02)
    assert fmean([draws.normal(3, 2) for _ in range(2000)]) == pytest.approx(3, abs=0.2)


def test_normal_numbers_are_normal() -> None:
    found = [number for turn in range(500) for number in Draws(1, "fc1", turn).normals(11)]
    assert fmean(found) == pytest.approx(0, abs=0.05)
    assert pstdev(found) == pytest.approx(1, abs=0.04)
    assert fmean([number**4 for number in found]) == pytest.approx(3, abs=0.4)
    assert Draws(1, "fc1", 0).normals(3) == Draws(1, "fc1", 0).normals(11)[:3]
    assert [round(number, 6) for number in Draws(7, "fc1", 3).normals(2)] == NORMAL
