"""The one book of a layer's seeds: reserved, busy, cooling."""

import json

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.schema import require_schema
from esper.contracts.selection import SelectionConstraints, SelectionContext
from esper.contracts.site import Site
from esper.services.tamiyo.occupancy import Occupancy, occupancy_from
from esper.services.tamiyo.performance_tracker import PerformanceDelta, PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES

RULES = SelectionConstraints(min_dormant_epochs=3, max_concurrent_seeds=2)


def _selector() -> SeedSelector:
    return SeedSelector(STRATEGIES.create("round_robin"), constraints=RULES)


def test_a_seed_goes_round() -> None:
    selector, context = _selector(), SelectionContext(current_epoch=4)
    decision = selector.decide("fc1", [0], context)
    assert decision.site == Site("fc1")
    selector.commit("fc1", 0)
    assert selector.freed("fc1") == {}
    selector.free("fc1", 0, 7)
    assert selector.freed("fc1") == {0: 7}
    assert selector.freed("never seen") == {}


def test_a_failed_graft_cools_down_and_counts_as_nothing_gained() -> None:
    selector = _selector()
    decision = selector.decide("fc1", [0, 1], SelectionContext(current_epoch=4))
    selector.fail(decision, "it broke")
    metrics = selector.performance_tracker.get_layer_metrics("fc1")[decision.seed_idx]
    assert (metrics.failed_attempts, metrics.rewards) == (1, [0.0])
    again = selector.decide("fc1", [0, 1], SelectionContext(current_epoch=5))
    assert again.seed_idx != decision.seed_idx
    assert selector.freed("fc1") == {decision.seed_idx: 4}


def test_the_book_survives_json() -> None:
    selector = _selector()
    for epoch in range(2):
        selector.decide("fc1", [0, 1, 2], SelectionContext(current_epoch=epoch))
    selector.commit("fc1", 0)
    selector.performance_tracker.update_metrics_now("fc1", 1, PerformanceDelta(reward=0.5))
    state = json.loads(json.dumps(selector.state_dict()))
    again = _selector()
    again.performance_tracker.load_state_dict(selector.performance_tracker.state_dict())
    again.load_state_dict(state)
    assert again.state_dict() == state
    book, decisions = occupancy_from(state["layers"]["fc1"])
    assert (book.busy, [d.seed_idx for d in decisions]) == ({0}, [1])


def test_what_is_active_is_reserved_or_busy() -> None:
    book = Occupancy(busy=[2], freed={1: 5})
    assert book.active == {2}
    assert book.sift([0, 1, 2], 6, RULES) == ([0], [1])
    assert book.sift([0, 1, 2], 6, None) == ([0, 1], [])
    assert "seed 2 is busy; seed 1 cools down until epoch 8" in book.refusal(
        "fc1", [2, 1], 6, RULES
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "has no schema, this version reads 1; it is damaged, or older"),
        ({"schema": 2}, "has schema 2, this version reads 1; upgrade"),
        ({"schema": 0}, "has schema 0, this version reads 1; it is damaged, or older"),
        ({"schema": True}, "has schema True"),
        ({"schema": "1"}, "has schema '1'"),
        ([], r"is \[\]; give what state_dict\(\) gave"),
    ],
)
def test_a_state_of_another_schema_is_refused_with_the_way_out(state: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_schema(state, "selector", 1)
    if isinstance(state, dict):
        with pytest.raises(ConfigError, match=message):
            _selector().load_state_dict(state)
        with pytest.raises(ConfigError, match=message):
            PerformanceTracker().load_state_dict(state)
