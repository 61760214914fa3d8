"""Contextual strategies: features, regressions, and their accuracy over many updates."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from math import inf, isfinite, log1p, nan, sqrt
from random import Random  # noqa: TID251 (a world of its own, seeded)
from statistics import fmean

import numpy as np
import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.health import HealthSignal
from esper.contracts.performance import PerformanceDelta
from esper.contracts.performance import SeedPerformanceMetrics as Seed
from esper.contracts.selection import Decision, SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.contextual.features import NAMES, WIDTH, of_decision, of_seeds
from esper.strategies.contextual.joint_draws import JointDraw
from esper.strategies.contextual.knowledge import LinearKnowledge
from esper.strategies.contextual.linear import LinTS, LinUCB
from esper.strategies.contextual.predictions import after_trials
from esper.strategies.contextual.ridge import Ridges
from esper.strategies.posteriors import BestDraw
from esper.strategies.ucb import UCB
from esper.testing.strategy_laws import Make, StrategyLaws

KINDS = ("glu", "gate", "conv_block", "lowrank")
Gains = Callable[[float, str], list[float]]
"""True gain of each seed, by how large the gradient is, in [-1, 1], and the layer's type."""


class TestSharedLinUCB(StrategyLaws):
    @pytest.fixture
    def make(self) -> Make:
        return partial(LinUCB, model="shared")


class TestLinUCBOfThePaper(StrategyLaws):
    @pytest.fixture
    def make(self) -> Make:
        return partial(LinUCB, alpha=2.0, grows=False)


class TestSharedLinTS(StrategyLaws):
    @pytest.fixture
    def make(self) -> Make:
        return partial(LinTS, model="shared")


# The regression


def test_a_regression_says_what_solving_it_afresh_says() -> None:
    generator = np.random.default_rng(0)
    model, ridge, width = Ridges(5, 0.7), 0.7, 5
    arm = model.add()
    xs, rewards = generator.standard_normal((40, width)), generator.normal(3.0, 2.0, 40)
    for x, reward in zip(xs, rewards, strict=True):
        model.learn(arm, x, float(reward))
    a = ridge * np.eye(width) + xs.T @ xs
    x = generator.standard_normal(width)
    means, variances = model.at(x)
    wanted = x @ np.linalg.solve(a, xs.T @ (rewards - rewards.mean())) / model.scale
    assert means[arm] == pytest.approx(wanted, abs=1e-9)
    assert variances[arm] == pytest.approx(x @ np.linalg.solve(a, x), abs=1e-9)
    assert model.centre == pytest.approx(rewards.mean(), abs=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e12, 1e-12])
def test_a_hundred_thousand_updates_leave_it_accurate(size: float) -> None:
    generator = np.random.default_rng(1)
    model, width, count = Ridges(10, 1.0), 10, 100_000
    arm, other = model.add(), model.add()
    xs = generator.standard_normal((count, width))
    xs[:, 0], xs[:, 1] = 1.0, 0.5  # two constants: only the ridge tells them apart
    xs[:, 2] = 3.0 + 1e-3 * xs[:, 2]
    rewards = (xs[:, 3] - 0.3 * xs[:, 4] + generator.normal(0, 1, count) + 5.0) * size
    for number, (x, reward) in enumerate(zip(xs, rewards.tolist(), strict=True)):
        model.learn(arm if number % 7 else other, x, reward)
    own = np.arange(count) % 7 != 0
    a = np.eye(width) + xs[own].T @ xs[own]
    theta = np.linalg.solve(a, xs[own].T @ (rewards[own] - rewards.mean()))
    for x in xs[:20]:
        means, variances = model.at(x)
        assert means[arm] == pytest.approx(x @ theta / model.scale, abs=1e-6)
        assert variances[arm] == pytest.approx(x @ np.linalg.solve(a, x), abs=1e-6)
    # What features do not explain is the noise, of standard deviation 1.
    assert model.scale == pytest.approx(size, rel=0.02)


