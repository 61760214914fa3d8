"""Strategies for rewards that drift or jump."""

import json
from collections.abc import Callable, Sequence
from math import exp, isfinite, log
from random import Random  # noqa: TID251 (seeded worlds)
from sys import getsizeof
from typing import Any

import pytest

from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.strategies.drifting.change_ucb import ChangeUCB
from esper.strategies.drifting.changes import Changing, Cusum, Likelihood, _best_split
from esper.strategies.drifting.forgetful import SlidingUCB
from esper.strategies.drifting.forgetting import Discounted, Windowed
from esper.strategies.exp3 import Losses
from esper.strategies.learned import Learned

Gains = Callable[[int], Sequence[float]]
"""Epoch to the true gain of each seed."""

STRATEGIES_HERE = {
    "discounted_ucb": ("discounted_ucb", {}),
    "sliding_ucb": ("sliding_ucb", {}),
    "discounted_thompson": ("discounted_thompson", {}),
    "sliding_thompson": ("sliding_thompson", {}),
    "sliding_thompson_beta": ("sliding_thompson", {"posterior": "beta"}),
    "cusum": ("change_ucb", {}),
    "cusum_arm": ("change_ucb", {"restart": "arm"}),
    "glr": ("change_ucb", {"detector": "glr"}),
}

KINDS: dict[str, Callable[[], Learned]] = {
    "discounted": lambda: Discounted(0.99),
    "windowed": lambda: Windowed(50),
    "cusum": lambda: Cusum(size=0.7, false_alarm=1e-5, layer=True),
    "glr": lambda: Likelihood(false_alarm=1e-5, layer=True),
    "losses": lambda: Losses(2.0, 0.0),
    "shared losses": lambda: Losses(2.0, 0.01),
}


def steady(_: int) -> Sequence[float]:
    return 0.0, 0.010, 0.020, 0.005


def switching(epoch: int) -> Sequence[float]:
    gains = (0.0, 0.0, 0.03, 0.0)
    turn = epoch // 300 % 4
    return gains[turn:] + gains[:turn]


def regret(name: str, settings: dict[str, Any], gains: Gains, choices: int, seed: int) -> float:
    """Mean regret per choice, as a share of what choosing at random would have."""
    strategy = STRATEGIES.create(name, **settings)
    tracker = PerformanceTracker()
    selector = SeedSelector(strategy, tracker=tracker, seed=seed)
    noise, lost, at_random = Random(seed), 0.0, 0.0
    for epoch in range(choices):
        means = gains(epoch)
        shocks = [noise.gauss(0, 0.02) for _ in means]  # the same, whichever seed is chosen
        decision = selector.decide("fc1", range(len(means)), SelectionContext(current_epoch=epoch))
        reward = means[decision.seed_idx] + shocks[decision.seed_idx]
        delta = PerformanceDelta(reward=reward)
        tracker.update_metrics_now("fc1", decision.seed_idx, delta, decision=decision)
        lost += max(means) - means[decision.seed_idx]
        at_random += max(means) - sum(means) / len(means)
    return lost / at_random


@pytest.mark.parametrize("name", STRATEGIES_HERE)
def test_learns_where_nothing_changes(name: str) -> None:
    strategy, settings = STRATEGIES_HERE[name]
    found = [regret(strategy, settings, steady, 500, seed) for seed in range(3)]
    assert sum(found) / 3 < 0.5
    assert max(found) < 0.65


@pytest.mark.parametrize("name", STRATEGIES_HERE)
def test_follows_a_best_seed_that_moves(name: str) -> None:
    strategy, settings = STRATEGIES_HERE[name]
    found = [regret(strategy, settings, switching, 1500, seed) for seed in range(2)]
    assert sum(found) / 2 < (0.65 if name == "sliding_thompson_beta" else 0.5)


def test_a_learner_that_never_forgets_does_not_follow() -> None:
    forgets = regret("discounted_ucb", {}, switching, 1500, 0)
    remembers = regret("discounted_ucb", {"discount": 1.0}, switching, 1500, 0)
    assert forgets < 0.7 * remembers


