"""`hierarchical`: strength and gain of pooling, and that no seed starves."""

import json
from collections.abc import Mapping, Sequence
from math import exp, inf, log, sqrt
from random import Random  # noqa: TID251 (the tests bring their own, seeded, world)
from statistics import fmean, variance

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.strategies.pooled.auto import Hierarchical
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.evidence import posterior_means
from esper.strategies.pooled.knowledge import PooledKnowledge
from esper.strategies.pooled.pooling import between

BLUEPRINTS = ("glu", "lowrank", "bottleneck", "conv_block", "depthwise")


def _context(order: Sequence[int] = range(5), layer_type: str = "Linear") -> SelectionContext:
    blueprints = {seed: BLUEPRINTS[kind] for seed, kind in enumerate(order)}
    return SelectionContext(layer_type=layer_type, blueprints=blueprints)


def _answer(selector: SeedSelector, layer: str, context: SelectionContext, reward: float) -> int:
    """One choice, and an outcome that does not depend on it."""
    decision = selector.decide(layer, range(len(context.blueprints)), context)
    delta = PerformanceDelta(reward=reward)
    tracker = selector.performance_tracker
    tracker.update_metrics_now(layer, decision.seed_idx, delta, decision=decision)
    return decision.seed_idx


def _learn(selector: SeedSelector, layer: str, rewards: Mapping[int, Sequence[float]]) -> None:
    """Rewards of kinds in a layer, each kind in the seed of its number."""
    for seed, values in rewards.items():
        context = SelectionContext(layer_type="Linear", blueprints={seed: BLUEPRINTS[seed]})
        for value in values:
            decision = selector.decide(layer, [seed], context)
            delta = PerformanceDelta(reward=value)
            selector.performance_tracker.update_metrics_now(layer, seed, delta, decision=decision)


def _gain(name: str, runs: int) -> float:
    """What is earned relative to chance: six layers, five kinds, thirty choices in all."""
    earned = chance = 0.0
    for run in range(runs):
        random = Random(run)
        worth = [exp(random.uniform(log(0.001), log(0.18))) for _ in BLUEPRINTS]
        noise = random.uniform(0.02, 0.05)
        orders = [random.sample(range(5), 5) for _ in range(6)]
        means = [[worth[kind] * exp(0.25 * random.gauss(0, 1)) for kind in row] for row in orders]
        chance += 30 * fmean(mean for row in means for mean in row)
        selector = SeedSelector(STRATEGIES.create(name), seed=run)
        for _ in range(5):
            for layer, row in enumerate(means):
                context = _context(orders[layer])
                decision = selector.decide(f"fc{layer}", range(5), context)
                mean = row[decision.seed_idx]
                delta = PerformanceDelta(reward=random.gauss(mean, noise))
                selector.performance_tracker.update_metrics_now(
                    f"fc{layer}", decision.seed_idx, delta, decision=decision
                )
                earned += mean
    return earned / chance


@pytest.mark.parametrize("name", ["hierarchical", "auto"])
def test_layers_that_share_kinds_earn_twice_what_chance_does(name: str) -> None:
    pooled = _gain(name, 60)
    assert pooled > 1.9
    assert pooled > 1.7 * _gain("ucb", 60)
    assert pooled > 1.7 * _gain("random", 60)


def test_a_new_layer_begins_with_the_best_kind_and_says_so() -> None:
    selector = SeedSelector(Hierarchical())
    for layer in ("fc1", "fc2", "fc3"):
        _learn(selector, layer, {0: (0.0, 0.2), 1: (1.0, 1.2), 2: (0.4, 0.6)})
    decision = selector.decide("fc4", [0, 1, 2], _context((2, 0, 1)))
    assert decision.blueprint == "lowrank"
    sentence = " (untried here, pooled from 3 other Linear layers)"
    assert decision.reason.reason.endswith(sentence)
    assert decision.reason.reason.startswith("best mean by ")


