"""Where a library of PyPI has the same formula, our scores are its scores.

What they compute was recorded by ``python -m benchmarks.peer_scores``; versions are in the file.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics, LayerRecord
from esper.strategies import SelectionStrategy
from esper.strategies.contextual.ridge import Ridges
from esper.strategies.drifting.forgetful import DiscountedUCB, SlidingUCB
from esper.strategies.learned import Learned
from esper.strategies.posteriors import nig_posterior
from esper.strategies.scoring import standardise, upper_bound
from esper.strategies.ucb import UCB

PEERS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "peer_scores.json").read_text(encoding="utf-8")
)
ARMS, REWARDS = PEERS["arms"], PEERS["rewards"]
SEEDS = sorted(set(ARMS))


def _by_seed() -> list[list[float]]:
    return [[r for a, r in zip(ARMS, REWARDS, strict=True) if a == seed] for seed in SEEDS]


def _played(strategy: SelectionStrategy) -> LayerMetrics:
    layer = LayerRecord("fc1", strategy.begin("fc1"))
    for arm, reward in zip(ARMS, REWARDS, strict=True):
        layer.current(arm).choose("", 0)
        layer.seeds[arm].add(reward, None, None, window_size=40, decay_factor=0.9)
        if layer.seeds.knowledge is not None:
            layer.seeds.knowledge.learn(arm, reward, None)
    return layer.seeds


def _scores(strategy: SelectionStrategy, metrics: LayerMetrics) -> list[float]:
    _, reason = strategy.decide(SEEDS, metrics, SelectionContext(), Draws(0, "fc1", len(ARMS)))
    return [reason.scores[seed] for seed in SEEDS]


def test_ucb1_on_plain_rewards() -> None:
    means = [float(np.mean(rewards)) for rewards in _by_seed()]
    counts = [len(rewards) for rewards in _by_seed()]
    bounds = [upper_bound(m, n, len(ARMS), 2.0) for m, n in zip(means, counts, strict=True)]
    assert bounds == pytest.approx(PEERS["mabwiser UCB1"]["scores"], abs=1e-9)
    # pymab counts the step that is being chosen.
    bounds = [upper_bound(m, n, len(ARMS) + 1, 2.0) for m, n in zip(means, counts, strict=True)]
    peer = np.add(PEERS["pymab UCB"]["means"], PEERS["pymab UCB"]["bonus"])
    assert bounds == pytest.approx(peer.tolist(), abs=1e-9)


def test_ucb_in_standard_deviations() -> None:
    strategy = UCB(exploration_constant=2.0)
    metrics = _played(strategy)
    centre, scale, _ = standardise(metrics)
    peer = PEERS["mabwiser UCB1"]
    means = np.subtract(peer["scores"], peer["bonus"])
    wanted = (means - centre) / scale + peer["bonus"]
    assert _scores(strategy, metrics) == pytest.approx(wanted.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("pymab DiscountedUCB", DiscountedUCB(discount=0.95, exploration_constant=2.0)),
        ("pymab SlidingWindowUCB", SlidingUCB(window=25, exploration_constant=2.0)),
    ],
    ids=["discounted", "sliding"],
)
def test_ucb_that_forgets(name: str, strategy: SelectionStrategy) -> None:
    metrics = _played(strategy)
    learned = metrics.knowledge
    assert isinstance(learned, Learned)
    means = np.array(PEERS[name]["means"])
    wanted = (means - means.mean()) / learned.noise() + PEERS[name]["bonus"]
    assert _scores(strategy, metrics) == pytest.approx(wanted.tolist(), abs=1e-9)


def test_normal_inverse_gamma() -> None:
    rewards = 50 * np.array(REWARDS)
    squares = float(((rewards - rewards.mean()) ** 2).sum())
    location, scale, freedom = nig_posterior(float(rewards.mean()), len(rewards), squares, 1.5, 2.0)
    peer = PEERS["bayesianbandits NormalInverseGamma"]
    assert location == pytest.approx(peer["location"], abs=1e-9)
    assert freedom == pytest.approx(2 * peer["a"], abs=1e-9)
    assert scale == pytest.approx(sqrt(peer["b"] / (peer["a"] * peer["kappa"])), abs=1e-9)


def test_linucb() -> None:
    model = Ridges(3, 1.0)
    regressions = [model.add() for _ in SEEDS]
    for arm, x, reward in zip(ARMS, PEERS["features"], REWARDS, strict=True):
        model.learn(regressions[arm], np.array(x), reward)
    peer = PEERS["mabwiser LinUCB"]
    means, variances = model.at(np.array(peer["at"]))
    centred = np.array(peer["means"]) - model.centre * np.array(peer["means of ones"])
    assert means == pytest.approx((centred / model.scale).tolist(), abs=1e-9)
    assert np.sqrt(variances).tolist() == pytest.approx(peer["bonus"], abs=1e-9)