def test_a_change_of_one_seed_alone_is_noticed() -> None:
    def rises(epoch: int) -> Sequence[float]:
        return (0.0, 0.010, 0.020, 0.005 if epoch < 500 else 0.050)

    for detector in ("cusum", "glr"):
        for restart in ("arm", "layer"):
            settings = {"detector": detector, "restart": restart, "explore": 0.05}
            assert regret("change_ucb", settings, rises, 1500, 1) < 0.35


@pytest.mark.parametrize("make", [KINDS["cusum"], KINDS["glr"]])
def test_alarms_are_rare_without_a_change_and_prompt_with_one(make: Callable[[], Changing]) -> None:
    alarms, delays = 0, []
    for world in range(8):
        learned, random = make(), Random(world)
        for _ in range(500):
            for seed in (0, 1):
                learned.learn(seed, random.gauss(seed, 1.0), None)
        alarms += learned.changes(0) + learned.changes(1)
        before = learned.changes(0)
        for delay in range(1, 100):
            learned.learn(0, random.gauss(1.5, 1.0), None)
            if learned.changes(0) > before:
                delays.append(delay)
                break
        count, mean = learned.means()[0]
        assert count <= delay + 10  # the sum may have left 0 a little early
        assert 0.7 < mean < 2.3
        assert learned.means()[1][0] <= 4  # its confidence went, its mean stayed
    assert alarms <= 1  # 8,000 outcomes at one in 100,000
    assert len(delays) == 8
    assert max(delays) < 40


def test_a_restart_of_an_arm_leaves_the_others_alone() -> None:
    learned = Cusum(size=0.7, false_alarm=1e-3, layer=False)
    random = Random(0)
    for _ in range(50):
        learned.learn(0, random.gauss(0, 1), None)
        learned.learn(1, random.gauss(0, 1), None)
    others = learned.means()[1]
    for _ in range(15):
        learned.learn(0, random.gauss(4, 1), None)
    assert learned.changes(0) >= 1
    assert learned.means()[1] == others


def test_one_wild_reward_is_no_change() -> None:
    for make in (KINDS["cusum"], KINDS["glr"]):
        learned = make()
        assert isinstance(learned, Changing)
        random = Random(1)
        for _ in range(60):
            learned.learn(0, random.gauss(0, 1), None)
        learned.learn(0, 1e6, None)
        assert learned.changes(0) == 0


def test_the_ratio_of_few_rewards_is_the_textbook_one() -> None:
    random = Random(5)
    for _ in range(50):
        rewards = [random.gauss(0, 1) for _ in range(7)] + [random.gauss(3, 1) for _ in range(4)]
        ratios = {}
        for split in range(1, len(rewards)):
            new, old = rewards[-split:], rewards[:-split]
            apart = sum(new) / len(new) - sum(old) / len(old)
            ratios[split] = len(new) * len(old) / len(rewards) * apart**2 / 2
        best = max(ratios, key=ratios.__getitem__)
        groups = [(1.0, reward) for reward in reversed(rewards)]
        needed = log(len(ratios)) - ratios[best]  # the logarithm of the alarm rate that just fits
        assert _best_split(groups, 1.0, exp(needed + 1e-6)) == best
        assert _best_split(groups, 1.0, exp(needed - 1e-6)) == 0


def test_groups_of_rewards_are_few_and_hold_all() -> None:
    learned = Likelihood(false_alarm=1e-9, layer=False)
    random = Random(2)
    for _ in range(3000):
        learned.learn(0, random.gauss(0, 1), None)
    groups = learned._groups(learned.row(0))
    assert len(groups) <= 16
    assert sum(count for count, _ in groups) == 2995  # all but those that the noise was learnt from
    assert sum(count * mean for count, mean in groups) / 2995 == pytest.approx(
        learned.means()[0][1], abs=0.01
    )


def test_discounted_weights_are_the_sums_of_the_paper() -> None:
    learned, random, log_of = Discounted(0.9), Random(0), list[tuple[int, float]]()
    for _ in range(200):
        seed, reward = random.randrange(3), random.gauss(0, 1)
        learned.learn(seed, reward, None)
        log_of.append((seed, reward))
    for seed, (weight, mean) in learned.means().items():
        weights = [
            (0.9 ** (199 - at), reward) for at, (own, reward) in enumerate(log_of) if own == seed
        ]
        total = sum(part for part, _ in weights)
        assert weight == pytest.approx(total)
        assert mean == pytest.approx(sum(part * reward for part, reward in weights) / total)


