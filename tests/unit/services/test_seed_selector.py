"""Reserving, refusing, resting: what the selector does around every strategy."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from math import inf
from typing import Any

import pytest
from typing_extensions import override

from esper.contracts.errors import ConfigError, NoViableSeedError, SelectionError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionConstraints, SelectionContext, SelectionReason
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.ucb import UCB

SEEDS = [0, 1, 2, 3]
GAIN = PerformanceDelta(accuracy_delta=0.01, loss_delta=0.03)


def at(epoch: int, **more: Any) -> SelectionContext:
    return SelectionContext(current_epoch=epoch, **more)


def fixed(constraints: SelectionConstraints | None = None, **settings: Any) -> SeedSelector:
    """Every seed tried once, then always the same seed: choices that a test can foresee."""
    tracker = PerformanceTracker(**settings)
    for seed in SEEDS:
        tracker.update_metrics_now("fc1", seed, GAIN)
    return SeedSelector(STRATEGIES.create("fixed"), tracker=tracker, constraints=constraints)


def test_the_document_s_loop_needs_no_other_call() -> None:
    selector = SeedSelector(STRATEGIES.create("ucb"))

    async def loop() -> list[int]:
        chosen = []
        for epoch in range(12):
            seed_idx, reason = await selector.select_seed("fc1", SEEDS, at(epoch))
            assert reason.seed_idx == seed_idx
            await selector.performance_tracker.update_metrics("fc1", seed_idx, GAIN)
            chosen.append(seed_idx)
        return chosen

    chosen = asyncio.run(loop())
    assert sorted(chosen[:4]) == SEEDS
    metrics = selector.performance_tracker.get_layer_metrics("fc1")
    assert sum(seed.total_activations for seed in metrics.values()) == 12


def test_first_tries_come_in_a_drawn_order_that_no_list_order_changes() -> None:
    def first_tries(seeds: list[int], seed: int) -> list[int]:
        selector = SeedSelector(UCB(), seed=seed)
        chosen = [selector.select_seed_now("fc1", seeds, at(0)) for _ in seeds]
        assert all(reason.score == inf for _, reason in chosen)
        assert [reason.propensity for _, reason in chosen] == [1 / 4, 1 / 3, 1 / 2, 1]
        return [seed_idx for seed_idx, _ in chosen]

    orders = {tuple(first_tries(SEEDS, seed)) for seed in range(20)}
    assert len(orders) > 5
    assert first_tries([3, 1, 0, 2], 7) == first_tries(SEEDS, 7)


def test_a_choice_depends_on_run_seed_layer_and_number_alone() -> None:
    def choices(seed: int, others: int) -> list[int]:
        selector = SeedSelector(STRATEGIES.create("random"), seed=seed)
        chosen = []
        for epoch in range(10):
            for other in range(others):
                aside, _ = selector.select_seed_now(f"other{other}", SEEDS, at(epoch))
                selector.release(f"other{other}", aside)
            decision = selector.decide("fc1", SEEDS, at(epoch))
            assert decision.random_key == (seed, "fc1", epoch)
            chosen.append(decision.seed_idx)
            selector.release("fc1", decision.seed_idx)
        return chosen

    assert choices(0, 0) == choices(0, 2)
    assert choices(0, 0) != choices(1, 0)


def test_concurrent_choices_never_share_a_seed() -> None:
    async def four() -> set[int]:
        selector = SeedSelector(UCB())
        found = await asyncio.gather(*[selector.select_seed("fc1", SEEDS, at(0)) for _ in range(4)])
        return {seed_idx for seed_idx, _ in found}

    assert asyncio.run(four()) == set(SEEDS)

    selector = SeedSelector(STRATEGIES.create("thompson"))
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: selector.select_seed_now("fc1", range(32), at(0))[0], range(32))
        )
    assert sorted(found) == list(range(32))


def test_reserved_until_released() -> None:
    selector = fixed()
    assert selector.select_seed_now("fc1", SEEDS, at(0))[0] == 0
    assert selector.select_seed_now("fc1", SEEDS, at(0))[0] == 1
    selector.release("fc1", 0)
    assert selector.select_seed_now("fc1", SEEDS, at(0))[0] == 0


def test_busy_from_commit_until_freed_whatever_outcomes_come() -> None:
    selector = fixed(SelectionConstraints(min_dormant_epochs=3, max_concurrent_seeds=4))
    decision = selector.decide("fc1", SEEDS, at(0))
    selector.commit("fc1", 0)
    selector.performance_tracker.update_metrics_now("fc1", 0, GAIN, decision=decision)
    with pytest.raises(NoViableSeedError, match="seed 0 is busy"):
        selector.decide("fc1", [0], at(50))
    selector.free("fc1", 0, epoch=50)
    with pytest.raises(NoViableSeedError, match="seed 0 cools down until epoch 53"):
        SeedSelector.decide(_without_fallback(selector), "fc1", [0], at(52))
    assert selector.decide("fc1", [0], at(53)).seed_idx == 0


def _without_fallback(selector: SeedSelector) -> SeedSelector:
    rules = selector.constraints
    assert rules is not None
    strict = SeedSelector(
        selector.strategy,
        tracker=selector.performance_tracker,
        constraints=SelectionConstraints(
            rules.min_dormant_epochs, rules.max_concurrent_seeds, fallback_to_zero=False
        ),
    )
    strict.load_state_dict(selector.state_dict())
    return strict


def test_an_older_decision_s_late_outcome_leaves_the_reservation_alone() -> None:
    selector = fixed()
    older = selector.decide("fc1", [0], at(0))
    selector.commit("fc1", 0)
    selector.free("fc1", 0, epoch=1)
    newer = selector.decide("fc1", [0], at(2))
    selector.performance_tracker.update_metrics_now("fc1", 0, GAIN, decision=older)
    with pytest.raises(NoViableSeedError, match="reserved"):
        selector.decide("fc1", [0], at(3))
    selector.performance_tracker.update_metrics_now("fc1", 0, GAIN, decision=newer)
    assert selector.decide("fc1", [0], at(3)).seed_idx == 0


def test_commit_release_and_free_refuse_what_is_not_theirs() -> None:
    selector = fixed()
    for call in (selector.commit, selector.release):
        with pytest.raises(SelectionError, match="seed 2 of layer 'fc1' is not reserved"):
            call("fc1", 2)
    selector.decide("fc1", SEEDS, at(0))
    with pytest.raises(SelectionError, match="not busy"):
        selector.free("fc1", 0, epoch=0)
    selector.commit("fc1", 0)
    with pytest.raises(SelectionError, match="is busy"):
        selector.release("fc1", 0)


def test_the_documents_constraints_leave_every_seed_viable_every_six_epochs() -> None:
    selector = SeedSelector(UCB(), constraints=SelectionConstraints())
    for number in range(500):
        decision = selector.decide("fc1", SEEDS, at(6 * number))
        reason = decision.reason
        assert not reason.fallback
        assert len(reason.alternatives_considered) == 3
        selector.performance_tracker.update_metrics_now("fc1", decision.seed_idx, GAIN)


def test_cooldown_in_the_bare_loop_runs_from_the_choice() -> None:
    selector = fixed(SelectionConstraints(min_dormant_epochs=2, max_concurrent_seeds=4))
    chosen = []
    for epoch in range(6):
        seed_idx, _ = selector.select_seed_now("fc1", SEEDS, at(epoch))
        selector.performance_tracker.update_metrics_now("fc1", seed_idx, GAIN)
        chosen.append(seed_idx)
    assert chosen == [0, 1, 0, 1, 0, 1]


def test_fallback_overrides_a_cooldown_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    selector = fixed(SelectionConstraints(min_dormant_epochs=5, max_concurrent_seeds=2))
    for seed in (0, 1, 2, 3):
        selector.decide("fc1", [seed], at(0))
        selector.performance_tracker.update_metrics_now("fc1", seed, GAIN)
    with caplog.at_level(logging.WARNING):
        decision = selector.decide("fc1", SEEDS, at(2))
    assert decision.seed_idx == 0
    assert decision.reason.fallback
    assert decision.reason.alternatives_considered == (1, 2, 3)
    assert "fallback to seed 0" in caplog.text
    assert decision.reason.reason.endswith("the lowest, after 2 epoch(s) of rest")
    # Seed 0 is reserved now, which is hard: the next lowest that merely rests is taken.
    assert selector.decide("fc1", SEEDS, at(2)).seed_idx == 1


def test_a_fallback_to_a_seed_of_the_same_epoch_has_no_rest_to_speak_of() -> None:
    selector = fixed(SelectionConstraints(min_dormant_epochs=5))
    selector.decide("fc1", [0], at(3))
    selector.performance_tracker.update_metrics_now("fc1", 0, GAIN)
    reason = selector.decide("fc1", [0], at(3)).reason
    assert reason.reason.endswith("the lowest, which was freed in this epoch")


def test_fallback_never_overrides_what_is_hard() -> None:
    rules = SelectionConstraints(min_dormant_epochs=5, max_concurrent_seeds=1)
    selector = fixed(rules)
    selector.decide("fc1", SEEDS, at(0))
    selector.commit("fc1", 0)
    before = _everything(selector)
    with pytest.raises(NoViableSeedError) as refused:
        selector.decide("fc1", SEEDS, at(9))
    assert "layer 'fc1' has no viable seed at epoch 9" in str(refused.value)
    assert "1 active, 1 allowed at once" in str(refused.value)
    assert "seed 0 is busy" in str(refused.value)
    assert "constraints.max_concurrent_seeds" in str(refused.value)
    assert _everything(selector) == before


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "no seed is available"),
        ([0, 1, 1], r"\[0, 1, 1\]; each must be >= 0 and stand there once"),
        ([0, -1], r"\[-1, 0\]"),
        (["0"], "give a list of seed indices"),
        ([0.0], "give a list of seed indices"),
        (3, "give a list of seed indices"),
    ],
)
def test_bad_seed_lists_are_refused_and_touch_nothing(seeds: Any, message: str) -> None:
    selector = fixed()
    before = _everything(selector)
    with pytest.raises(SelectionError, match=message):
        selector.select_seed_now("fc1", seeds, at(0))
    assert _everything(selector) == before


def _everything(selector: SeedSelector) -> Any:
    tracker = selector.performance_tracker
    metrics = {name: tracker.get_layer_metrics(name) for name in tracker.layer_names}
    return deepcopy((selector.state_dict(), metrics))


class Stubborn(SelectionStrategy):
    """A strategy with a mistake in it."""

    name = "stubborn"

    @override
    def decide(self, viable: Any, metrics: Any, context: Any, rng: Any) -> Any:
        return 9, SelectionReason("stubborn", 9, 0.0, {9: 0.0}, 1.0, "because")


def test_a_strategy_that_chooses_what_is_not_viable_is_found_out() -> None:
    selector = SeedSelector(Stubborn(), tracker=fixed().performance_tracker)
    before = _everything(selector)
    with pytest.raises(SelectionError, match="'stubborn' chose seed 9"):
        selector.decide("fc1", SEEDS, at(0))
    assert _everything(selector) == before


def test_a_strategy_is_an_object_or_a_name() -> None:
    assert SeedSelector("ucb").strategy == STRATEGIES.create("ucb")
    with pytest.raises(ConfigError, match="give a strategy or its name, as 'ucb'"):
        SeedSelector(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"), [({"tracker": 3}, "tracker is 3"), ({"seed": 0.5}, "0.5")]
)
def test_a_selector_s_parts_are_what_they_should_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SeedSelector(STRATEGIES.create("ucb"), **given)


def test_a_new_blueprint_is_untried_and_the_old_record_waits() -> None:
    selector = SeedSelector(UCB())
    selector.decide("fc1", [0], at(0, blueprints={0: "glu"}))
    tracker = selector.performance_tracker
    tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.5))
    glu = tracker.get_layer_metrics("fc1")[0]
    assert (glu.blueprint, glu.rewards) == ("glu", [0.5])
    _, reason = selector.select_seed_now("fc1", [0], at(1, blueprints={0: "gate"}))
    assert reason.score == inf
    selector.release("fc1", 0)
    tracker.bind("fc1", 0, "glu")
    assert tracker.get_layer_metrics("fc1")[0] == glu


def test_an_outcome_finds_its_blueprint_after_the_seed_was_bound_anew() -> None:
    selector = fixed()
    decision = selector.decide("fc1", [0], at(0, blueprints={0: "glu"}))
    tracker = selector.performance_tracker
    tracker.bind("fc1", 0, "gate")
    tracker.update_metrics_now("fc1", 0, PerformanceDelta(reward=0.5), decision=decision)
    assert tracker.get_layer_metrics("fc1")[0].rewards == []
    tracker.bind("fc1", 0, "glu")
    assert tracker.get_layer_metrics("fc1")[0].rewards == [0.5]


def test_state_survives_json() -> None:
    rules = SelectionConstraints(min_dormant_epochs=5, max_concurrent_seeds=4)
    selector = fixed(rules)
    for seed in (0, 1):
        selector.decide("fc1", [seed], at(0))
        selector.commit("fc1", seed)
    selector.free("fc1", 1, epoch=4)
    waiting = selector.decide("fc1", [2], at(5))
    restored = SeedSelector(
        selector.strategy, tracker=selector.performance_tracker, constraints=rules
    )
    restored.load_state_dict(json.loads(json.dumps(selector.state_dict())))
    assert restored.state_dict() == selector.state_dict()
    with pytest.raises(NoViableSeedError, match="seed 0 is busy; seed 2 is reserved"):
        restored.decide("fc1", [0, 2], at(6))
    restored.performance_tracker.update_metrics_now("fc1", 2, GAIN, decision=waiting)
    assert restored.decide("fc1", [0, 2], at(10)).seed_idx == 2


@pytest.mark.parametrize("damage", [{"strategy": {"x": 1}}, {"layers": {"fc2": {}}}, {"layers": 3}])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict[str, Any]) -> None:
    selector = fixed()
    selector.decide("fc1", [0], at(0))
    before = selector.state_dict()
    with pytest.raises(ConfigError):
        selector.load_state_dict(before | damage)
    assert selector.state_dict() == before


def test_a_second_tracker_on_the_store_goes_on_counting() -> None:
    store = MemoryStore()
    first = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run="a"))
    ids = [first.decide("fc1", SEEDS, at(0)).decision_id for _ in range(2)]
    second = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run="b"))
    ids += [second.decide("fc1", SEEDS, at(0)).decision_id for _ in range(2)]
    assert ids == ["a/fc1/0", "a/fc1/1", "b/fc1/2", "b/fc1/3"]
    tried = second.performance_tracker.get_layer_metrics("fc1")
    assert {seed: record.total_activations for seed, record in tried.items()} == dict.fromkeys(
        SEEDS, 1
    )


def test_a_cancelled_choice_is_released() -> None:
    async def cancelled() -> SeedSelector:
        tracker = PerformanceTracker(store=MemoryStore())
        selector = SeedSelector(UCB(), tracker=tracker)
        task = asyncio.ensure_future(selector.select_seed("fc1", [0], at(0)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return selector

    selector = asyncio.run(cancelled())
    assert selector.select_seed_now("fc1", [0], at(0))[0] == 0