def test_layers_of_another_type_share_nothing() -> None:
    selector = SeedSelector(Hierarchical())
    _learn(selector, "fc1", {0: (0.0, 0.2), 1: (1.0, 1.2)})
    decision = selector.decide("conv1", [0, 1], _context((0, 1), layer_type="Conv2d"))
    assert decision.reason.score == inf
    assert decision.reason.reason.startswith("untried")


def test_only_seeds_of_unknown_kinds_need_a_first_try() -> None:
    selector = SeedSelector(Hierarchical())
    _learn(selector, "fc1", {0: (0.0, 0.2), 1: (1.0, 1.2)})
    decision = selector.decide("fc2", range(4), _context((0, 1, 2, 3)))
    assert set(decision.reason.scores) == {2, 3}
    assert decision.reason.propensity == 0.5


def test_no_seed_starves_however_bad_its_kind_is_elsewhere() -> None:
    selector = SeedSelector(Hierarchical())
    for layer in ("fc1", "fc2", "fc3"):
        _learn(selector, layer, {0: (9.0, 9.2), 1: (-9.0, -9.2), 2: (-99.0, -99.2)})
    random = Random(1)
    taken = [
        _answer(selector, "fc4", _context((0, 1, 2)), random.gauss(9.0, 1.0)) for _ in range(66)
    ]
    assert set(taken[:60]) == {0}
    assert set(taken) == {0, 1, 2}


def test_own_outcomes_outweigh_the_others_in_the_end() -> None:
    selector = SeedSelector(Hierarchical())
    for layer in ("fc1", "fc2", "fc3"):
        _learn(selector, layer, {0: (0.0, 0.2), 1: (1.0, 1.2)})
    _learn(selector, "fc4", {0: (0.5, 0.7) * 10, 1: (0.3, 0.5) * 10})
    record = selector.performance_tracker.layer("fc4")
    assert record is not None
    learned = record.seeds.knowledge
    assert isinstance(learned, PooledKnowledge)
    context = _context((0, 1))
    posterior = posterior_means(learned.rewards, [0, 1], record.seeds, context)
    first, second = posterior.means
    assert first > second
    assert second > 0.4  # pulled up by the other layers
    assert [prior and prior.layers for prior in posterior.priors] == [3, 3]


def test_a_second_run_on_the_store_begins_where_the_first_ended() -> None:
    store = MemoryStore()
    first = SeedSelector(Hierarchical(), tracker=PerformanceTracker(store=store, run="a"))
    _learn(first, "fc1", {0: (0.0, 0.2), 1: (1.0, 1.2)})
    second = PerformanceTracker(store=store, run="b")
    decision = SeedSelector(Hierarchical(), tracker=second).decide("fc1", [0, 1], _context((0, 1)))
    assert decision.seed_idx == 1
    assert decision.reason.reason.endswith(" over 2 outcomes")


def test_shrinkage_is_that_of_known_variances() -> None:
    """Many layers, one outcome each: the estimate is near what the rewards were drawn with."""
    random, ratio = Random(4), 2.0
    first = Hierarchical().begin("fc").rewards
    for index in range(400):
        knowledge = Hierarchical().begin(f"fc{index}").rewards
        knowledge.join(first)
        level = sqrt(ratio) * random.gauss(0, 1)
        for _ in range(3):
            knowledge.take(0, "Linear/glu", random.gauss(level, 1.0))
    assert first.pool.noise() == pytest.approx(1.0, rel=0.2)
    assert first.pool.ratio == pytest.approx(ratio, rel=0.35)


def test_the_variance_between_layers_is_the_unweighted_estimate() -> None:
    means, counts = (0.1, 0.9, 0.4, 0.0), (1.0, 3.0, 2.0, 8.0)
    group = list(zip(means, counts, strict=True))
    noise = 0.2
    expected = variance(means) / noise**2 - fmean(1 / count for count in counts)
    assert between([group], noise) == pytest.approx((3 * expected + 1.5) / 9)
    assert between([group], inf) == 0.25
    assert between([], noise) == 0.25