def test_a_window_is_exact_however_large_what_left_it() -> None:
    learned, random, log_of = Windowed(20), Random(0), list[tuple[int, float]]()
    for number in range(400):
        seed = random.randrange(3)
        reward = random.gauss(0, 1) * (1e12 if number % 37 == 0 else 1e-3)
        learned.learn(seed, reward, None)
        log_of.append((seed, reward))
    found = learned.means()
    learned.forget(1)
    assert set(found) - set(learned.means()) == {1}
    for _ in range(30):
        learned.learn(0, 0.5, None)
    assert learned.means() == {0: (20.0, 0.5)}
    for seed in (0, 2):
        rewards = [reward for own, reward in log_of[-20:] if own == seed]
        assert found[seed][0] == len(rewards)
        assert found[seed][1] == pytest.approx(sum(rewards) / len(rewards), rel=1e-6, abs=1e-6)


def test_a_seed_that_left_the_window_is_tried_next() -> None:
    strategy = SlidingUCB(window=10)
    learned = strategy.begin("fc1")
    for seed in (0, 1, *[1] * 10):
        learned.learn(seed, float(seed), None)
    metrics = LayerMetrics(learned)
    chosen, reason = strategy.decide([0, 1], metrics, SelectionContext(), Draws(0, "fc1", 0))
    assert chosen == 0
    assert "not tried in the layer's last 10 outcomes" in reason.reason


@pytest.mark.parametrize("name", ["discounted_ucb", "sliding_ucb", "change_ucb"])
def test_trainers_that_choose_at_once_spread_out(name: str) -> None:
    settings = {"explore": 0} if name == "change_ucb" else {}
    tracker = PerformanceTracker()
    selector = SeedSelector(STRATEGIES.create(name, **settings), tracker=tracker)
    for seed in range(4):  # all alike but for a hair
        for reward in (-0.1, 0.1):
            delta = PerformanceDelta(reward=reward + 0.01 * seed)
            tracker.update_metrics_now("fc1", seed, delta)
    waiting = list[Decision]()
    for epoch in range(8, 40):
        decision = selector.decide("fc1", range(4), SelectionContext(current_epoch=epoch))
        selector.commit("fc1", decision.seed_idx)
        selector.free("fc1", decision.seed_idx, epoch)
        waiting.append(decision)
    assert {decision.seed_idx for decision in waiting} == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learnt_goes_on_to_the_bit_after_json(kind: str) -> None:
    random, learned = Random(3), KINDS[kind]()
    for _ in range(300):
        learned.learn(random.choice((7, 2, 4)), random.gauss(0, 0.02), None)
    other = KINDS[kind]()
    other.load_state_dict(json.loads(json.dumps(learned.state_dict())))
    for _ in range(300):
        seed, reward = random.choice((7, 2, 4, 9)), random.gauss(0.02, 0.02)
        learned.learn(seed, reward, None)
        other.learn(seed, reward, None)
    assert other.state_dict() == learned.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_kind_is_refused(kind: str) -> None:
    learned = KINDS[kind]()
    learned.learn(0, 1.0, None)
    before = learned.state_dict()
    for state in (
        {},
        {"cells": [0.0] * 7},
        {"cells": ["x"]},
        {"cells": [float("nan")] * 6},
        {"cells": [0.0] * 6, "window": [0.0] * 200, "next": 0},
    ):
        if kind != "windowed" and "window" in state:
            continue
        with pytest.raises(ConfigError, match="state"):
            learned.load_state_dict(state)
        assert learned.state_dict() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_rewards_of_any_size_leave_finite_numbers(kind: str, factor: float) -> None:
    learned, random = KINDS[kind](), Random(4)
    for number in range(2000):
        shift = 1.0 if number > 1000 else 0.0
        learned.learn(number % 3, factor * (random.gauss(0, 1) + shift), None)
    learned.learn(0, 0.0, None)
    assert all(isfinite(value) for value in learned.cells)
    assert isfinite(learned.noise() / factor)


