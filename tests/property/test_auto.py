"""Whatever the rewards and their order: `auto` stays finite, and a state goes on as it was."""

import json
from math import isfinite

from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.strategies.pooled.auto import Auto
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.knowledge import PooledKnowledge

SIZES = st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12) | st.just(0.0)
OUTCOMES = st.lists(st.tuples(st.integers(0, 5), SIZES), min_size=1, max_size=80)


def _taught(outcomes: list[tuple[int, float]]) -> Beliefs:
    learned = Beliefs()
    for seed_idx, reward in outcomes:
        learned.learn(seed_idx, reward, None)
    return learned


def _known(outcomes: list[tuple[int, float]]) -> PooledKnowledge:
    known = PooledKnowledge()
    for seed_idx, reward in outcomes:
        known.learn(seed_idx, reward, None)
    return known


@given(OUTCOMES)
def test_everything_is_finite_and_means_are_within_the_rewards(
    outcomes: list[tuple[int, float]],
) -> None:
    learned = _taught(outcomes)
    rewards = [reward for _, reward in outcomes]
    room = 1e-6 * max(map(abs, rewards))
    assert set(learned.means()) == {seed for seed, _ in outcomes}
    assert learned.noise() > 0
    for mean, count in learned.means().values():
        assert min(rewards) - room <= mean <= max(rewards) + room
        assert 1 <= count <= len(outcomes)
    viable = sorted(learned.means())
    chosen, reason = Auto().decide(
        viable, LayerMetrics(_known(outcomes)), SelectionContext(), Draws(0, "fc1", 0)
    )
    assert chosen in viable
    assert all(map(isfinite, reason.scores.values()))


@given(OUTCOMES, OUTCOMES)
def test_a_state_goes_on_as_it_was(
    before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    learned, resumed = _taught(before), Beliefs()
    resumed.load_state_dict(json.loads(json.dumps(learned.state_dict())))
    for seed_idx, reward in after:
        learned.learn(seed_idx, reward, None)
        resumed.learn(seed_idx, reward, None)
    assert learned.state_dict() == resumed.state_dict()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-64, 64)), min_size=8, max_size=80))
def test_a_factor_that_rounds_nothing_changes_nothing(outcomes: list[tuple[int, int]]) -> None:
    plain = _taught([(seed, float(reward)) for seed, reward in outcomes])
    larger = _taught([(seed, reward * 2.0**30) for seed, reward in outcomes])
    assert larger.restarts == plain.restarts
    assert {seed: (mean / 2.0**30, count) for seed, (mean, count) in larger.means().items()} == (
        plain.means()
    )
