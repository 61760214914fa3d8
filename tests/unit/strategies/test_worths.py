"""Relative worths against the formulas of a Gaussian process, and what auditions teach `auto`."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from esper.contracts.audition import FADING, Contrast
from esper.contracts.errors import ConfigError, MeasurementError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.cohort import reserve_cohort, worths_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.strategies.pooled.auto import Auto
from esper.strategies.pooled.knowledge import PooledKnowledge
from esper.strategies.pooled.worths import (
    NOISE,
    OF_BOTH,
    OF_KIND,
    OF_LAYER,
    Gain,
    RelativeWorths,
)

PAIRS = [("fc1", "glu"), ("fc1", "gate"), ("fc2", "glu"), ("fc2", "gate")]
BLUEPRINTS = {0: "glu", 1: "gate", 2: "lowrank"}


def _context(epoch: int = 0) -> SelectionContext:
    return SelectionContext(current_epoch=epoch, layer_type="Linear", blueprints=BLUEPRINTS)


def _hear(
    selector: SeedSelector, gains: Mapping[str, Sequence[float]], stderr: float = 0.001
) -> None:
    """One audition of all seeds of some layers, of which the first one goes on."""
    asked = {name: (range(len(one)), _context()) for name, one in gains.items()}
    decisions = reserve_cohort(selector, asked, always=True)
    flat = [gains[one.layer_name][one.seed_idx] for one in decisions]
    mean = sum(flat) / len(flat)
    for at, (one, gain) in enumerate(zip(decisions, flat, strict=True)):
        contrast = Contrast(
            point=one.audition, gain=gain, stderr=stderr, mean=mean, noise=stderr, cohort=len(flat)
        )
        selector.performance_tracker.record_audition(one, contrast)
        selector.commit(one.layer_name, one.seed_idx)
        if at:
            selector.performance_tracker.withdraw(one)
        selector.free(one.layer_name, one.seed_idx, None)


def test_the_posterior_is_that_of_the_model() -> None:
    worths = RelativeWorths()
    worths.learn("run", [Gain(PAIRS[0], 0.02, 0.004), Gain(PAIRS[1], 0.01, 0.002)])
    means, covariance = worths.posterior(PAIRS)
    prior = np.full((4, 4), 0.0)
    for i, one in enumerate(PAIRS):
        for j, two in enumerate(PAIRS):
            layer, kind = one[0] == two[0], one[1] == two[1]
            prior[i, j] = OF_LAYER * layer + OF_KIND * kind + OF_BOTH * (layer and kind)
    values, unit = np.array([0.02, 0.01]), 0.015  # the unit is the mean gain, all being alike
    noise = np.diag(NOISE + (np.array([0.004, 0.002]) / unit) ** 2)
    gain = prior[:, :2] @ np.linalg.inv(prior[:2, :2] + noise)
    assert means == pytest.approx(1 + gain @ (values / unit - 1))
    assert covariance == pytest.approx(prior - gain @ prior[:2])


def test_a_factor_on_all_gains_of_a_run_teaches_the_same() -> None:
    one, two = RelativeWorths(), RelativeWorths()
    for step, gains in enumerate([(0.03, 0.01, 0.02), (0.012, 0.004, 0.01), (0.002, 0.001, 0.001)]):
        for worths, factor in ((one, 1.0), (two, 1e-6)):
            cohort = [
                Gain(pair, factor * gain, factor * 1e-4)
                for pair, gain in zip(PAIRS, gains, strict=False)
            ]
            worths.learn("run", cohort)
            worths.count_graft("run", PAIRS[step][0])
    assert one.posterior(PAIRS)[0] == pytest.approx(two.posterior(PAIRS)[0])


def test_gains_that_shrink_with_time_do_not_make_a_seed_worse() -> None:
    """Two seeds alike, one of them heard early and the other late, beside the same third."""
    worths, size = RelativeWorths(), 0.03
    for step in range(8):
        pair = PAIRS[0] if step < 4 else PAIRS[1]
        worths.learn("run", [Gain(pair, size, 1e-5), Gain(PAIRS[3], size, 1e-5)])
        size *= 0.7
    means = worths.posterior(PAIRS)[0]
    assert means[0] == pytest.approx(means[1], abs=0.15)


def test_a_layer_that_has_grown_is_expected_to_earn_less() -> None:
    worths = RelativeWorths()
    cohort = [Gain(PAIRS[0], 0.02, 1e-5), Gain(PAIRS[2], 0.02, 1e-5)]
    worths.learn("run", cohort)
    worths.count_graft("run", "fc1")
    worths.learn("run", [Gain(PAIRS[0], 0.02 * FADING, 1e-5), cohort[1]])
    means = worths.posterior(PAIRS)[0]
    assert means[0] == pytest.approx(means[2], abs=0.02)


def test_a_state_goes_on_as_it_was_and_a_damaged_one_is_refused() -> None:
    one, two = PooledKnowledge(), PooledKnowledge()
    one.worths.taught = True
    one.worths.learn("run", [Gain(pair, 0.01, 0.001) for pair in PAIRS])
    one.worths.count_graft("run", "fc1")
    state = json.loads(json.dumps(one.state_dict()))
    two.load_state_dict(state)
    assert two.state_dict() == one.state_dict()
    before = two.state_dict()
    with pytest.raises(ConfigError, match="worths of a state"):
        two.load_state_dict({**state, "worths": {"taught": True}})
    assert two.state_dict() == before
    del state["worths"]  # as 0.1.0 wrote it
    PooledKnowledge().load_state_dict(state)


def test_what_an_audition_taught_is_chosen_here_and_in_the_next_run() -> None:
    store = MemoryStore()
    first = SeedSelector(Auto(), tracker=PerformanceTracker(store=store, run="a"))
    for _ in range(3):
        _hear(first, {"fc1": (0.001, 0.03, 0.004), "fc2": (0.0, 0.02, 0.002)})
    assert first.decide("fc1", range(3), _context(9)).seed_idx == 1
    second = SeedSelector(Auto(), tracker=PerformanceTracker(store=store, run="b"), seed=5)
    decision = second.decide("fc2", range(3), _context())
    assert decision.seed_idx == 1
    assert "times what an average seed earns now" in decision.reason.reason
    unseen = second.decide("fc9", range(3), _context())  # its kinds are known
    assert unseen.seed_idx == 1


def test_sites_are_compared_and_the_clear_best_needs_no_audition() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    asked = {name: (range(3), _context()) for name in ("fc1", "fc2")}
    assert len(worths_of(selector, asked).cohort()) == 6
    for _ in range(12):
        _hear(selector, {"fc1": (0.001, 0.05, 0.004), "fc2": (0.0, 0.002, 0.002)})
    worths = worths_of(selector, asked)
    assert worths.arms[worths.best] == ("fc1", 1)
    assert worths.cohort() == []
    assert reserve_cohort(selector, asked) == []


def test_a_cohort_without_a_clear_gain_teaches_nothing() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    _hear(selector, {"fc1": (0.001, -0.002, 0.003)}, stderr=0.01)
    worths = worths_of(selector, {"fc1": (range(3), _context())})
    assert worths.means == (1.0, 1.0, 1.0)


def test_every_seed_is_chosen_once_in_a_hundred_times() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    _hear(selector, {"fc1": (0.05, 0.001, 0.0)})
    taken = list[int]()
    for epoch in range(300):
        decision = selector.decide("fc1", range(3), _context(epoch))
        taken.append(decision.seed_idx)
        reward = PerformanceDelta(reward=(0.05, 0.001, 0.0)[decision.seed_idx])
        tracker = selector.performance_tracker
        tracker.update_metrics_now("fc1", decision.seed_idx, reward, decision=decision)
    assert min(taken.count(1), taken.count(2)) >= 2  # and the audition
    assert taken.count(0) > 280


def test_reservations_of_a_cohort_end_like_others() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    asked = {"fc1": ([0, 1, 2], _context())}
    decisions = reserve_cohort(selector, asked)
    assert {one.audition for one in decisions} == {decisions[0].decision_id}
    assert [one.reason.propensity for one in decisions] == [1.0, 1.0, 1.0]
    assert reserve_cohort(selector, asked) == []  # all are reserved
    for one in decisions:
        selector.release("fc1", one.seed_idx)
    assert len(reserve_cohort(selector, asked)) == 3


OTHERS = [name for name in STRATEGIES.names() if name not in ("auto", "hierarchical")]


@pytest.mark.parametrize("name", OTHERS)
def test_other_strategies_expect_nothing_and_have_no_auditions(name: str) -> None:
    selector = SeedSelector(STRATEGIES.create(name))
    assert reserve_cohort(selector, {"fc1": ([0, 1], _context())}) == []
    assert len(reserve_cohort(selector, {"fc1": ([0, 1], _context())}, always=True)) == 2


def test_a_gain_that_is_not_finite_is_refused() -> None:
    selector = SeedSelector(Auto())
    (one, _) = reserve_cohort(selector, {"fc1": ([0, 1], _context())})
    contrast = Contrast(point="p", gain=float("nan"), stderr=0.1, mean=0.1, noise=0.1, cohort=2)
    with pytest.raises(MeasurementError, match="reward is nan"):
        selector.performance_tracker.record_audition(one, contrast)


def test_seeds_of_one_blueprint_do_not_compete() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    context = SelectionContext(layer_type="Linear", blueprints={0: "glu", 1: "glu"})
    assert reserve_cohort(selector, {"fc1": ([0, 1], context)}) == []