@pytest.mark.parametrize("kind", ["discounted", "cusum", "glr"])
def test_choices_of_units_do_not_matter(kind: str) -> None:
    plain, scaled, random = KINDS[kind](), KINDS[kind](), Random(6)
    for number in range(400):
        seed = random.randrange(3)
        reward = random.gauss(seed + (number > 200) * 2.0 * (seed == 0), 1.0)
        plain.learn(seed, reward, None)
        scaled.learn(seed, 1e-6 * reward + 3e-5, None)
    assert isinstance(plain, Discounted | Changing)
    assert isinstance(scaled, Discounted | Changing)
    for seed, (weight, mean) in plain.means().items():
        assert scaled.means()[seed][0] == pytest.approx(weight)
        assert (scaled.means()[seed][1] - 3e-5) * 1e6 == pytest.approx(mean, abs=1e-6)


def test_a_seed_left_alone_for_ever_keeps_a_finite_bound() -> None:
    learned = Discounted(0.5)
    learned.learn(0, 1.0, None)
    for number in range(3000):
        learned.learn(1, float(number % 2), None)
    _, bounds = learned.upper_bounds([0, 1], {}, 0.5)
    assert all(isfinite(bound) for bound in bounds.values())
    assert bounds[0] > bounds[1]


def test_a_forgotten_seed_begins_anew_and_rows_stay_in_order() -> None:
    for make in KINDS.values():
        learned = make()
        for seed in (5, 0, 3):
            learned.learn(seed, float(seed), None)
        learned.forget(3)
        learned.forget(17)
        assert [int(learned.cells[start]) for start in learned.rows()] == [0, 5]
        assert learned.row(3) == 0
        learned.learn(3, 9.0, None)
        assert [int(learned.cells[start]) for start in learned.rows()] == [0, 3, 5]


def test_knowledge_is_small() -> None:
    learned = Discounted(0.99)
    for seed in range(8):
        learned.learn(seed, 1.0, None)
    assert getsizeof(learned) + getsizeof(learned.cells) < 600


def test_changes_are_told_in_the_reason() -> None:
    strategy = ChangeUCB(explore=0)
    learned = strategy.begin("fc1")
    random = Random(0)
    for _ in range(40):
        learned.learn(0, random.gauss(0, 1), None)
        learned.learn(1, random.gauss(0, 1), None)
    for _ in range(20):
        learned.learn(1, random.gauss(4, 1), None)
    _, reason = strategy.decide(
        [0, 1], LayerMetrics(learned), SelectionContext(), Draws(0, "fc1", 0)
    )
    assert reason.seed_idx == 1
    assert "outcomes since its rewards changed" in reason.reason
    assert reason.propensities == {0: 0.0, 1: 1.0}


def test_a_tracker_that_learns_for_another_strategy_is_refused() -> None:
    metrics = LayerMetrics(Discounted(0.9))
    with pytest.raises(SelectionError, match="a tracker of its own"):
        SlidingUCB().decide([0], metrics, SelectionContext(), Draws(0, "fc1", 0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("discounted_ucb", {"discount": 0}),
        ("discounted_ucb", {"discount": 1.01}),
        ("discounted_ucb", {"exploration_constant": -1}),
        ("sliding_ucb", {"window": 1}),
        ("sliding_ucb", {"window": 20.0}),
        ("sliding_ucb", {"exploration_constant": float("nan")}),
        ("discounted_thompson", {"discount": float("nan")}),
        ("discounted_thompson", {"prior_count": 0}),
        ("sliding_thompson", {"window": True}),
        ("change_ucb", {"change_size": 0}),
        ("change_ucb", {"false_alarm": 0}),
        ("change_ucb", {"false_alarm": 1}),
        ("change_ucb", {"explore": -0.1}),
        ("exp3", {"rate": 0}),
        ("exp3", {"sharing": 1}),
        ("exp3", {"sharing": -1e-9}),
    ],
)
def test_bad_settings_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{name}.{next(iter(settings))}"):
        STRATEGIES.create(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "nearest"),
    [
        ("change_ucb", {"detector": "cusums"}, "cusum"),
        ("change_ucb", {"restart": "layers"}, "layer"),
        ("sliding_thompson", {"posterior": "gausian"}, "gaussian"),
        ("discounted_thompson", {"posterior": "bet"}, "beta"),
    ],
)
def test_unknown_choices_name_the_nearest(
    name: str, settings: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{nearest}'"):
        STRATEGIES.create(name, **settings)
