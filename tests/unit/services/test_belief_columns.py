"""Restarts of thousands of layers at once are those of each layer alone."""

import numpy as np
import pytest

from esper.services.tamiyo.strategies._belief_columns import BeliefColumns
from esper.services.tamiyo.strategies._beliefs import Beliefs

LAYERS, SEEDS = 12, 4


@pytest.mark.parametrize("kind", ["normal", "bernoulli", "constant", "tiny", "huge"])
def test_numbers_are_those_of_each_layer_alone_to_the_last_bit(kind: str) -> None:
    rng = np.random.default_rng(7)
    columns = BeliefColumns(LAYERS, SEEDS, 20, 0.9)
    alone = [Beliefs() for _ in range(LAYERS)]
    every, gains = np.arange(LAYERS), rng.random((LAYERS, SEEDS))
    for step in range(2500):
        if step % 150 == 0:
            gains = rng.permuted(gains, axis=1)
        seeds = rng.integers(0, SEEDS if step > 60 else SEEDS - 1, LAYERS)
        own = gains[every, seeds]
        rewards = {
            "normal": own + 0.1 * rng.standard_normal(LAYERS),
            "bernoulli": (rng.random(LAYERS) < own).astype(float),
            "constant": np.full(LAYERS, 0.3 + (step > 1000)),
            "tiny": 1e-12 * (own + 0.1 * rng.standard_normal(LAYERS)),
            "huge": 1e90 * (own + 0.1 * rng.standard_normal(LAYERS)),
        }[kind]
        columns.learn(every, seeds, rewards)
        for layer, learned in enumerate(alone):
            learned.learn(int(seeds[layer]), float(rewards[layer]), None)
    found = [columns.metrics(layer).knowledge for layer in range(LAYERS)]
    assert [one.state_dict() for one in found] == [one.state_dict() for one in alone]
    assert columns.noise(every).tolist() == [one.noise() for one in alone]
    if kind in {"normal", "tiny", "huge"}:
        assert min(one.restarts for one in alone) > 5


def test_an_alarm_in_one_layer_leaves_the_others_alone() -> None:
    columns, every = BeliefColumns(3, 2, 20, 0.9), np.arange(3)
    rng = np.random.default_rng(0)
    for step in range(60):
        columns.learn(every, np.full(3, step % 2), rng.normal([0, 0, 0], 0.1))
    before = columns.metrics(0).knowledge.state_dict()
    for _ in range(40):
        columns.learn(every[1:], np.array([1, 0]), np.array([5.0, 0.0]))
    assert columns.restarts_L.tolist() == [0, columns.restarts_L[1], 0]
    assert columns.restarts_L[1] > 0
    assert columns.metrics(0).knowledge.state_dict() == before
