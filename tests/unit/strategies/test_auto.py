"""`auto` against its formulas written out plainly, and the memory of its knowledge."""

import json
import sys
from collections.abc import Callable, Sequence
from math import inf, isfinite, log, sqrt
from random import Random  # noqa: TID251 (the tests bring their own, seeded, world)

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.records.seed import SeedRecord
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies.pooled.auto import Auto
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.knowledge import PooledKnowledge

CONTEXT = SelectionContext()
POOL = Beliefs().pool.state_dict()


class Plain:
    """Index, noise, CUSUM and restarts by the formulas, in doubles and without any thrift."""

    def __init__(self, arms: int) -> None:
        self.n, self.mean = [0] * arms, [0.0] * arms
        self.up, self.down = (
            [list[float]() for _ in range(arms)],
            [list[float]() for _ in range(arms)],
        )
        self.g = [[0.0, 0.0] for _ in range(arms)]
        self.rewards = list[float]()
        self.m2 = self.total = self.centre = 0.0
        self.df = self.alarms = self.shared_falls = 0

    def variance(self) -> float:
        return (self.m2 + self.total / max(1, min(len(self.rewards), 1000) - 1)) / (self.df + 1)

    def indices(self) -> list[float]:
        average = sum(self.mean) / len(self.mean)
        trials = [n + 1 for n in self.n]
        means = [(n * mean + average) / (n + 1) for n, mean in zip(self.n, self.mean, strict=True)]
        top = max(means)
        lead, indices = trials[means.index(top)], []
        for n, mean in zip(trials, means, strict=True):
            phi = log(n) if n <= 250 else log(250) + 0.05 * (log(n) - log(250))
            gap2 = (top - mean) ** 2 / (2 * self.variance())
            indices.append(gap2 / (1 / n + 1 / lead) + phi)
        return indices

    def learn(self, arm: int, reward: float) -> None:
        n, mean, variance, ready = self.n[arm], self.mean[arm], self.variance(), self.df >= 5
        self.rewards.append(reward)
        off = reward - self.centre
        self.centre += off / min(len(self.rewards), 1000)
        if len(self.rewards) > 1000:
            self.total -= self.total / 1000
        self.total += off * (reward - self.centre)
        if not n:
            self.n[arm], self.mean[arm] = 1, reward
            return
        if self.df == 1000:
            self.m2 -= self.m2 / 1000
        self.df = min(self.df + 1, 1000)
        self.m2 += (reward - mean) ** 2 * n / (n + 1)
        for side, run in enumerate((self.up[arm], self.down[arm])):
            if not ready:
                continue
            m = min(n, 1000)
            z = (1 - 2 * side) * (reward - mean) / sqrt(variance * (1 + 1 / m))
            self.g[arm][side] = max(0.0, self.g[arm][side] + max(-2.0, min(z, 2.0)) - 0.25)
            run.append(reward)
            if not self.g[arm][side]:
                run.clear()
        for side, run in enumerate((self.up[arm], self.down[arm])):
            if self.g[arm][side] > 15:
                self.restart(arm, list(run), rose=not side)
                return
        self.n[arm] = n + 1
        self.mean[arm] += (reward - mean) / min(n + 1, 1000)

    def rescales(self, arm: int, run: list[float]) -> bool:
        """Whether all rewards share the fall of the best arm; then all are rescaled."""
        length, fresh = len(run), sum(run) / len(run)
        squares = sum((reward - fresh) ** 2 for reward in run)
        n, mean = self.n[arm], self.mean[arm]
        before = (mean * n - (length - 1) * fresh) / max(n - length + 1, 1)
        rest = self.m2 - squares - length * (fresh - mean) ** 2
        variance = max(rest, 1e-4 * self.m2) / (self.df - length)
        ratio = (squares / variance + 2) / (length + 1)
        evidence = (length - 1) / 2 * (ratio - 1 - log(ratio))
        alike = before > 0 and abs(log(max(fresh / before, 1e-3) / sqrt(ratio))) < 0.5
        if ratio >= 1 or evidence <= 3 or not alike:
            return False
        self.shared_falls += 1
        self.mean = [fresh + (mean - before) * sqrt(ratio) for mean in self.mean]
        self.n = [min(n, 100) for n in self.n]
        self.m2 = variance * ratio * self.df
        for other in range(len(self.n)):
            self.up[other], self.down[other], self.g[other] = [], [], [0.0, 0.0]
        return True

    def restart(self, arm: int, run: list[float], *, rose: bool) -> None:
        lead = self.mean.index(max(self.mean))
        if not rose and arm == lead and self.rescales(arm, run):
            return
        self.alarms += 1
        mean = sum(run) / len(run)
        everything = not rose if arm == lead else mean > self.mean[lead]
        self.n[arm], self.mean[arm] = min(len(run), 8), mean
        average = sum(self.mean) / len(self.mean)
        for other in range(len(self.n)):
            if other != arm and everything:
                self.n[other], self.mean[other] = min(self.n[other], 8), average
            if other == arm or everything:
                self.up[other], self.down[other], self.g[other] = [], [], [0.0, 0.0]


