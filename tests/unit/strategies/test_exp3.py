"""Exp3 with outcomes that come late, twice, out of order, or for seeds that were not there."""

from array import array
from collections.abc import Mapping
from math import exp, log, sqrt
from random import Random  # noqa: TID251 (seeded worlds)
from typing import Any

import pytest
from typing_extensions import override

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext, SelectionReason
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies.exp3 import Exp3, Losses
from esper.strategies.ucb import UCB

HALF = {0: 0.5, 1: 0.5}


def decision(seed: int, chances: Mapping[int, float], number: int = 0) -> Decision:
    others = tuple(other for other in chances if other != seed)
    reason = SelectionReason("exp3", seed, 0.0, {}, chances, "drawn", False, others)
    return Decision(
        decision_id=f"local/fc1/{number}",
        layer_name="fc1",
        seed_idx=seed,
        blueprint="",
        epoch=0,
        reason=reason,
        random_key=(0, "fc1", number),
    )


def choose(selector: SeedSelector, seeds: list[int], epoch: int = 0) -> Decision:
    """Choose, and free the seed at once: its outcome may take its time."""
    made = selector.decide("fc1", seeds, SelectionContext(current_epoch=epoch))
    selector.commit("fc1", made.seed_idx)
    selector.free("fc1", made.seed_idx, epoch)
    return made


def answer(tracker: PerformanceTracker, made: Decision, reward: float) -> None:
    delta = PerformanceDelta(reward=reward)
    tracker.update_metrics_now("fc1", made.seed_idx, delta, decision=made)


def learnt(tracker: PerformanceTracker) -> Losses:
    layer = tracker.layer("fc1")
    assert layer is not None
    assert isinstance(layer.seeds.knowledge, Losses)
    return layer.seeds.knowledge


class Counting(array):  # type: ignore[type-arg]  # it cannot be subscripted when run
    """Array that counts how often it is read."""

    reads = 0

    @override
    def __getitem__(self, place: Any) -> Any:
        Counting.reads += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("first", [0, 7], ids=["all", "some missing"])
def test_the_work_of_an_outcome_grows_with_the_number_of_arms(first: int) -> None:
    learned = Losses(1.0, 0.0)
    learned.cells = Counting("d", learned.cells)
    arms = range(first, first + 2000)
    for number in range(2):
        Counting.reads = 0
        learned.learn(arms[5], 0.1, decision(arms[5], dict.fromkeys(arms, 1 / 2000), number))
        assert Counting.reads < 30 * len(arms)
    assert list(learned.losses()) == list(arms)


def test_the_propensity_is_that_of_the_decision_however_late() -> None:
    learned = Losses(1.0, 0.0)
    learned.learn(0, 0.0, decision(0, HALF))  # the first reward loses 1/2
    losses = learned.losses()
    # Meanwhile the chances are others; the outcome comes back with the 0.1 of its own day.
    learned.learn(1, 0.0, decision(1, {0: 0.9, 1: 0.1}))
    bias = sqrt(log(2) / (2 * 2)) / 2
    estimate = 0.5 / (0.1 + bias)
    assert learned.losses()[1] - losses[1] == pytest.approx(0.9 * estimate)
    assert learned.losses()[0] - losses[0] == pytest.approx(-0.1 * estimate)


def test_a_seed_that_could_not_be_chosen_stays_where_it_was() -> None:
    learned = Losses(1.0, 0.0)
    for seed in range(3):
        learned.learn(seed, 0.01 * seed, decision(seed, dict.fromkeys(range(3), 1 / 3)))
    before = learned.losses()
    learned.learn(0, -0.5, decision(0, {0: 0.5, 1: 0.5, 2: 0.0}))
    after = learned.losses()
    assert after[2] == before[2]
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_being_away_is_no_merit() -> None:
    # Seed 2 is as bad as seed 1, and viable in one round of four only.
    selector = SeedSelector(Exp3(), seed=1)
    random, chosen = Random(1), {0: 0, 1: 0, 2: 0}
    for epoch in range(1200):
        made = choose(selector, [0, 1, 2] if epoch % 4 == 0 else [0, 1], epoch)
        answer(selector.performance_tracker, made, random.gauss(-0.1 * (made.seed_idx != 0), 0.1))
        if epoch >= 600 and epoch % 4 == 0:
            chosen[made.seed_idx] += 1
    # Were rounds without it free of loss, it would seem the best.
    assert chosen[0] > 0.6 * sum(chosen.values())


