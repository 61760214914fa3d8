"""What a strategy thinks now is what the next choice is made by; asking changes nothing."""

from random import Random  # noqa: TID251 (seeded)

import pytest

from esper.contracts.config import AbTest
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.preview import preview
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy

SEEDS = [0, 1, 2, 3]
CHOOSERS = [*STRATEGIES.names(), "A/B test"]


def chooser_of(name: str) -> SelectionStrategy | Assignment:
    if name in STRATEGIES.names():
        return STRATEGIES.create(name)
    arms = {"a": {"strategy": "ucb"}, "b": {"strategy": "discounted_thompson"}}
    return Assignment.of(AbTest.model_validate({"salt": "t", "arms": arms}))


def events_of(store: MemoryStore) -> int:
    return sum(1 for _ in store.read())


@pytest.mark.parametrize("name", CHOOSERS)
def test_the_next_choice_is_as_was_foreseen(name: str) -> None:
    chooser, store, random = chooser_of(name), MemoryStore(), Random(2)
    tracker = PerformanceTracker(store=store, run="r")
    selector = SeedSelector(chooser, tracker=tracker, seed=5)
    for epoch in range(14):
        context = SelectionContext(epoch, layer_type="Linear", blueprints={0: "glu", 1: "gate"})
        for seed_idx, blueprint in context.blueprints.items():
            tracker.bind("fc1", seed_idx, blueprint)
        written = events_of(store)
        foreseen = preview(chooser, tracker, "fc1", SEEDS, context, seed=5)
        assert events_of(store) == written
        chosen, reason = selector.select_seed_now("fc1", SEEDS, context)
        assert reason.strategy == foreseen[chosen].strategy
        assert reason.propensity == pytest.approx(foreseen[chosen].propensity)
        total = sum(one.propensity for one in foreseen.values())
        assert abs(total - 1) <= foreseen[chosen].propensity_error + 1e-6
        if chosen in reason.scores and reason.score < float("inf"):
            assert foreseen[chosen].score == reason.score
        else:  # a first try; whatever the strategy would have said of it
            assert foreseen[chosen].score is None
        delta = PerformanceDelta(reward=random.gauss(0.01 * chosen, 0.02))
        tracker.update_metrics_now("fc1", chosen, delta)


def test_it_says_what_is_known_and_what_is_waited_for() -> None:
    tracker = PerformanceTracker(window_size=3)
    for reward in (9.0, 1.0, 2.0, 3.0):
        tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=reward))
    tracker.update_metrics_now("fc1", 1, PerformanceDelta(reward=5.0))
    ucb = STRATEGIES.create("ucb")
    decision = SeedSelector(ucb, tracker=tracker).decide("fc1", [1], SelectionContext())
    found = preview(ucb, tracker, "fc1", [0, 1, 2], SelectionContext())
    assert (found[0].count, found[0].outcomes, found[0].mean) == (3, 4, 2.0)
    assert found[0].interval == pytest.approx((-0.4841377, 4.4841377))
    assert (found[1].interval, found[1].pending) == (None, 1)
    assert (found[2].mean, found[2].score, found[2].propensity) == (None, None, 1.0)
    assert [found[seed].propensity for seed in (0, 1)] == [0, 0]
    assert decision.seed_idx == 1


def test_a_layer_that_nothing_is_known_of_can_be_asked_about() -> None:
    found = preview(
        STRATEGIES.create("ucb"), PerformanceTracker(), "fc9", [0, 1], SelectionContext()
    )
    assert [one.propensity for one in found.values()] == [0.5, 0.5]
