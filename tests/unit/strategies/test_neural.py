"""Neural strategy: effects that are not linear, without side effects on global state."""

import json
from dataclasses import replace
from math import nan
from random import Random  # noqa: TID251 (a world of its own, seeded)
from statistics import fmean

import numpy as np
import pytest
import torch

from esper.contracts.errors import ConfigError
from esper.contracts.health import HealthSignal
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.contextual.features import of_seeds
from esper.strategies.contextual.linear import LinUCB
from esper.strategies.contextual.neural import Neural, NeuralKnowledge
from esper.strategies.ucb import UCB

KINDS = dict(enumerate(("glu", "gate", "conv_block")))


def _context(gradient: float, spread: float) -> SelectionContext:
    health = HealthSignal(
        layer_name="fc1",
        epoch=5,
        gradient_rms=0.5 * 3.0**gradient,
        activation_sd=1.7 * 1.8**spread,
    )
    return SelectionContext(current_epoch=5, health=health, blueprints=KINDS)


def _gains(gradient: float, spread: float) -> list[float]:
    # Which of the first two is better depends on both measurements together; on neither alone.
    return [0.06, 0.0, 0.02] if (gradient > 0) == (spread > 0) else [0.0, 0.06, 0.02]


def _regret(strategy: SelectionStrategy, *, seed: int, choices: int) -> float:
    random, selector, lost = Random(seed), SeedSelector(strategy, seed=seed), 0.0
    for _ in range(choices):
        here = random.uniform(-1, 1), random.uniform(-1, 1)
        seed_idx, _ = selector.select_seed_now("fc1", range(3), _context(*here))
        own = _gains(*here)
        delta = PerformanceDelta(reward=random.gauss(own[seed_idx], 0.02))
        selector.performance_tracker.update_metrics_now("fc1", seed_idx, delta)
        lost += max(own) - own[seed_idx]
    return lost


@pytest.mark.trains
def test_learns_what_no_line_can_tell() -> None:
    mine, *his = (
        [_regret(make(), seed=seed, choices=700) for seed in range(2)]
        for make in (Neural, UCB, LinUCB)
    )
    assert all(one < other for each in his for one, other in zip(mine, each, strict=True))
    assert fmean(mine) < 0.7 * fmean([*his[0], *his[1]])


def test_a_training_leaves_no_trace_and_depends_on_nothing_outside() -> None:
    def regret() -> float:
        return _regret(Neural(), seed=3, choices=140)

    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    alone = regret()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]  # noqa: NPY002
    torch.manual_seed(17)
    with torch.no_grad(), torch.device("meta"):
        assert regret() == alone
    with torch.inference_mode():
        assert regret() == alone
    assert not torch.is_inference_mode_enabled()


def _taught(count: int, settings: Neural | None = None) -> NeuralKnowledge:
    knowledge, random = (settings or Neural()).begin("fc1"), Random(0)
    for number in range(count):
        _teach(knowledge, number, random)
    return knowledge


def _teach(knowledge: NeuralKnowledge, number: int, random: Random) -> None:
    here = random.uniform(-1, 1), random.uniform(-1, 1)
    seen = of_seeds(_context(*here), [0])[0]
    own = _gains(*here)[number % 3]
    knowledge.pool.take(KINDS[number % 3], seen, random.gauss(own, 0.02))


@pytest.mark.parametrize("count", [10, 100])
def test_state_goes_on_bit_for_bit_through_a_training(count: int) -> None:
    one, two = _taught(count), Neural().begin("fc1")
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for knowledge in (one, two):
        random = Random(9)
        for number in range(80):
            _teach(knowledge, number, random)
    assert one.pool.trainings == (count + 80) // 64
    assert json.dumps(one.state_dict()) == json.dumps(two.state_dict())


def test_a_state_of_another_network_is_refused() -> None:
    state = _taught(70).state_dict()
    with pytest.raises(ConfigError, match="24 hidden units, this one has 8"):
        Neural(hidden=8).begin("fc1").load_state_dict(state)


