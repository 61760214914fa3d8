"""The sentence of a choice says which number decided, and it is true."""

from math import inf
from random import Random  # noqa: TID251 (seeded)

import pytest

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.strategies.reasons import bound_reason, draw_reason


def reasons(name: str, choices: int = 60) -> list[SelectionReason]:
    tracker, random = PerformanceTracker(), Random(0)
    selector = SeedSelector(STRATEGIES.create(name), tracker=tracker)
    found = []
    for epoch in range(choices):
        context = SelectionContext(epoch, layer_type="Linear")
        seed_idx, reason = selector.select_seed_now("fc1", [0, 1, 2, 3], context)
        found.append(reason)
        delta = PerformanceDelta(reward=random.gauss(0.01 * seed_idx, 0.02))
        tracker.update_metrics_now("fc1", seed_idx, delta)
    return found


@pytest.mark.parametrize("name", [n for n in STRATEGIES.names() if STRATEGIES.load(n).learns])
def test_who_learns_says_from_how_many_outcomes(name: str) -> None:
    told = [reason.reason for reason in reasons(name) if not reason.reason.startswith("untried")]
    assert told
    for sentence in told:
        assert "outcome" in sentence
        assert any(sign.isdigit() for sign in sentence)
        assert len(sentence) <= 140


def test_the_last_seed_to_be_tried_first_is_not_drawn() -> None:
    first = [reason.reason for reason in reasons("ucb", 4)]
    assert first[2] == "untried, like 2 of 4 viable seeds; drawn"
    assert first[3] == "untried, the last of 4 viable seeds"


@pytest.mark.parametrize("seed", range(30))
def test_a_bound_is_that_of_the_best_mean_or_of_the_widest_interval_or_of_neither(
    seed: int,
) -> None:
    random = Random(seed)
    means = {i: random.gauss(0, 1) for i in range(4)}
    halves = {i: 2.0 / random.randint(1, 9) ** 0.5 for i in means}
    scores = {i: means[i] + halves[i] for i in means}
    chosen = max(scores, key=scores.__getitem__)
    said = bound_reason(chosen, means, scores, 3)
    best = means[chosen] == max(means.values())
    widest = abs(halves[chosen] - max(halves.values())) < 1e-9
    assert said.startswith("best mean by ") == best
    assert said.startswith("widest interval, ") == (widest and not best)
    assert said.startswith("highest upper bound, ") == (not widest and not best)
    assert f"{halves[chosen]:.1f}" in said


def test_a_seed_without_trials_and_a_seed_alone_are_told() -> None:
    means = {0: 0.0, 1: 1.0}
    assert bound_reason(0, means, {0: inf, 1: 2.0}, 0) == "nothing rules it out, no outcome yet"
    assert bound_reason(1, means, {1: 2.0}, 2) == "the only viable seed, after 2 outcomes"


def test_a_draw_of_student_t_has_the_spread_of_student_t() -> None:
    assert draw_reason("nig", (0.5, 0.6, 4.0), 1.2, 3, 2) == (
        "highest draw, 1.20 sd, of 3: +0.50 expected, give or take 0.85, after 2 outcomes"
    )