def test_a_seed_that_comes_late_begins_level_with_the_strategy() -> None:
    learned = Losses(1.0, 0.0)
    for number in range(200):
        learned.learn(number % 2, 0.1 * (number % 2), decision(number % 2, HALF))
    chances = Exp3(rate=1.0).chances([0, 1, 9], learned)
    assert chances[0] < chances[9] < chances[1]


def test_outcomes_late_and_out_of_order_teach_much_the_same() -> None:
    random, choices = Random(0), list[tuple[Decision, float]]()
    for number in range(400):
        seed = int(random.random() < 0.5)
        choices.append((decision(seed, HALF, number), random.gauss(0.05 * seed, 0.05)))
    found = []
    for world in range(3):
        learned = Losses(1.0, 0.0)
        order = list(choices)
        if world:
            Random(world).shuffle(order)
        for made, reward in order:
            learned.learn(made.seed_idx, reward, made)
        found.append(learned.losses()[0] - learned.losses()[1])
    assert min(found) > 80  # 400 rounds that lose about 0.38 more
    assert max(found) < 1.15 * min(found)


def test_outcomes_through_the_tracker_count_once_and_after_a_restart() -> None:
    store = MemoryStore()
    tracker = PerformanceTracker(store=store, run="one")
    selector = SeedSelector(Exp3(), tracker=tracker, seed=2)
    random, waiting = Random(2), list[Decision]()
    for epoch in range(60):
        waiting.append(choose(selector, [0, 1, 2], epoch))
        if len(waiting) > 5:
            made = waiting.pop(random.randrange(len(waiting)))
            answer(tracker, made, random.gauss(0.01 * made.seed_idx, 0.01))
            before = learnt(tracker).state_dict()
            answer(tracker, made, 99.0)
            assert learnt(tracker).state_dict() == before
    tracker.flush()
    later = PerformanceTracker(store=store, run="two")
    SeedSelector(Exp3(), tracker=later)
    assert learnt(later).state_dict() == learnt(tracker).state_dict()
    for made in waiting:  # a decision of the first run, answered in the second
        answer(later, made, 0.01)
        answer(tracker, made, 0.01)
    assert learnt(later).state_dict() == learnt(tracker).state_dict()
    assert sum(learnt(later).count_of(seed) for seed in range(3)) == 60


def test_an_outcome_after_the_blueprint_changed_is_not_the_new_ones() -> None:
    tracker = PerformanceTracker()
    selector = SeedSelector(Exp3(), tracker=tracker)
    old = SelectionContext(blueprints={0: "glu", 1: "se"})
    for _ in range(6):
        made = selector.decide("fc1", [0, 1], old)
        answer(tracker, made, 0.1)
    made = selector.decide("fc1", [0], old)
    tracker.bind("fc1", 0, "conv")
    answer(tracker, made, 0.5)
    assert learnt(tracker).count_of(0) == 0
    assert set(learnt(tracker).losses()) == {1}
    made = selector.decide("fc1", [1], SelectionContext())
    answer(tracker, made, 0.1)


def test_an_outcome_without_a_decision_counts_plainly() -> None:
    tracker = PerformanceTracker()
    selector = SeedSelector(Exp3(), tracker=tracker)
    for reward in (0.0, 0.1, 0.2, 0.1):
        for seed in (0, 1, 2):
            delta = PerformanceDelta(reward=reward + 0.3 * (seed == 1))
            tracker.update_metrics_now("fc1", seed, delta)
    losses = learnt(tracker).losses()
    assert min(losses, key=losses.__getitem__) == 1
    assert all(abs(loss) <= 2.0 for loss in losses.values())
    assert selector.decide("fc1", [0, 1, 2], SelectionContext()).reason.propensity > 0