@pytest.mark.parametrize("restarts", [True, False])
def test_running_sums_are_those_of_the_rows(restarts: bool) -> None:
    random = Random(2)
    layers = [Beliefs(restarts=restarts) for _ in range(5)]
    for one in layers[1:]:
        one.join(layers[0])
    pool = layers[0].pool
    for step in range(1500):
        one = layers[random.randrange(5)]
        seed_idx = random.randrange(3)
        if step == 700:
            one.forget(seed_idx)
        reward = random.gauss(3.0 + (step // 400) * seed_idx, 0.5)
        one.take(seed_idx, BLUEPRINTS[seed_idx % 2], reward)
    assert restarts == any(one.restarts for one in layers)
    for name in BLUEPRINTS[:2]:
        number = pool.known(name)
        rows = [
            (mean, known) for one in layers for kind, mean, known in one.cells() if kind == number
        ]
        rows += [row for kind, row in pool._past.items() if kind == number]
        weights = [1 / (pool.ratio + 1 / known) for _, known in rows]
        centre = sum(w * mean for w, (mean, _) in zip(weights, rows, strict=True)) / sum(weights)
        prior = pool.prior(number, 0.0, 0.0)
        assert prior is not None
        assert prior.layers == len(rows)
        assert prior.mean == pytest.approx(centre, rel=1e-9)
        assert prior.weight == pytest.approx(1 / (pool.ratio + 1 / sum(weights)), rel=1e-9)


def test_a_kind_that_becomes_known_at_a_restart_stays_known() -> None:
    random, learned, other = Random(0), Beliefs(), Beliefs()
    other.join(learned)
    other.take(0, "Linear/mlp", 0.0)  # so that the sums are taken anew only later
    for _ in range(30):
        for seed_idx in (0, 1):
            learned.take(seed_idx, "", random.gauss(seed_idx, 0.1))
    while not _restarts_at(learned, 5.0):
        learned.take(0, "", 5.0)
    for _ in range(2):
        learned.take(0, "Linear/glu", 5.0)
        [(kind, mean, known)] = learned.cells()
        assert kind == learned.pool.known("Linear/glu")
        assert learned.pool.prior(kind, mean, known) is None  # it is the only one
    assert learned.restarts == 1


def _restarts_at(learned: Beliefs, reward: float) -> bool:
    tried = Beliefs()
    tried.load_state_dict(learned.state_dict())
    tried.take(0, "", reward)
    return tried.restarts > learned.restarts


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1e-12, 0.0), (1.0, 100.0)])
def test_factor_and_shift_change_no_choice(factor: float, shift: float) -> None:
    def choices(factor: float, shift: float) -> list[int]:
        random, selector = Random(6), SeedSelector(Hierarchical(), seed=2)
        return [
            _answer(selector, f"fc{step % 4}", _context(), factor * random.gauss(0, 1) + shift)
            for step in range(200)
        ]

    assert choices(factor, shift) == choices(1.0, 0.0)


@pytest.mark.parametrize("sort_keys", [False, True])
def test_state_goes_on_to_the_last_bit(sort_keys: bool) -> None:
    random = Random(3)
    one, two, other = Beliefs(), Beliefs(), Beliefs()
    other.join(one)
    third = Beliefs()
    third.join(two)
    kinds = ("", "Linear/mlp", "Linear/glu")
    for step in range(300):
        (one, other)[step % 2].take(step % 3, kinds[step % 3], random.gauss(0, 1))
    one.forget(1)
    for before, after in ((one, two), (other, third)):
        after.load_state_dict(json.loads(json.dumps(before.state_dict(), sort_keys=sort_keys)))
    for step in range(300):
        reward = random.gauss(0.3, 1)
        for knowledge in (one, two):
            knowledge.take(step % 3, kinds[step % 3], reward)
    assert one.state_dict() == two.state_dict()
    assert other.state_dict() == third.state_dict()
    assert one.prior(1, "Linear/glu") == two.prior(1, "Linear/glu")


