"""Over arrays, a strategy chooses as it does layer by layer."""

import json
from functools import partial
from math import sqrt
from typing import final

import numpy as np
import pytest

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext, SelectionReason
from esper.services.tamiyo.layer_arrays import LayerArrays
from esper.services.tamiyo.layer_record import LayerRecord
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.seed_selector import first_try
from esper.services.tamiyo.strategies import STRATEGIES, SelectionStrategy
from esper.services.tamiyo.strategies.thompson import Thompson
from esper.testing.strategy_laws import Make

CONTEXT = SelectionContext()
SEEDS = 5
ABLE = [name for name in STRATEGIES.names() if STRATEGIES.load(name).columns]
CASES: dict[str, Make] = {
    **{name: partial(STRATEGIES.create, name) for name in ABLE},
    "thompson, gaussian": partial(Thompson, posterior="gaussian"),
    "thompson, nig": partial(Thompson, posterior="nig"),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@final
class Twin:
    """The same layers in a tracker, one record per seed."""

    def __init__(self, strategy: SelectionStrategy, layers: int) -> None:
        self.tracker = PerformanceTracker()
        if type(strategy).begin is not SelectionStrategy.begin:
            self.tracker.follow(strategy.begin)
        self.strategy = strategy
        self.layers = [self._begun(str(layer)) for layer in range(layers)]
        self._made = 0

    def choose(self, layer: int, seed: int) -> None:
        self._made += 1
        decision = Decision(
            decision_id=f"d{self._made}",
            layer_name=str(layer),
            seed_idx=seed,
            blueprint="",
            epoch=0,
            reason=SelectionReason("", seed, 0.0, {seed: 0.0}, 1.0, ""),
            random_key=(0, str(layer), self._made),
        )
        self.tracker.record_selection(str(layer), seed, decision=decision)

    def learn(self, layer: int, seed: int, reward: float) -> None:
        self.tracker.update_metrics_now(str(layer), seed, PerformanceDelta(reward=reward))

    def chances(self, layer: int, viable: list[int]) -> tuple[dict[int, float], float]:
        """Probability of each seed, and how far off it may be."""
        seeds = self.layers[layer].seeds
        first = first_try(self.strategy, viable, seeds, Draws(0, "", 0), CONTEXT)
        if first is not None:
            return dict(first[1].propensities), 0.0
        found = self.strategy.propensities(viable, seeds, CONTEXT)
        return dict(found.by_seed), found.error

    def _begun(self, name: str) -> LayerRecord:
        self.tracker.bind(name, 0, "")
        layer = self.tracker.layer(name)
        assert layer is not None
        return layer


def _story(make: Make, layers: int, steps: int, seed: int = 0) -> tuple[LayerArrays, Twin]:
    """Layers that were chosen for, some outcomes being late or missing, and their twin."""
    rng = np.random.default_rng(seed)
    many, twin = LayerArrays(make(), layers, SEEDS, seed=seed), Twin(make(), layers)
    for _ in range(steps):
        viable = rng.random((layers, SEEDS)) < 0.8
        chosen = many.select_many(viable)
        outcomes = []
        for layer, own in enumerate(chosen.tolist()):
            if own >= 0:
                twin.choose(layer, own)
            for _ in range(rng.integers(0, 3)):
                outcomes.append((layer, int(rng.integers(SEEDS)) if own < 0 else own))
        rng.shuffle(outcomes)
        rewards = [0.01 * own + 0.02 * float(rng.standard_normal()) for _, own in outcomes]
        for (layer, own), reward in zip(outcomes, rewards, strict=True):
            twin.learn(layer, own, reward)
        many.update_many(
            np.array([layer for layer, _ in outcomes], dtype=int),
            np.array([own for _, own in outcomes], dtype=int),
            rewards,
        )
    return many, twin


def test_chooses_what_decide_chooses_layer_by_layer(make: Make) -> None:
    rng = np.random.default_rng(9)
    for steps in (0, 1, 3, 8, 14):
        many, twin = _story(make, layers=12, steps=steps, seed=steps)
        viable = rng.random((12, SEEDS)) < 0.8
        for layer, chosen in enumerate(many.select_many(viable).tolist()):
            allowed = np.flatnonzero(viable[layer]).tolist()
            if not allowed:
                assert chosen == -1
                continue
            chances, error = twin.chances(layer, allowed)
            assert chances[chosen] > error / 4, (steps, layer)
            if not make().draws_scores:
                found = dict(enumerate(many.propensities[layer].tolist()))
                assert found == pytest.approx({**dict.fromkeys(range(SEEDS), 0.0), **chances})
            told = many.explain(layer)
            assert told.seed_idx == chosen
            assert set(told.alternatives_considered) == set(allowed) - {chosen}
            assert dict(told.propensities) == pytest.approx(
                {seed: chances.get(seed, 0.0) for seed in allowed}, abs=1e-6
            )


def test_scores_are_those_of_decide_unless_they_are_drawn(make: Make) -> None:
    many, twin = _story(make, layers=10, steps=14)
    everything = list(range(SEEDS))
    many.select_many()
    for layer, record in enumerate(twin.layers):
        if first_try(twin.strategy, everything, record.seeds, Draws(0, "", 0), CONTEXT):
            continue
        one, two = (
            twin.strategy.decide(everything, record.seeds, CONTEXT, Draws(0, "", n))[1].scores
            for n in range(2)
        )
        if one == two:
            assert dict(many.explain(layer).scores) == pytest.approx(dict(one), rel=1e-9, abs=1e-9)


def test_draws_as_often_as_the_propensities_say(make: Make) -> None:
    layers, outcomes = 3000, [(0, 0.01), (1, 0.05), (1, 0.03), (2, 0.04), (3, 0.00), (4, 0.02)]
    many, twin = LayerArrays(make(), layers, SEEDS, seed=3), Twin(make(), 1)
    for seed, reward in [*outcomes, *outcomes[:3]]:
        many.update_many(np.arange(layers), np.full(layers, seed), np.full(layers, reward))
        twin.learn(0, seed, reward)
    chances, error = twin.chances(0, [0, 1, 3, 4])
    viable = np.array([[True, True, False, True, True]] * layers)
    counts = np.bincount(many.select_many(viable), minlength=SEEDS) / layers
    for seed, chance in chances.items():
        spread = sqrt(max(chance * (1 - chance), 0.0) / layers)
        assert abs(counts[seed] - chance) <= 4.5 * spread + error + 1e-9, seed
    assert counts[2] == 0


def test_every_seed_is_tried_first_in_any_order(make: Make) -> None:
    many = LayerArrays(make(), 2000, 3, seed=1)
    chosen = [many.select_many() for _ in range(3)]
    assert (np.sort(chosen, axis=0) == [[0], [1], [2]]).all()
    assert np.abs(np.bincount(chosen[0]) / 2000 - 1 / 3).max() < 0.05
    assert many.explain(7).propensity == 1
    assert many.scores[7].max() == np.inf


def test_continues_bit_for_bit_from_a_state_in_json(make: Make) -> None:
    many, _ = _story(make, layers=40, steps=12)
    again = LayerArrays(make(), 40, SEEDS, seed=999)
    again.load_state_dict(json.loads(json.dumps(many.state_dict())))
    rng = np.random.default_rng(5)
    for _ in range(20):
        one, two = many.select_many(), again.select_many()
        assert (one == two).all()
        assert (many.scores == again.scores).all()
        rewards = rng.standard_normal(40)
        for each in (many, again):
            each.update_many(np.arange(40), one, rewards)
    assert many.state_dict() == again.state_dict()


def test_equal_seeds_equal_choices(make: Make) -> None:
    one, two, three = (_story(make, 50, 6, seed=seed)[0] for seed in (4, 4, 5))
    assert one.state_dict() == two.state_dict()
    assert one.state_dict() != three.state_dict()


def test_a_batch_is_its_outcomes_one_by_one(make: Make) -> None:
    rng = np.random.default_rng(2)
    layers, seeds = rng.integers(0, 7, 300), rng.integers(0, SEEDS, 300)
    rewards = rng.standard_normal(300)
    rewards[150:] += 3.0
    batch, single = (LayerArrays(make(), 7, SEEDS) for _ in range(2))
    batch.update_many(layers, seeds, rewards)
    for layer, seed, reward in zip(layers, seeds, rewards, strict=True):
        single.update_many([layer], [seed], [reward])
    assert batch.state_dict() == single.state_dict()
    assert (batch.select_many() == single.select_many()).all()
    assert (batch.scores == single.scores).all()


@pytest.mark.parametrize(("factor", "shift"), [(1e12, 0.0), (1e-12, 0.0), (1.0, 5.0), (-0.0, 7.0)])
def test_neither_a_factor_nor_a_shift_matters(make: Make, factor: float, shift: float) -> None:
    rng = np.random.default_rng(3)
    plain, other = (LayerArrays(make(), 30, SEEDS, seed=2) for _ in range(2))
    for _ in range(40):
        chosen, there = plain.select_many(), other.select_many()
        assert np.isfinite(other.scores).all() or not np.isnan(other.scores).any()
        if factor:
            assert (chosen == there).all()
        rewards = 0.01 * chosen + 0.02 * rng.standard_normal(30)
        plain.update_many(np.arange(30), chosen, rewards)
        other.update_many(np.arange(30), there, factor * rewards + shift)


def test_beats_chance_if_it_claims_to_learn(make: Make) -> None:
    if not make().learns:
        return
    rng, gains = np.random.default_rng(0), np.array([0.0, 0.010, 0.020, 0.005])
    many, earned = LayerArrays(make(), 30, 4, seed=0), []
    for _ in range(200):
        chosen = many.select_many()
        earned.append(gains[chosen].mean())
        many.update_many(np.arange(30), chosen, rng.normal(gains[chosen], 0.02))
    assert np.mean(earned) > 1.3 * gains.mean()


def test_a_layer_of_eight_takes_400_bytes_at_most(make: Make) -> None:
    assert LayerArrays(make(), 1000, 8).nbytes <= 400