def test_what_another_strategy_chose_for_certain_teaches_without_weights() -> None:
    store = MemoryStore()
    selector = SeedSelector(UCB(), tracker=PerformanceTracker(store=store, run="one"))
    random = Random(3)
    for epoch in range(200):
        made = choose(selector, [0, 1, 2, 3], epoch)
        reward = random.gauss(0.02 * (made.seed_idx == 2), 0.02)
        answer(selector.performance_tracker, made, reward)
    selector.performance_tracker.flush()
    later = PerformanceTracker(store=store, run="two")
    SeedSelector(Exp3(), tracker=later)
    chances = Exp3().chances([0, 1, 2, 3], learnt(later))
    assert max(chances, key=chances.__getitem__) == 2


@pytest.mark.parametrize(("factor", "shift"), [(1e-6, 0.0), (1e3, 0.0), (1.0, 50.0)])
def test_units_of_the_rewards_do_not_matter(factor: float, shift: float) -> None:
    plain, other, random = Losses(2.0, 0.0), Losses(2.0, 0.0), Random(5)
    for number in range(200):
        made, reward = decision(number % 2, HALF), random.gauss(0.1 * (number % 2), 0.1)
        plain.learn(made.seed_idx, reward, made)
        other.learn(made.seed_idx, factor * reward + shift, made)
    assert other.losses() == pytest.approx(plain.losses(), rel=1e-6)


def test_one_enormous_reward_does_not_hide_what_follows() -> None:
    learned, random = Losses(2.0, 0.0), Random(6)
    for number in range(600):
        reward = 1e9 if number == 100 else random.gauss(0.1 * (number % 2), 0.1)
        learned.learn(number % 2, reward, decision(number % 2, HALF))
    assert learned.losses()[0] - learned.losses()[1] > 50


def test_finds_the_best_seed() -> None:
    gains, earned = (0.0, 0.01, 0.03, 0.005), 0.0
    for seed in range(2):
        selector, random = SeedSelector(Exp3(), seed=seed), Random(seed)
        for epoch in range(800):
            shocks = [random.gauss(0, 0.02) for _ in gains]
            made = selector.decide("fc1", range(4), SelectionContext(current_epoch=epoch))
            reward = gains[made.seed_idx] + shocks[made.seed_idx]
            answer(selector.performance_tracker, made, reward)
            earned += gains[made.seed_idx] / 1600
    assert earned > 0.02  # at random 0.01125


def test_sharing_follows_a_best_seed_that_moves() -> None:
    turned = {}
    for sharing in (0.0, 0.005):
        strategy, random = Exp3(sharing=sharing), Random(0)
        learned = strategy.begin("fc1")
        for number in range(4000):
            best = int(number < 2000)
            seed = int(random.random() < 0.5)
            reward = random.gauss(0.1 * (seed == best), 0.1)
            learned.learn(seed, reward, decision(seed, HALF, number))
            if number == 1999:
                assert strategy.chances([0, 1], learned)[1] > 0.6
            if number >= 2000 and strategy.chances([0, 1], learned)[0] > 0.5:
                turned[sharing] = number - 2000
                break
        else:
            turned[sharing] = 2000
    assert turned[0.005] < 300
    assert turned[0.0] > 1500


def test_sharing_keeps_all_weight_and_lifts_the_least() -> None:
    learned, without = Losses(2.0, 0.01), Losses(2.0, 0.0)
    for number in range(3000):
        for each in (learned, without):
            each.learn(number % 2, 0.1 * (number % 2), decision(number % 2, HALF))
    share = Exp3(rate=2.0, sharing=0.01).chances([0, 1], learned)[0]
    assert share >= 0.005
    eta, losses = without.learning_rate(), without.losses()
    assert Exp3().chances([0, 1], without)[0] == pytest.approx(
        1 / (1 + exp(eta * (losses[0] - losses[1])))
    )
    assert Exp3().chances([0, 1], without)[0] < 0.005