def test_equal_rewards_say_nothing_of_any_seed() -> None:
    model = Ridges(3, 1.0)
    arm = model.add()
    for _ in range(5):
        model.learn(arm, np.array([1.0, 0.2, -0.4]), 1e12)
    means, variances = model.at(np.array([1.0, 0.2, -0.4]))
    assert (model.scale, means) == (inf, [0.0])
    assert 0 < variances[0] < 0.2


def test_a_regression_begun_anew_knows_nothing_but_the_yardstick() -> None:
    model = Ridges(2, 1.0)
    one, two = model.add(), model.add()
    for number in range(100):
        model.learn(number % 2, np.array([1.0, 0.1]), float(number % 3))
    kept, scale = model.at(np.array([1.0, 0.1])), model.scale
    model.reset(two)
    means, variances = model.at(np.array([1.0, 0.1]))
    assert (means[two], variances[two]) == pytest.approx((0.0, 1.01))
    assert means[one] == kept[0][one]
    assert model.scale == scale
    assert model.counts == [50, 0]


def test_choices_without_an_outcome_narrow_what_is_known() -> None:
    covariance = np.array([[1.0, 0.5], [0.5, 2.0]])
    assert after_trials(covariance, [0, 0]) is covariance
    after = after_trials(covariance, [2, 0])
    wanted = np.linalg.inv(np.linalg.inv(covariance) + np.diag([2.0, 0.0]))
    assert after == pytest.approx(wanted)


def test_both_ways_to_the_chance_of_a_draw_agree() -> None:
    means, sds = (0.3, 0.0, -0.2), (0.5, 1.0, 0.7)
    exact = BestDraw("gaussian", tuple(enumerate(zip(means, sds, strict=True)))).all()
    factor = tuple(map(tuple, np.diag(sds).tolist()))
    drawn = JointDraw((0, 1, 2), means, factor)
    assert sum(drawn.all().values()) == pytest.approx(1.0)
    for seed, chance in drawn.all().items():
        assert chance == pytest.approx(exact[seed], abs=drawn.error + 0.002)
    assert JointDraw((4,), (0.0,), ((1.0,),)).error == 0
    certain = JointDraw((0, 1), (0.0, 99.0), ((1.0, 0.0), (0.0, 1.0)))
    assert 0 < certain.of(0) < 1e-4


# Features


def test_features_are_of_one_length_whatever_is_missing() -> None:
    health = HealthSignal(layer_name="fc1", epoch=3, gradient_rms=0.5, loss_trend=-0.02)
    for context in (
        SelectionContext(),
        SelectionContext(current_epoch=10**9, layer_type="Conv2d", urgency=0.3),
        SelectionContext(health=health, parameters={0: 1000, 5: 0}),
        SelectionContext(health=HealthSignal(layer_name="fc1", epoch=3), blueprints={7: "x"}),
    ):
        for seen in of_seeds(context, [0, 5, 99]).values():
            assert len(seen) == WIDTH
            assert all(abs(value) <= 1.5 for value in seen)


def test_unmeasured_is_neither_zero_nor_healthy() -> None:
    def seen(**measured: float) -> dict[str, float]:
        health = HealthSignal(layer_name="fc1", epoch=0, **measured)
        return dict(zip(NAMES, of_seeds(SelectionContext(health=health), [0])[0], strict=True))

    assert seen()["dead_fraction missing"] > 0
    assert seen(dead_fraction=0.0)["dead_fraction missing"] == 0
    assert seen(dead_fraction=0.0)["dead_fraction"] < 0 < seen(dead_fraction=0.9)["dead_fraction"]
    assert seen(loss_trend=-0.2)["loss_trend"] < seen(loss_trend=0.2)["loss_trend"]
    for broken in (nan, inf, -inf):
        assert seen(gradient_rms=broken) == seen()


