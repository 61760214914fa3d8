"""Whatever is chosen, answered, withdrawn or missing, counts are exact and choices viable."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.services.tamiyo.layer_arrays import LayerArrays
from esper.services.tamiyo.strategies import STRATEGIES

LAYERS, SEEDS = 4, 3
ABLE = [name for name in STRATEGIES.names() if STRATEGIES.load(name).columns]
SIZES = st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12) | st.just(0.0)
PLACES = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, SEEDS - 1))
STEPS = st.one_of(
    st.lists(st.booleans(), min_size=LAYERS * SEEDS, max_size=LAYERS * SEEDS),
    st.lists(st.tuples(PLACES, SIZES), max_size=12),
    PLACES,
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(ABLE), st.lists(STEPS, max_size=30), st.integers(-(2**70), 2**70))
def test_no_story_breaks_the_counts(name: str, steps: list[Any], seed: int) -> None:
    many = LayerArrays(STRATEGIES.create(name), LAYERS, SEEDS, seed=seed)
    pending = np.zeros((LAYERS, SEEDS), dtype=int)
    outcomes = np.zeros((LAYERS, SEEDS), dtype=int)
    for step in steps:
        if isinstance(step, tuple):
            layer, own = step
            many.withdraw_many([layer], [own])
            pending[layer, own] = max(pending[layer, own] - 1, 0)
        elif step and isinstance(step[0], bool):
            viable = np.array(step).reshape(LAYERS, SEEDS)
            chosen = many.select_many(viable)
            assert ((chosen >= 0) == viable.any(axis=1)).all()
            for layer in np.flatnonzero(chosen >= 0):
                assert viable[layer, chosen[layer]]
                pending[layer, chosen[layer]] += 1
            assert not np.isnan(many.scores).any()
        elif isinstance(step, list):
            layers = [layer for (layer, _), _ in step]
            seeds = [own for (_, own), _ in step]
            many.update_many(layers, seeds, [reward for _, reward in step])
            for layer, own in zip(layers, seeds, strict=True):
                pending[layer, own] = max(pending[layer, own] - 1, 0)
                outcomes[layer, own] += 1
        assert (many.pending == pending).all()
    kept = many.state_dict()
    assert kept["arrays"]["outcomes_KL"] == outcomes.T.ravel().tolist()
    again = LayerArrays(STRATEGIES.create(name), LAYERS, SEEDS)
    again.load_state_dict(json.loads(json.dumps(kept)))
    assert again.state_dict() == kept
    assert (again.select_many() == many.select_many()).all()
    assert (again.scores == many.scores).all()
