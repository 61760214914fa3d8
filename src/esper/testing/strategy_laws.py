"""Laws of strategies. Subclass with a fixture ``make`` that returns a new strategy.

```python
class TestMine(StrategyLaws):
    @pytest.fixture
    def make(self):
        return Mine
```
"""
# ruff: noqa: D102 (the name of a law is what it says)

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from math import isnan, sqrt
from random import Random  # noqa: TID251 (the laws bring their own, seeded, world)
from statistics import fmean

from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import (
    Decision,
    SelectionContext,
    SelectionReason,
    decision_data,
    decision_from,
)
from esper.records.draws import Draws
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import SelectionStrategy
from esper.testing.strategy_runs import (
    BLUEPRINTS,
    CONTEXT,
    GAINS,
    LAYER,
    TroubledLoop,
    answer,
    choice_of,
    draws_of,
    earnings,
    metrics_of,
    step,
    tracker_of,
)

Make = Callable[[], SelectionStrategy]


class StrategyLaws:
    """Laws of a strategy, alone and behind the selector."""

    def test_chooses_a_viable_seed_and_says_why(self, make: Make) -> None:
        for number, viable in enumerate(([0, 1, 2, 3], [2], [1, 3], [3, 0])):
            chosen, reason = make().decide(viable, metrics_of(), CONTEXT, draws_of(number))
            assert chosen in viable
            assert reason.seed_idx == chosen
            assert reason.strategy == make().name
            assert set(reason.scores) == set(viable)
            assert reason.score == reason.scores[chosen]
            assert 0 < reason.propensity <= 1
            assert set(reason.alternatives_considered) == set(viable) - {chosen}
            assert reason.reason
            assert not reason.fallback

    def test_needs_no_history(self, make: Make) -> None:
        for number in range(5):
            chosen, reason = make().decide([4, 6], {}, CONTEXT, draws_of(number))
            assert chosen in {4, 6}
            assert 0 < reason.propensity <= 1

    def test_reads_metrics_that_only_have_the_fields_of_the_design(self, make: Make) -> None:
        metrics = {
            seed: SeedPerformanceMetrics(
                seed, LAYER, accuracy_improvements=[gain, gain / 2], loss_reductions=[gain, gain]
            )
            for seed, gain in enumerate(GAINS)
        }
        chosen, reason = make().decide(list(metrics), metrics, CONTEXT, draws_of(0))
        assert chosen in metrics
        assert not isnan(reason.score)

    def test_equal_randomness_equal_choice(self, make: Make) -> None:
        for number in range(20):
            one, two = (
                make().decide([0, 1, 2, 3], metrics_of(), CONTEXT, draws_of(number))
                for _ in range(2)
            )
            assert one == two

    def test_factor_and_shift_on_all_rewards_change_no_choice(self, make: Make) -> None:
        for number in range(20):
            plain = choice_of(make(), metrics_of(seed=number), number)
            assert choice_of(make(), metrics_of(seed=number, factor=1000.0), number) == plain
            assert choice_of(make(), metrics_of(seed=number, factor=1e-6), number) == plain
            assert choice_of(make(), metrics_of(seed=number, shift=5.0), number) == plain

    def test_order_of_seeds_is_irrelevant(self, make: Make) -> None:
        for number in range(20):
            metrics = metrics_of(seed=number)
            turned = dict(reversed(metrics.items()))
            one, why = make().decide([0, 1, 2, 3], metrics, CONTEXT, draws_of(number))
            two, because = make().decide([3, 1, 0, 2], turned, CONTEXT, draws_of(number))
            assert one == two
            assert abs(why.propensity - because.propensity) < 1e-6

    def test_decides_alike_on_live_records_and_on_a_snapshot(self, make: Make) -> None:
        for number in range(20):
            tracker = tracker_of(seed=number)
            layer = tracker.layer(LAYER)
            assert layer is not None
            live, _ = make().decide([0, 1, 2, 3], layer.seeds, CONTEXT, draws_of(number))
            assert live == choice_of(make(), tracker.get_layer_metrics(LAYER), number)

    def test_deciding_changes_nothing(self, make: Make) -> None:
        strategy, metrics, viable = make(), metrics_of(), [3, 1, 0]
        before = deepcopy((metrics, viable, strategy.state_dict()))
        strategy.decide(viable, metrics, CONTEXT, draws_of(0))
        assert (metrics, viable, strategy.state_dict()) == before

    def test_equal_rewards_are_no_trouble(self, make: Make) -> None:
        for reward in (0.0, 0.1, -3.0, 1e-12, 1e12):
            metrics = {
                seed: SeedPerformanceMetrics(seed, LAYER, rewards=[reward] * (seed + 1))
                for seed in range(4)
            }
            _, reason = make().decide([0, 1, 2, 3], metrics, CONTEXT, draws_of(1))
            assert all(abs(score) < 1e6 for score in reason.scores.values())
            assert 0 < reason.propensity <= 1

    def test_propensity_is_how_often_it_chooses(self, make: Make) -> None:
        strategy, metrics, draws = make(), metrics_of(), 600
        count = dict.fromkeys(metrics, 0)
        claimed: dict[int, float] = {}
        for number in range(draws):
            chosen, reason = strategy.decide([0, 1, 2, 3], metrics, CONTEXT, draws_of(number))
            count[chosen] += 1
            if chosen not in claimed:
                claimed[chosen] = reason.propensity
        for seed, propensity in claimed.items():
            spread = sqrt(propensity * (1 - propensity) / draws)
            assert abs(count[seed] / draws - propensity) <= 4.5 * spread + 0.002
        assert sum(claimed.values()) <= 1 + 0.01 * len(claimed)

    def test_propensities_of_all_seeds_are_how_often_each_is_chosen(self, make: Make) -> None:
        strategy, metrics, viable, draws = make(), metrics_of(), [0, 1, 3], 400
        found = strategy.propensities(viable, metrics, CONTEXT)
        assert set(found.by_seed) == set(viable)
        assert abs(sum(found.by_seed.values()) - 1) <= found.error + 1e-6
        count = dict.fromkeys(viable, 0)
        for number in range(draws):
            chosen, reason = strategy.decide(viable, metrics, CONTEXT, draws_of(number))
            count[chosen] += 1
            if number < 50:  # the same each time, and slow to work out
                assert abs(found.of(chosen) - reason.propensity) <= found.error + 1e-6
            if number < 3:
                assert set(reason.propensities) == set(viable)
                assert reason.propensities[chosen] == reason.propensity
        for seed, chance in found.by_seed.items():
            spread = sqrt(max(chance * (1 - chance), 0.0) / draws)
            assert abs(count[seed] / draws - chance) <= 4.5 * spread + found.error + 0.002

    def test_the_log_has_the_propensities_of_all_viable_seeds(self, make: Make) -> None:
        store = MemoryStore()
        selector = SeedSelector(make(), tracker=PerformanceTracker(store=store), seed=1)
        earnings(selector, GAINS, choices=12)
        for _, event in store.read(kinds=["decision"]):
            chances = event.data["propensities"]
            error = event.data.get("propensity_error", 0.0)
            assert set(chances) == {"0", "1", "2", "3"}
            assert chances[str(event.data["seed"])] == event.data["propensity"]
            assert abs(sum(chances.values()) - 1) <= error + 1e-6
            assert error < 0.1

    def test_reason_survives_copying_and_json(self, make: Make) -> None:
        decision = SeedSelector(make(), tracker=tracker_of()).decide(LAYER, [0, 1, 2, 3], CONTEXT)
        assert deepcopy(decision) == decision
        assert decision_from(json.loads(json.dumps(decision_data(decision)))) == decision
        assert asdict(decision.reason)["propensity"] == decision.reason.propensity

    def test_a_reason_speaks_of_the_moment_of_the_choice_whenever_it_is_read(
        self, make: Make
    ) -> None:
        at_once, later = (SeedSelector(make(), tracker=tracker_of(), seed=2) for _ in range(2))
        read = at_once.decide(LAYER, [0, 1, 2, 3], CONTEXT)
        before = decision_data(read)
        unread = later.decide(LAYER, [0, 1, 2, 3], CONTEXT)
        for seed_idx in (0, 1, 2, 3) * 5:
            delta = PerformanceDelta(reward=0.3 - 0.1 * seed_idx)
            later.performance_tracker.update_metrics_now(LAYER, seed_idx, delta)
        assert decision_data(unread) == before

    def test_select_and_get_reason_are_decide(self, make: Make) -> None:
        strategy = make()
        chosen = strategy.select([0, 1, 2, 3], metrics_of(), CONTEXT)
        reason = strategy.get_reason()
        assert isinstance(reason, SelectionReason)
        assert reason.seed_idx == chosen
        assert strategy.select([0, 1, 2, 3], metrics_of(), CONTEXT) == chosen

    def test_a_baseline_makes_its_first_choices_itself(self, make: Make) -> None:
        if make().learns:
            return
        selector, context = SeedSelector(make(), seed=8), SelectionContext(parameters={1: 30, 2: 9})
        for number in range(6):
            layer = selector.performance_tracker.layer(LAYER)
            known = layer.seeds if layer else {}
            by_itself = make().decide([0, 1, 2, 3], known, context, Draws(8, LAYER, number))
            seed_idx, reason = selector.select_seed_now(LAYER, [0, 1, 2, 3], context)
            assert (seed_idx, reason.propensity) == (by_itself[0], by_itself[1].propensity)
            selector.release(LAYER, seed_idx)

    def test_no_seed_starves(self, make: Make) -> None:
        if not make().learns:
            return
        tracker = PerformanceTracker()
        selector = SeedSelector(make(), tracker=tracker, seed=3)
        earnings(selector, (0.5, 0.0, -0.5, -9.0, -9.0), choices=5)
        first = tracker.get_layer_metrics(LAYER)
        assert [first[seed].total_activations for seed in range(5)] == [1] * 5

    def test_what_it_knows_is_some_of_the_viable_seeds(self, make: Make) -> None:
        by_hand = {seed: SeedPerformanceMetrics(seed, LAYER, rewards=[0.1]) for seed in (0, 2)}
        context = SelectionContext(3, layer_type="Linear", blueprints={0: "glu", 1: "gate"})
        for metrics in ({}, by_hand, metrics_of()):
            for seen in (SelectionContext(), CONTEXT, context):
                for viable in ([0, 1, 2, 3], [3], [1, 9]):
                    known = make().knows(viable, metrics, seen)
                    assert set(known) <= set(viable)

    def test_a_seed_that_it_knows_from_elsewhere_is_chosen_in_the_end(self, make: Make) -> None:
        tracker, random = PerformanceTracker(), Random(2)
        strategy = make()
        selector = SeedSelector(strategy, tracker=tracker, seed=4)
        context = SelectionContext(3, layer_type="Linear", blueprints=BLUEPRINTS)
        for layer in ("fc1", "fc2", "fc3"):  # where the others were seen to earn far less
            for _ in range(20):
                step(selector, layer, context, random)
        for seed_idx, blueprint in BLUEPRINTS.items():
            tracker.bind("fc4", seed_idx, blueprint)
        new = tracker.layer("fc4")
        assert new is not None
        known = strategy.knows(list(BLUEPRINTS), new.seeds, context)
        chosen = {step(selector, "fc4", context, random) for _ in range(120)}
        assert set(known) <= chosen

    def test_outcomes_may_come_late_and_in_any_order(self, make: Make) -> None:
        tracker = PerformanceTracker()
        selector = SeedSelector(make(), tracker=tracker, seed=1)
        random, waiting = Random(5), list[Decision]()
        for _ in range(60):
            decision = selector.decide(LAYER, [0, 1, 2, 3], CONTEXT)
            selector.commit(LAYER, decision.seed_idx)
            selector.free(LAYER, decision.seed_idx, epoch=0)
            waiting.append(decision)
            if len(waiting) > 6:
                answer(tracker, waiting.pop(random.randrange(len(waiting))))
        random.shuffle(waiting)
        for decision in waiting:
            answer(tracker, decision)
            answer(tracker, decision)  # a second time: counts once
        metrics = tracker.get_layer_metrics(LAYER)
        assert sum(seed.total_outcomes for seed in metrics.values()) == 60
        assert all(seed.total_outcomes == seed.total_activations for seed in metrics.values())

    def test_state_survives_json(self, make: Make) -> None:
        strategy = make()
        selector = SeedSelector(strategy, tracker=PerformanceTracker(), seed=1)
        earnings(selector, GAINS, choices=30)
        restored = make()
        restored.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
        layer = selector.performance_tracker.layer(LAYER)
        assert layer is not None
        for number in range(10):
            one, two = (
                each.decide([0, 1, 2, 3], layer.seeds, CONTEXT, draws_of(number))
                for each in (strategy, restored)
            )
            assert one == two

    def test_it_goes_on_bit_for_bit_over_the_same_store(self, make: Make) -> None:
        stopped, whole = MemoryStore(), MemoryStore()
        wanted = TroubledLoop(make(), PerformanceTracker(store=whole, run="r"))
        one = TroubledLoop(make(), PerformanceTracker(store=stopped, run="r"))
        assert one.go(40) == wanted.go(40)
        one.selector.performance_tracker.flush()
        two = TroubledLoop(make(), PerformanceTracker(store=stopped, run="r"), like=one)
        assert two.go(30) == wanted.go(30)

    def test_it_goes_on_bit_for_bit_from_a_state_without_a_store(self, make: Make) -> None:
        wanted = TroubledLoop(make(), PerformanceTracker(window_size=5))
        one = TroubledLoop(make(), PerformanceTracker(window_size=5))
        assert one.go(40) == wanted.go(40)
        two = TroubledLoop(make(), PerformanceTracker(window_size=5), like=one, with_tracker=True)
        assert two.go(30) == wanted.go(30)

    def test_beats_chance_if_it_claims_to_learn(self, make: Make) -> None:
        if not make().learns:
            return
        earned = []
        for seed in range(4):
            gains = GAINS[seed:] + GAINS[:seed]  # the best arm at every position
            selector = SeedSelector(make(), seed=seed)
            earned.append(fmean(earnings(selector, gains, choices=200, seed=seed)))
        assert fmean(earned) > 1.3 * fmean(GAINS)