def test_numbers_that_make_no_sense_count_as_missing() -> None:
    none = of_seeds(SelectionContext(), [0])
    assert of_seeds(SelectionContext(urgency=nan), [0]) == none
    assert of_seeds(SelectionContext(parameters={0: -3}), [0]) == none
    assert of_seeds(SelectionContext(parameters={0: 10}), [0]) != none


def test_layer_types_differ_and_stay_what_they_are() -> None:
    types = ("Linear", "Conv1d", "Conv2d", "MultiheadAttention", "Embedding", "")
    assert len({of_seeds(SelectionContext(layer_type=name), [0])[0] for name in types}) == 6
    signs = of_seeds(SelectionContext(layer_type="Linear"), [0])[0][16:22]
    assert [value > 0 for value in signs] == LINEAR_SIGNS


LINEAR_SIGNS = [False, False, True, False, True, True]
"""As they were first written to a log."""


def test_a_choice_is_learnt_by_what_was_seen_when_it_was_made() -> None:
    selector = SeedSelector(LinUCB())
    context = SelectionContext(current_epoch=4, layer_type="Linear", urgency=0.9)
    first = selector.decide("fc1", [0], context)
    assert first.reason.features == ()  # a first try is the selector's, not the strategy's
    blind = SelectionContext(current_epoch=4, layer_type="Linear")
    assert of_decision(first) == of_seeds(blind, [0])[0]
    selector.release("fc1", 0)
    second = selector.decide("fc1", [0], context)
    assert of_decision(second) == of_seeds(context, [0])[0] == second.reason.features


# Learning


@pytest.mark.parametrize("make", [LinUCB, LinTS, partial(LinUCB, model="shared")])
def test_learns_which_seed_is_best_where_context_only_shifts_rewards(make: Make) -> None:
    def gains(gradient: float, _: str) -> list[float]:
        return [0.01 * gradient + own for own in (0.0, 0.01, 0.03, 0.005)]

    losses = [_regret(make(), gains, seed=seed) for seed in range(4)]
    by_chance = 400 * (0.03 - fmean([0.0, 0.01, 0.03, 0.005]))
    assert max(losses) < 0.35 * by_chance


GAINS: dict[str, Gains] = {
    "gradient": lambda gradient, _: [0.03 * gradient, -0.03 * gradient, 0.01, 0.0],
    "type": lambda _, kind: [0.03, 0.0, 0.01, 0.0] if kind == "Linear" else [0.0, 0.03, 0.01, 0.0],
}


@pytest.mark.parametrize(
    "make",
    [LinUCB, LinTS, partial(LinUCB, model="shared"), partial(LinTS, model="shared")],
)
@pytest.mark.parametrize("what", GAINS)
def test_beats_ucb_where_the_best_seed_depends_on_the_context(make: Make, what: str) -> None:
    his = _of_ucb(what)
    pairs = [(_regret(make(), GAINS[what], seed=seed), lost) for seed, lost in enumerate(his)]
    assert all(mine < his for mine, his in pairs)
    assert fmean([mine for mine, _ in pairs]) < 0.7 * fmean([his for _, his in pairs])


@cache
def _of_ucb(what: str) -> list[float]:
    return [_regret(UCB(), GAINS[what], seed=seed) for seed in range(4)]