def _play(
    means: Callable[[int], Sequence[float]], steps: int, seed: int, factor: float, shift: float
) -> tuple[list[int], Beliefs]:
    """What `auto` chooses, every outcome coming at once."""
    random, strategy = Random(seed), Auto()
    learned = strategy.begin("fc1")
    metrics = LayerMetrics(learned)
    chosen = list[int]()
    for step in range(steps):
        now = means(step)
        arm = step
        if step >= len(now):
            arm, _ = strategy.decide(range(len(now)), metrics, CONTEXT, Draws(0, "fc1", step))
        learned.learn(arm, factor * random.gauss(now[arm], 1.0) + shift, None)
        chosen.append(arm)
    return chosen, learned.rewards


def _still(step: int) -> list[float]:
    return [arm * 0.2 for arm in range(8)]


def _changing(step: int) -> list[float]:
    return [((arm + 3 * (step // 400)) % 5) * 0.4 for arm in range(5)]


@pytest.mark.parametrize("means", [_still, _changing])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chooses_as_its_formulas_say(means: Callable[[int], Sequence[float]], seed: int) -> None:
    chosen, learned = _play(means, 3000, seed, 1.0, 0.0)
    random, plain = Random(seed), Plain(len(means(0)))
    for step, arm in enumerate(chosen):
        if step >= len(means(step)):
            indices = plain.indices()
            assert indices[arm] == pytest.approx(min(indices), abs=1e-6)  # ties are drawn
        plain.learn(arm, random.gauss(means(step)[arm], 1.0))
    assert learned.restarts == plain.alarms
    assert learned.noise() == pytest.approx(sqrt(plain.variance()), rel=1e-6)
    for arm, (mean, count) in learned.means().items():
        assert count == plain.n[arm]
        assert mean == pytest.approx(plain.mean[arm], rel=1e-5, abs=1e-6)


def test_rewards_that_change_raise_alarms_and_steady_ones_do_not() -> None:
    assert all(_play(_still, 3000, seed, 1.0, 0.0)[1].restarts <= 1 for seed in range(4))
    assert all(_play(_changing, 3000, seed, 1.0, 0.0)[1].restarts >= 5 for seed in range(4))


def test_rewards_that_shrink_together_keep_their_order() -> None:
    random, learned, levels = Random(3), Beliefs(), (0.5, 1.0, 2.0)
    for _ in range(200):
        for seed_idx, level in enumerate(levels):
            learned.learn(seed_idx, random.gauss(level, 1.0), None)
    noise = learned.noise()
    while learned.since:  # the best alone is tried again, and its rewards are a half
        learned.learn(2, random.gauss(levels[2], 1.0) / 2, None)
    means = [mean for mean, _ in learned.means().values()]
    assert not learned.restarts
    assert means == pytest.approx([level / 2 for level in levels], abs=0.25)
    assert means == sorted(means)
    assert learned.noise() < 0.8 * noise


def test_the_best_alone_falls_and_the_others_are_in_doubt() -> None:
    random, learned, levels = Random(3), Beliefs(), (1.0, 2.0, 3.0)
    for _ in range(60):
        for seed_idx, level in enumerate(levels):
            learned.learn(seed_idx, random.gauss(level, 0.3), None)
    while learned.since:  # with the same spread
        learned.learn(2, random.gauss(levels[2] / 3, 0.3), None)
    assert learned.restarts == 1
    assert learned.means()[0] == learned.means()[1]


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1e-12, 0.0), (1.0, 100.0)])
def test_factor_and_shift_change_no_choice(factor: float, shift: float) -> None:
    assert _play(_changing, 2000, 7, factor, shift)[0] == _play(_changing, 2000, 7, 1.0, 0.0)[0]


def test_knowledge_of_eight_seeds_fits_in_440_bytes() -> None:
    learned = Beliefs()
    for seed_idx in (3, 0, 7, 1, 2, 6, 5, 4):
        learned.learn(seed_idx, 0.1 * seed_idx, None)
    parts = [learned._cells, learned._seeds]  # the pool is one for all layers
    assert not hasattr(learned, "__dict__")
    assert sys.getsizeof(learned) + sum(sys.getsizeof(x) for x in parts if x is not None) <= 440


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (4, 6, 0, 9)])
def test_state_goes_on_to_the_last_bit(seeds: Sequence[int]) -> None:
    random = Random(3)
    one, two = Beliefs(), Beliefs()
    for step in range(700):
        one.learn(seeds[random.randrange(4)], random.gauss(step // 300, 0.3), None)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(500):
        seed_idx, reward = seeds[random.randrange(4)], random.gauss(step // 300, 0.3)
        one.learn(seed_idx, reward, None)
        two.learn(seed_idx, reward, None)
    assert one.restarts > 0
    assert one.state_dict() == two.state_dict()
    assert one.means() == two.means()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"cells": [1.0]},
        {"layer": [0.0] * 3, "seeds": [], "rows": [], "pool": POOL},
        {"layer": [0.0, 0.0, 0.0, 0, 0, 0, 0], "seeds": [1], "rows": [], "pool": POOL},
        {"layer": [0.0] * 3 + [0] * 4, "seeds": [], "rows": [], "pool": {}},
        {"layer": [float("nan"), 0.0, 0.0, 0, 0, 0, 0], "seeds": [], "rows": [], "pool": POOL},
        {
            "layer": [0.0, 0.0, 0.0, 0, 0, 0, 0],
            "seeds": [2, 2],
            "rows": [[0.0] * 6 + [0, 0, 0]] * 2,
            "pool": POOL,
        },
    ],
)
def test_a_foreign_state_is_refused_and_nothing_changes(state: dict[str, object]) -> None:
    learned = Beliefs()
    learned.learn(0, 1.0, None)
    before = learned.state_dict()
    with pytest.raises(ConfigError, match="layer, seeds, rows and pool"):
        learned.load_state_dict(state)
    assert learned.state_dict() == before