def test_a_rebound_seed_is_another_kind_and_the_old_one_stays_known() -> None:
    selector = SeedSelector(Hierarchical())
    _learn(selector, "fc1", {0: (0.0, 0.2), 1: (1.0, 1.2)})
    decision = selector.decide("fc1", [0, 1], _context((1, 0)))  # they change places
    assert decision.seed_idx == 0
    assert decision.blueprint == "lowrank"


def test_without_blueprints_seeds_are_learnt_alone() -> None:
    learned = Hierarchical().begin("fc1").rewards
    for reward in (1.0, 2.0):
        learned.learn(0, reward, None)
        learned.learn(1, reward + 1, None)
    assert not learned.pool.shares
    assert learned.means() == {0: (1.5, 2.0), 1: (2.5, 2.0)}
    learned.forget(0)
    assert learned.means() == {1: (2.5, 2.0)}


def test_pending_choices_count_so_parallel_trainers_spread() -> None:
    selector = SeedSelector(Hierarchical())
    _learn(selector, "fc1", {seed: (0.1 * seed - 0.5, 0.1 * seed + 0.5) for seed in range(4)})
    taken = set()
    for _ in range(10):
        decision = selector.decide("fc2", range(4), _context(range(4)))
        selector.commit("fc2", decision.seed_idx)
        selector.free("fc2", decision.seed_idx, epoch=0)
        taken.add(decision.seed_idx)
    assert len(taken) >= 3


def test_a_seed_whose_choices_come_to_nothing_does_not_hold_up_the_layer() -> None:
    selector = SeedSelector(Hierarchical())
    _learn(selector, "fc1", {seed: (0.3 * seed - 0.5, 0.3 * seed + 0.5) for seed in range(3)})
    taken = []
    for _ in range(60):
        decision = selector.decide("fc2", range(3), _context(range(3)))
        taken.append(decision.seed_idx)
        selector.release("fc2", decision.seed_idx)
    assert taken[0] == 2
    assert set(taken) == {0, 1, 2}


def test_hand_made_metrics_are_read_with_their_blueprints() -> None:
    metrics = {
        seed: SeedPerformanceMetrics(seed, "fc1", rewards=rewards, blueprint="glu")
        for seed, rewards in enumerate(([0.0, 0.2], [0.4, 0.6]))
    }
    _, reason = Hierarchical().decide([0, 1], metrics, SelectionContext(), Draws(0, "fc1", 0))
    # One kind in two seeds: each is what the other's prior says.
    assert reason.reason.endswith("over 2 outcomes here, pooled from 1 other layer")


def test_a_layer_of_its_own_gives_its_reasons() -> None:
    strategy = Hierarchical()
    learned = strategy.begin("fc1")
    metrics = LayerMetrics(learned)
    draws = Draws(0, "fc1", 0)
    why = strategy.decide([0], metrics, SelectionContext(), draws)[1].reason
    assert why == "not ruled out: no outcome yet"
    for reward in (0.0, 1.0) * 5:
        learned.learn(0, reward, None)
    why = strategy.decide([0], metrics, SelectionContext(), draws)[1].reason
    assert why == "the only one with a mean over 10 outcomes"
    learned.learn(1, 0.2, None)
    chosen, reason = strategy.decide([0, 1], metrics, SelectionContext(), draws)
    assert chosen == 1
    assert reason.reason.startswith("not ruled out: 0.4 sd behind over 1 outcome")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), inf, "1"])
@pytest.mark.parametrize("setting", ["exploration", "horizon"])
def test_bad_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"hierarchical.{setting} is"):
        Hierarchical(**{setting: value})  # type: ignore[arg-type]  # that is the point