def _regret(strategy: SelectionStrategy, gains: Gains, *, seed: int, choices: int = 400) -> float:
    random, selector, lost = Random(seed), SeedSelector(strategy, seed=seed), 0.0
    for number in range(choices):
        gradient, layer_type = random.uniform(-1, 1), random.choice(["Linear", "Conv2d"])
        layer = f"layer{random.randrange(3)}"
        context = _context(layer, number // 20, gradient, layer_type)
        seed_idx, _ = selector.select_seed_now(layer, range(4), context)
        own = gains(gradient, layer_type)
        delta = PerformanceDelta(reward=random.gauss(own[seed_idx], 0.02))
        selector.performance_tracker.update_metrics_now(layer, seed_idx, delta)
        lost += max(own) - own[seed_idx]
    return lost


def _context(layer: str, epoch: int, gradient: float, layer_type: str) -> SelectionContext:
    health = HealthSignal(layer_name=layer, epoch=epoch, gradient_rms=0.5 * 3.0**gradient)
    return SelectionContext(
        current_epoch=epoch,
        layer_type=layer_type,
        health=health,
        blueprints=dict(enumerate(KINDS)),
    )


# Layers and histories


@pytest.mark.parametrize("model", ["disjoint", "shared"])
def test_a_new_layer_starts_from_what_others_earned_with_the_blueprint(model: str) -> None:
    strategy = STRATEGIES.create("linucb", model=model)
    selector = SeedSelector(strategy)
    _teach(selector, "old", {"glu": 0.05, "gate": 0.0}, times=15)
    _teach(selector, "new", {"gate": 0.0, "glu": 0.05}, times=1)  # the other way round
    context = SelectionContext(blueprints={0: "gate", 1: "glu"})
    seed_idx, reason = selector.select_seed_now("new", [0, 1], context)
    assert seed_idx == 1
    assert "16 outcomes of 'glu'" in reason.reason or "32 outcomes in all" in reason.reason


def test_seeds_without_a_blueprint_are_only_themselves() -> None:
    selector = SeedSelector(LinUCB())
    _teach(selector, "one", {"": 0.05}, times=10)
    tracker = selector.performance_tracker
    tracker.record_selection("two", 0)
    layers = [tracker.layer(name) for name in ("one", "two")]
    known, unknown = [
        LinUCB().decide([0], layer.seeds, SelectionContext(), Draws(0, "x", 0))[1].reason
        for layer in layers
        if layer is not None
    ]
    assert "10 outcomes" in known
    assert "no outcome yet" in unknown


def test_two_histories_with_one_strategy_do_not_mix() -> None:
    strategy = LinUCB()
    one, two, alone = (SeedSelector(strategy, seed=1) for _ in range(3))
    _teach(one, "fc1", {"glu": 0.0, "gate": 0.9}, times=20)
    _teach(two, "fc1", {"glu": 0.05, "gate": 0.0}, times=20)
    _teach(alone, "fc1", {"glu": 0.05, "gate": 0.0}, times=20)
    context = SelectionContext(blueprints={0: "glu", 1: "gate"})
    wanted = alone.decide("fc1", [0, 1], context).reason
    assert two.decide("fc1", [0, 1], context).reason == wanted
    assert one.decide("fc1", [0, 1], context).reason.scores != wanted.scores


@pytest.mark.parametrize("name", ["linucb", "lin_ts"])
@pytest.mark.parametrize("model", ["disjoint", "shared"])
def test_a_second_run_on_the_store_knows_the_same(name: str, model: str) -> None:
    store, strategy = MemoryStore(), STRATEGIES.create(name, model=model)
    first = SeedSelector(strategy, tracker=PerformanceTracker(store=store, run="one"))
    waiting: list[Decision] = []
    for number in range(60):
        layer = f"fc{number % 3}"
        decision = first.decide(layer, range(4), _context(layer, number, number / 60, "Linear"))
        first.commit(layer, decision.seed_idx)
        first.free(layer, decision.seed_idx, epoch=number)
        waiting.append(decision)
        if number % 4 == 3:  # late, the latest first
            while waiting:
                late = waiting.pop()
                delta = PerformanceDelta(reward=0.01 * late.seed_idx + 0.001 * (number % 7))
                first.performance_tracker.update_metrics_now(
                    late.layer_name, late.seed_idx, delta, decision=late
                )
    second = SeedSelector(strategy, tracker=PerformanceTracker(store=store, run="two"))
    context = _context("fc1", 60, 0.2, "Linear")
    reasons = [
        strategy.decide(range(4), layer.seeds, context, Draws(0, "fc1", 9))[1]
        for selector in (first, second)
        for layer in (selector.performance_tracker.layer("fc1"),)
        if layer is not None
    ]
    assert reasons[0] == reasons[1]
    assert any(reasons[0].scores.values())


@pytest.mark.parametrize("model", ["disjoint", "shared"])
def test_choices_at_once_are_spread(model: str) -> None:
    selector = SeedSelector(STRATEGIES.create("linucb", model=model))
    _teach(selector, "fc1", {"glu": 0.02, "gate": 0.02, "se": 0.02}, times=6)
    context = SelectionContext(blueprints={0: "glu", 1: "gate", 2: "se"})
    chosen = []
    for _ in range(12):
        decision = selector.decide("fc1", range(3), context)
        selector.commit("fc1", decision.seed_idx)
        selector.free("fc1", decision.seed_idx, epoch=0)
        chosen.append(decision.seed_idx)
    assert len(set(chosen)) > 1  # the same twelve times, were they not counted


def test_a_slot_that_gets_a_blueprint_forgets_what_it_earned_without() -> None:
    knowledge = LinearKnowledge("fc1", "disjoint", 1.0)
    for number in range(9):
        knowledge.learn(number % 2, float(number % 2), None)
    knowledge.forget(1)
    knowledge.forget(7)
    seen = knowledge.predict([0, 1], {}, SelectionContext())
    assert seen.support == [(5, "", -1), (0, "", -1)]
    assert seen.means[0] < 0 == seen.means[1]


def test_a_layer_with_and_without_blueprints_has_one_yardstick() -> None:
    knowledge = LinearKnowledge("fc1", "disjoint", 1.0)
    seen, random = of_seeds(SelectionContext(), [0])[0], Random(0)
    for _ in range(200):
        knowledge.take(0, "glu", seen, random.gauss(1.0, 0.1))
        knowledge.take(2, "gate", seen, random.gauss(0.5, 0.1))
        knowledge.take(1, "", seen, random.gauss(0.8, 0.3))
    context = SelectionContext(blueprints={0: "glu", 2: "gate"})
    means = knowledge.predict([0, 1, 2], {}, context).means
    assert means[0] > means[1] > means[2]
    assert means[0] - means[1] == pytest.approx(0.2 / 0.1, abs=0.5)


def _teach(
    selector: SeedSelector,
    layer: str,
    rewards: dict[str, float],
    *,
    times: int,
    noise: float = 0.01,
) -> None:
    random = Random(0)
    context = SelectionContext(blueprints={seed: kind for seed, kind in enumerate(rewards) if kind})
    for _ in range(times):
        for seed_idx, reward in enumerate(rewards.values()):
            selector.select_seed_now(layer, [seed_idx], context)
            delta = PerformanceDelta(reward=random.gauss(reward, noise))
            selector.performance_tracker.update_metrics_now(layer, seed_idx, delta)


# State


@pytest.mark.parametrize("model", ["disjoint", "shared"])
def test_state_goes_on_bit_for_bit(model: str) -> None:
    strategy = STRATEGIES.create("linucb", model=model)
    selector = SeedSelector(strategy)
    _teach(selector, "fc1", {"glu": 0.05, "gate": 0.0, "": 0.01}, times=700)
    layer = selector.performance_tracker.layer("fc1")
    assert layer is not None
    one = layer.seeds.knowledge
    assert isinstance(one, LinearKnowledge)
    two = strategy.begin("fc1")
    assert isinstance(two, LinearKnowledge)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    seen = of_seeds(SelectionContext(current_epoch=2), [0])[0]
    for number in range(700):  # beyond the next time that it is solved anew
        for knowledge in (one, two):
            knowledge.take(number % 3, ("glu", "gate", "")[number % 3], seen, 0.01 * number)
    assert json.dumps(one.state_dict()) == json.dumps(two.state_dict())
    context = SelectionContext(blueprints={0: "glu", 1: "gate"})
    assert one.predict([0, 1, 2], {}, context).means == two.predict([0, 1, 2], {}, context).means


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    knowledge = LinearKnowledge("fc1", "disjoint", 1.0)
    knowledge.learn(0, 1.0, None)
    before = json.dumps(knowledge.state_dict())
    other = LinearKnowledge("fc1", "shared", 1.0).state_dict()
    with pytest.raises(ConfigError, match="'shared', not of 'disjoint'"):
        knowledge.load_state_dict(other)
    damaged = json.loads(before)
    damaged["alone"]["solved"].pop()
    with pytest.raises(ConfigError, match="damaged"):
        knowledge.load_state_dict(damaged)
    damaged = json.loads(before)
    damaged["pool"]["width"] = 3
    with pytest.raises(ConfigError, match="3 features"):
        knowledge.load_state_dict(damaged)
    assert json.dumps(knowledge.state_dict()) == before


# Bad settings and odd numbers


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("linucb", {"alpha": -1}, "linucb.alpha is -1; it must be a number > 0"),
        ("linucb", {"alpha": nan}, "linucb.alpha is nan"),
        ("linucb", {"ridge": 0}, "linucb.ridge is 0"),
        ("linucb", {"grows": "yes"}, "linucb.grows is 'yes'; it must be true or false"),
        ("linucb", {"model": "share"}, "Did you mean 'shared'"),
        ("lin_ts", {"v": 0}, "lin_ts.v is 0"),
        ("lin_ts", {"ridge": inf}, "lin_ts.ridge is inf"),
        ("lin_ts", {"model": "disjoined"}, "Did you mean 'disjoint'"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        STRATEGIES.create(name, **settings)


@pytest.mark.parametrize("name", ["linucb", "lin_ts", "neural"])
@pytest.mark.parametrize("size", [1e-12, 1e12, 1e90])
def test_rewards_of_any_size_give_finite_scores(name: str, size: float) -> None:
    random, selector = Random(3), SeedSelector(STRATEGIES.create(name))
    for number in range(150):
        context = SelectionContext(current_epoch=number, blueprints={0: "glu"})
        seed_idx, reason = selector.select_seed_now("fc1", range(3), context)
        assert number < 3 or all(map(isfinite, reason.scores.values()))
        delta = PerformanceDelta(reward=size * random.gauss(seed_idx, 0.5))
        selector.performance_tracker.update_metrics_now("fc1", seed_idx, delta)
    assert selector.select_seed_now("fc1", range(3), SelectionContext(current_epoch=150))[0] == 2


def test_the_interval_grows_only_where_it_is_asked_to() -> None:
    metrics = {seed: Seed(seed, "fc1", rewards=[1.0, 2.0, seed]) for seed in range(2)}
    context = SelectionContext()
    known = LinearKnowledge("", "disjoint", 1.0)
    for seed, record in metrics.items():
        for reward in record.rewards or []:
            known.take(seed, "", of_seeds(context, [0])[0], reward)
    seen = known.predict([0, 1], {}, context)
    for grows, factor in ((False, 1.0), (True, sqrt(log1p(6)))):
        _, reason = LinUCB(alpha=1.5, grows=grows).decide(
            [0, 1], metrics, context, Draws(0, "fc1", 0)
        )
        for seed in (0, 1):
            width = 1.5 * factor * sqrt(seen.variances[seed])
            assert reason.scores[seed] == pytest.approx(seen.means[seed] + width)


def test_choosing_a_seed_by_other_strategies_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, esper.strategies.contextual.features; "
        "from esper.strategies import STRATEGIES; "
        "import esper.services.tamiyo.seed_selector; STRATEGIES.create('ucb'); "
        "sys.exit(' '.join({'numpy', 'torch'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    linear = code.replace("create('ucb')", "create('linucb')").replace("'numpy', ", "")
    done = subprocess.run(
        [sys.executable, "-c", linear], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