@pytest.mark.parametrize("size", [1e-12, 1e12, 1e60])
def test_many_large_or_small_rewards_leave_all_finite(size: float) -> None:
    random, learned = Random(1), PooledKnowledge()
    for step in range(20_000):
        learned.learn(random.randrange(3), size * random.choice((1, 1, 1, 3 - step // 9000)), None)
    metrics = LayerMetrics(learned)
    _, reason = Auto().decide([0, 1, 2], metrics, CONTEXT, Draws(0, "fc1", 0))
    assert all(map(isfinite, reason.scores.values()))
    assert learned.rewards.restarts > 0


def test_a_rebound_seed_begins_anew() -> None:
    learned = Beliefs()
    for seed_idx in (0, 1, 2):
        learned.learn(seed_idx, 0.1 * seed_idx, None)
    learned.forget(1)
    learned.forget(8)
    assert set(learned.means()) == {0, 2}
    learned.learn(1, 5.0, None)
    assert learned.means()[1] == (5.0, 1.0)


def test_pending_choices_count_so_parallel_trainers_spread() -> None:
    strategy, tracker = Auto(), PerformanceTracker()
    selector = SeedSelector(strategy, tracker=tracker, seed=4)
    for seed_idx, reward in enumerate((0.0, 0.1, 0.2, 0.1)):
        for noise in (-0.2, 0.2):
            tracker.update_metrics_now("fc1", seed_idx, PerformanceDelta(reward=reward + noise))
    taken = list[int]()
    for _ in range(8):
        decision = selector.decide("fc1", range(4), CONTEXT)
        selector.commit("fc1", decision.seed_idx)
        selector.free("fc1", decision.seed_idx, epoch=0)
        taken.append(decision.seed_idx)
    assert taken[0] == 2
    assert len(set(taken)) >= 3


def test_the_best_of_those_that_may_be_chosen_is_the_yardstick() -> None:
    strategy = Auto()
    learned = strategy.begin("fc1")
    for _ in range(30):
        for seed_idx, reward in enumerate((0.0, 1.0, 9.0)):
            for noise in (-0.5, 0.5):
                learned.learn(seed_idx, reward + noise, None)
    chosen, reason = strategy.decide([0, 1], LayerMetrics(learned), CONTEXT, Draws(0, "fc1", 0))
    assert chosen == 1
    assert reason.reason.startswith("best mean by ")


def test_says_why() -> None:
    strategy = Auto()
    learned = strategy.begin("fc1")
    metrics = LayerMetrics(learned)

    def why(viable: Sequence[int] = (0, 1)) -> str:
        return strategy.decide(viable, metrics, CONTEXT, Draws(0, "fc1", 0))[1].reason

    assert why() == "not ruled out: no outcome yet"
    for reward in (0.2, 0.4) * 2:
        learned.learn(0, reward, None)
    assert why([0]) == "the only one with a mean over 4 outcomes"
    learned.learn(1, 0.2, None)
    assert why() == "not ruled out: 0.6 sd behind over 1 outcome"
    for _ in range(6):
        learned.learn(1, 0.1, None)
    assert why() == "best mean by 2.0 sd over 4 outcomes"
    for reward in (0.2, 0.4) * 20:
        learned.learn(0, reward, None)
    while not learned.rewards.restarts:
        learned.learn(0, 0.9, None)
    assert why().endswith("; restarted after a change")
    learned.learn(0, 0.9, None)
    assert why().endswith("; restarted after a change, 1 outcome ago")


def test_a_seed_without_any_outcome_does_not_hold_up_the_layer() -> None:
    strategy = Auto()
    learned = strategy.begin("fc1")
    metrics = LayerMetrics(learned)
    for seed_idx in range(3):
        metrics[seed_idx] = SeedRecord("fc1", seed_idx, "")
        metrics[seed_idx].choose("", 0)
    for reward in (0.1, 0.3):
        learned.learn(0, reward, None)
        learned.learn(1, reward / 2, None)
    taken = list[int]()
    for step in range(60):
        chosen, reason = strategy.decide([0, 1, 2], metrics, CONTEXT, Draws(0, "fc1", step))
        assert inf not in reason.scores.values()
        metrics[chosen].choose("", step)
        if chosen != 2:
            learned.learn(chosen, 0.2 + 0.1 * (-1) ** step if chosen == 0 else 0.1, None)
            metrics[chosen].add(0.2, None, None, window_size=8, decay_factor=1.0)
        taken.append(chosen)
    assert 1 <= taken.count(2) < 30


def test_a_second_run_and_a_resumed_one_know_the_same() -> None:
    store, strategy = MemoryStore(), Auto()
    tracker = PerformanceTracker(store=store, run="a")
    selector = SeedSelector(strategy, tracker=tracker, seed=5)
    random = Random(2)
    for step in range(120):
        decision = selector.decide("fc1", range(3), SelectionContext(current_epoch=step))
        delta = PerformanceDelta(reward=random.gauss(decision.seed_idx + step // 60, 0.4))
        tracker.update_metrics_now("fc1", decision.seed_idx, delta, decision=decision)
    other = PerformanceTracker(store=store, run="b")
    SeedSelector(strategy, tracker=other)
    states = []
    for known in (tracker, other):
        layer = known.layer("fc1")
        assert layer is not None
        assert isinstance(layer.seeds.knowledge, PooledKnowledge)
        states.append(layer.seeds.knowledge.state_dict())
    assert states[0] == states[1]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), inf, "1"])
@pytest.mark.parametrize("setting", ["exploration", "horizon"])
def test_bad_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"auto.{setting} is"):
        Auto(**{setting: value})  # type: ignore[arg-type]  # that is the point