def test_memory_is_bounded() -> None:
    knowledge = _taught(64 * 6, Neural(memory=100, hidden=4))
    assert len(knowledge.state_dict()["outcomes"]) == 100
    assert len(_taught(64 * 6 + 63, Neural(memory=100, hidden=4)).state_dict()["outcomes"]) == 163


def test_rewards_of_any_size_teach_the_same() -> None:
    def means(factor: float, shift: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        knowledge, random = Neural().begin("fc1"), Random(2)
        for number in range(130):
            here = random.uniform(-1, 1), random.uniform(-1, 1)
            reward = random.gauss(_gains(*here)[number % 3], 0.02)
            seen = of_seeds(_context(*here), [0])[0]
            knowledge.pool.take(KINDS[number % 3], seen, factor * reward + shift)
        seen = of_seeds(_context(0.5, 0.5), [0])[0]
        found, _ = knowledge.pool.over(list(KINDS.values()), [seen] * 3)
        return found

    assert means(1e6, 0.0) == pytest.approx(means(1.0, 0.0), abs=1e-6)
    assert means(1e-6, 3.0) == pytest.approx(means(1.0, 0.0), abs=1e-5)


def test_doubt_shrinks_with_outcomes_and_is_larger_for_what_is_new() -> None:
    seen = [of_seeds(_context(0.5, 0.5), [0])[0]] * 2
    few = _taught(30).pool.over(["glu", "unheard of"], seen)[1].diagonal()
    many = _taught(300).pool.over(["glu", "unheard of"], seen)[1].diagonal()
    assert many[0] < 0.7 * few[0]
    assert many[1] > 10 * many[0]


def test_layers_of_a_history_share_a_network_and_a_second_run_makes_the_same() -> None:
    store, strategy = MemoryStore(), Neural()
    selectors = []
    for run in ("one", "two"):
        tracker = PerformanceTracker(store=store, run=run)
        selector = SeedSelector(strategy, tracker=tracker)
        selectors.append(selector)
        if run == "two":
            break
        random = Random(1)
        for number in range(90):
            layer = f"fc{number % 2}"
            decision = selector.decide(layer, range(3), _context(random.random(), 0.1))
            delta = PerformanceDelta(reward=random.gauss(0.01 * decision.seed_idx, 0.02))
            tracker.update_metrics_now(layer, decision.seed_idx, delta, decision=decision)
    reasons = []
    for selector in selectors:
        layers = [selector.performance_tracker.layer(name) for name in ("fc0", "fc1")]
        pools = [layer.seeds.knowledge.pool for layer in layers if layer]  # type: ignore[union-attr]
        assert pools[0] is pools[1]
        assert pools[0].trainings == 1
        assert layers[0] is not None
        draws = Draws(0, "fc0", 99)
        reasons.append(strategy.decide(range(3), layers[0].seeds, _context(0.3, 0.1), draws)[1])
    assert reasons[0] == reasons[1]
    assert reasons[0].propensity_error < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"v": 0}, "neural.v is 0; it must be a number > 0"),
        ({"ridge": nan}, "neural.ridge is nan"),
        ({"hidden": 0}, "neural.hidden is 0"),
        ({"hidden": 2.5}, "neural.hidden is 2.5; it must be a whole number"),
        ({"memory": 10}, "neural.memory is 10"),
        ({"learning_rate": -0.1}, "neural.learning_rate is -0.1"),
        ({"network_seed": -1}, "neural.network_seed is -1"),
        ({"hiden": 3}, "Did you mean 'hidden'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        STRATEGIES.create("neural", **settings)


def test_another_network_seed_is_another_network() -> None:
    one, two = _taught(70), _taught(70, replace(Neural(), network_seed=1))
    assert one.state_dict()["weights"] != two.state_dict()["weights"]
