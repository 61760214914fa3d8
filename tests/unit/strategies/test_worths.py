"""Relative worths against the formulas of a Gaussian process, and what auditions teach `auto`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from esper.contracts.audition import FADING, Contrast, Worths
from esper.contracts.errors import ConfigError, MeasurementError
from esper.contracts.health import HealthSignal
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext, decision_from
from esper.records.draws import Draws
from esper.services.tamiyo.cohort import reserve_cohort, worths_of
from esper.services.tamiyo.drawn import draw_arms
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.strategies.pooled.auto import Auto
from esper.strategies.pooled.knowledge import PooledKnowledge
from esper.strategies.pooled.worths import (
    DEPTH_OF_BOTH,
    DEPTH_OF_LAYER,
    LEAD,
    LED,
    NOISE,
    OF_BLUEPRINT,
    OF_BOTH,
    OF_KIND,
    OF_LAYER,
    REACH,
    Gain,
    RelativeWorths,
    lead_of,
)

PAIRS = [("fc1", "glu"), ("fc1", "gate"), ("fc2", "glu"), ("fc2", "gate")]
BLUEPRINTS = {0: "glu", 1: "gate", 2: "lowrank"}


def _context(epoch: int = 0) -> SelectionContext:
    return SelectionContext(current_epoch=epoch, layer_type="Linear", blueprints=BLUEPRINTS)


def _selector(store: MemoryStore, run: str) -> SeedSelector:
    return SeedSelector(Auto(), tracker=PerformanceTracker(store=store, run=run))


def _at(name: str, depth: float | None) -> HealthSignal | None:
    return None if depth is None else HealthSignal(layer_name=name, epoch=0, depth=depth)


def _hear(
    selector: SeedSelector,
    gains: Mapping[str, Sequence[float]],
    stderr: float = 0.001,
    depths: Mapping[str, float] | None = None,
    promises: Mapping[int, float] | None = None,
) -> None:
    """One audition of all seeds of some layers, of which the first one goes on."""
    asked = {
        name: (
            range(len(one)),
            replace(
                _context(),
                health=_at(name, (depths or {}).get(name)),
                promises=promises or {},
            ),
        )
        for name, one in gains.items()
    }
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
    worths.learn_audition("run", [Gain(PAIRS[0], 0.02, 0.004), Gain(PAIRS[1], 0.01, 0.002)])
    means, covariance = worths.posterior(PAIRS)
    prior = np.full((4, 4), 0.0)
    for i, one in enumerate(PAIRS):
        for j, two in enumerate(PAIRS):
            layer, kind = one[0] == two[0], one[1] == two[1]
            shared = (OF_BLUEPRINT + OF_KIND) * kind
            prior[i, j] = OF_LAYER * layer + shared + OF_BOTH * (layer and kind)
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
            worths.learn_audition("run", cohort)
            worths.learn_outcome("run", Gain(PAIRS[step], factor, 0.0), audition=True)
    assert one.posterior(PAIRS)[0] == pytest.approx(two.posterior(PAIRS)[0])


def test_gains_that_shrink_with_time_do_not_make_a_seed_worse() -> None:
    """Two seeds alike, one of them heard early and the other late, beside the same third."""
    worths, size = RelativeWorths(), 0.03
    for step in range(8):
        pair = PAIRS[0] if step < 4 else PAIRS[1]
        worths.learn_audition("run", [Gain(pair, size, 1e-5), Gain(PAIRS[3], size, 1e-5)])
        size *= 0.7
    means = worths.posterior(PAIRS)[0]
    assert means[0] == pytest.approx(means[1], abs=0.15)


def test_a_layer_that_has_grown_is_expected_to_earn_less() -> None:
    worths = RelativeWorths()
    cohort = [Gain(PAIRS[0], 0.02, 1e-5), Gain(PAIRS[2], 0.02, 1e-5)]
    worths.learn_audition("run", cohort)
    worths.learn_outcome("run", Gain(PAIRS[0], 0.05, 0.001), audition=True)
    worths.learn_audition("run", [Gain(PAIRS[0], 0.02 * FADING, 1e-5), cohort[1]])
    means = worths.posterior(PAIRS)[0]
    assert means[0] == pytest.approx(means[2], abs=0.02)


def test_a_state_goes_on_as_it_was_and_a_damaged_one_is_refused() -> None:
    one, two = PooledKnowledge(), PooledKnowledge()
    one.worths.taught = True
    one.worths.learn_audition("run", [Gain(pair, 0.01, 0.001) for pair in PAIRS])
    one.worths.learn_outcome("run", Gain(PAIRS[0], 0.05, 0.001), audition=True)
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


def test_a_seed_that_no_audition_asks_for_is_heard_once_in_a_hundred_times() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    _hear(selector, {"fc1": (0.05, 0.05, -0.1)})
    asked = {"fc1": (range(3), _context())}
    for choices in range(3, 199, 2):
        assert ("fc1", 2) not in worths_of(selector, asked).cohort(), choices
        _hear(selector, {"fc1": (0.05, 0.05)})
    _hear(selector, {"fc1": (0.05, 0.05)})
    assert ("fc1", 2) in [(one.layer_name, one.seed_idx) for one in reserve_cohort(selector, asked)]


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


def test_a_blueprint_is_expected_of_other_layer_types_as_well() -> None:
    worths = RelativeWorths()
    for _ in range(4):
        worths.learn_audition("run", [Gain(("a", "Linear/glu"), 0.03, 1e-4),
                                      Gain(("a", "Linear/gate"), 0.01, 1e-4)])  # fmt: skip
    means = worths.posterior([("b", "Conv1d/glu"), ("b", "Conv1d/gate"), ("b", "Linear/glu")])[0]
    assert means[2] > means[0] > means[1] + 0.05


def test_a_run_that_begins_with_seeds_that_do_harm_learns_it() -> None:
    worths = RelativeWorths()
    worths.learn_outcome("run", Gain(PAIRS[2], 0.0, 0.0), audition=False)  # a failure
    assert worths.posterior(PAIRS)[0] == pytest.approx(1)
    worths.learn_audition("run", [Gain(PAIRS[0], -0.03, 1e-4), Gain(PAIRS[1], -0.01, 1e-4)])
    worths.learn_outcome("run", Gain(PAIRS[2], -0.02, 1e-4), audition=False)
    means = worths.posterior(PAIRS)[0]
    assert means[0] < means[1] < 1
    assert means[2] < 1


# --- depth, and runs of one kernel ----------------------------------------------------------------


def test_a_layer_that_was_never_tried_inherits_what_layers_as_deep_earned() -> None:
    """By hand: one measurement of 3 at depth 0.1; layers 0.05 and 0.5 away, of the same kind."""
    worths = RelativeWorths()
    worths.locate("a", 0.1)
    worths.learn_audition("run", [Gain(("a", "Linear/glu"), 3.0, 0.0)])  # worth 1 in units of 3
    worths.learn_outcome("other", Gain(("a", "Linear/glu"), 0.0, 0.0), audition=True)
    pairs = [("b", "Linear/glu"), ("c", "Linear/glu")]
    shared = OF_BLUEPRINT + OF_KIND
    of_depth = (DEPTH_OF_LAYER + DEPTH_OF_BOTH) * (1 - 0.05 / REACH)
    _, covariance = worths.posterior(pairs, {"b": 0.15, "c": 0.6})
    known = OF_LAYER + OF_BOTH + shared + NOISE
    prior = OF_LAYER + OF_BOTH + shared
    assert covariance[0, 0] == pytest.approx(prior - (shared + of_depth) ** 2 / known)
    assert covariance[1, 1] == pytest.approx(prior - shared**2 / known)


def test_sites_a_fifth_of_a_network_apart_are_judged_as_if_no_depth_were_known() -> None:
    gains = [Gain(pair, 0.01 * at, 0.002) for at, pair in enumerate(PAIRS, 1)]
    with_depth, without = RelativeWorths(), RelativeWorths()
    for at, name in enumerate(("fc1", "fc2")):
        with_depth.locate(name, 0.3 + REACH * at)
    for worths in (with_depth, without):
        worths.learn_audition("run", gains)
    for ours, theirs in zip(with_depth.posterior(PAIRS), without.posterior(PAIRS), strict=True):
        assert np.array_equal(ours, theirs)


def test_another_network_on_the_store_reads_the_depths_of_the_first() -> None:
    """Site `early` of the second network was never tried; `one`, as deep, was the best of three."""
    store = MemoryStore()
    first = _selector(store, "r0")
    depths = {"one": 0.1, "two": 0.5, "three": 0.9}
    _hear(first, {"one": [0.03], "two": [0.01], "three": [0.01]}, depths=depths)
    asked = {
        name: ([0], replace(_context(), health=_at(name, depth)))
        for name, depth in (("late", 0.85), ("early", 0.15))
    }
    worths = worths_of(_selector(store, "r1"), asked)
    late, early = worths.means
    assert early > late + 0.2
    decision = next(event for _, event in store.read(kinds=["decision"]))
    assert decision.data["depth"] == 0.1
    unknown = {name: ([0], _context()) for name in ("late", "early")}
    late, early = worths_of(_selector(store, "r1"), unknown).means
    assert late == early


def test_outcomes_alone_teach_where_runs_are_too_short_to_teach_themselves() -> None:
    store = MemoryStore()
    for number in range(8):
        selector = _selector(store, f"r{number}")
        decision = selector.decide("fc1", [0, 1], _context())
        reward = 0.02 if decision.seed_idx else 0.01
        delta = PerformanceDelta(reward=reward, reward_stderr=0.001)
        selector.performance_tracker.update_metrics_now(
            "fc1", decision.seed_idx, delta, decision=decision
        )
    selector = _selector(store, "last")
    asked = {name: ([0, 1], _context()) for name in ("fc1", "fc2")}
    zero, one, zero_there, one_there = worths_of(selector, asked).means
    assert one > zero
    assert one_there > zero_there
    assert set(Auto().knows([0, 1, 2], {}, _context())) == set(), "no history, so all are tried"
    reason = selector.decide("fc2", [0, 1, 2], _context()).reason
    assert reason.reason.startswith("highest draw of 3 viable seeds")
    assert sum(reason.propensities.values()) == pytest.approx(1.0, abs=0.01)
    assert all(type(score) is float for score in reason.scores.values())


def test_a_kind_that_was_unlucky_at_first_is_tried_again_where_runs_are_short() -> None:
    store, chosen = MemoryStore(), list[int]()
    for number in range(48):
        selector = _selector(store, f"r{number}")
        decision = selector.decide(f"layer{number % 8}", [0, 1], _context())
        better = 0.0 if number < 8 else 0.05
        reward = better if decision.seed_idx else 0.02
        delta = PerformanceDelta(reward=reward, reward_stderr=0.005)
        selector.performance_tracker.update_metrics_now(
            decision.layer_name, decision.seed_idx, delta, decision=decision
        )
        chosen.append(decision.seed_idx)
    assert sum(chosen[-16:]) >= 10, chosen


def test_outcomes_of_long_runs_teach_no_worths() -> None:
    worths = RelativeWorths()
    for run in range(4):
        for at in range(3):
            worths.learn_untaught(f"r{run}", Gain(PAIRS[at], 0.01, 0.001))
    for run in range(4, 12):
        worths.learn_untaught(f"r{run}", Gain(PAIRS[0], 0.01, 0.001))
    assert not worths.taught


@pytest.mark.parametrize("outcomes", [3, 7])
def test_a_state_in_the_middle_of_short_runs_goes_on_as_it_was(outcomes: int) -> None:
    one, two = RelativeWorths(), RelativeWorths()
    one.locate("fc1", 0.25)

    def learn(worths: RelativeWorths, run: int) -> None:
        gain = Gain(PAIRS[run % 4], 0.01 * (run + 1), 0.001)
        if worths.taught:
            worths.learn_outcome(f"r{run}", gain, audition=False)
        else:
            worths.learn_untaught(f"r{run}", gain)

    for run in range(outcomes):
        learn(one, run)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for run in range(outcomes, 12):
        learn(one, run)
        learn(two, run)
    assert one.taught
    assert one.state_dict() == two.state_dict()


def test_a_state_without_depths_can_be_read() -> None:
    worths = RelativeWorths()
    state = worths.state_dict()
    for name in ("depths", "early", "leads", "short"):
        del state[name]
    other = RelativeWorths()
    other.load_state_dict(state)
    assert other.state_dict() == worths.state_dict()


def test_of_many_candidates_each_is_drawn_with_the_chance_that_it_is_the_best() -> None:
    """Two arms of worth 1 ± 1 beside one of 0 that is known: the third is the best in a quarter."""
    arms = (("a", 0), ("a", 1), ("b", 0))
    rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    worths = Worths(arms, (0.0, 0.0, 0.0), rows)
    drawn = [draw_arms(worths, 1, Draws(0, "a", number))[0] for number in range(2000)]
    assert drawn.count(("b", 0)) / 2000 == pytest.approx(0.25, abs=0.04)
    assert drawn.count(("a", 0)) / 2000 == pytest.approx(0.375, abs=0.04)
    for number in range(20):
        assert len(set(draw_arms(worths, 2, Draws(0, "a", number)))) == 2
    assert draw_arms(worths, 3, Draws(0, "a", 0)) == list(arms)


def test_worths_are_drawn_with_half_their_spread() -> None:
    """One of 0 ± 1 beats one of 1 that is known with chance Phi(-2) = 0.023; Phi(-1) = 0.159."""
    worths = Worths((("a", 0), ("a", 1)), (0.0, 1.0), ((1.0, 0.0), (0.0, 0.0)))
    drawn = [draw_arms(worths, 1, Draws(0, "a", number))[0] for number in range(2000)]
    assert drawn.count(("a", 0)) / 2000 == pytest.approx(0.023, abs=0.012)


@pytest.mark.parametrize("name", ["auto", "random"])
def test_a_cohort_has_at_most_as_many_seeds_as_asked_for(name: str) -> None:
    selector = SeedSelector(STRATEGIES.create(name), tracker=PerformanceTracker())
    asked = {f"fc{at}": ([0, 1, 2], _context()) for at in range(6)}
    found = reserve_cohort(selector, asked, always=True, most=4)
    assert len({(one.layer_name, one.seed_idx) for one in found}) == 4
    assert len({one.layer_name for one in found}) > 1


# --- what gradients promise -----------------------------------------------------------------------


def _promising(promises: Mapping[int, float], epoch: int = 0) -> SelectionContext:
    return replace(_context(epoch), promises=promises)


def test_a_promise_moves_the_worth_and_leaves_less_of_its_variance() -> None:
    worths = RelativeWorths()
    leads = {PAIRS[0]: lead_of(4.0), PAIRS[3]: lead_of(0.0)}
    means, covariance = worths.posterior(PAIRS, leads=leads)
    assert means == pytest.approx([1 + LEAD, 1, 1, 1 - LEAD])
    before = worths.posterior(PAIRS)[1]
    assert np.diag(covariance) == pytest.approx(np.diag(before) * np.array([LED, 1, 1, LED]))
    assert covariance[1, 2] == pytest.approx(before[1, 2])
    assert covariance[0, 1] == pytest.approx(before[0, 1] * sqrt(LED))
    assert covariance[0, 3] == pytest.approx(before[0, 3] * LED)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_a_run_that_reads_no_gradients_inherits_what_those_of_another_promised() -> None:
    """A seed that kept a great promise is better than one that exceeded a small one."""
    store = MemoryStore()
    promises, gains = {0: 4.0, 1: 0.25, 2: 1.0}, {"fc1": (0.03, 0.012, 0.022)}
    first = _selector(store, "r0")
    for _ in range(6):
        _hear(first, gains, stderr=1e-5, promises=promises)
    first.performance_tracker.flush()
    asked = {"fc1": (range(3), _context())}
    means = worths_of(_selector(store, "r1"), asked).means
    assert means == pytest.approx(worths_of(first, asked).means)
    assert means[0] / means[2] == pytest.approx(0.03 / 0.022, rel=0.2)
    assert means[0] / means[1] == pytest.approx(0.03 / 0.012, rel=0.2)


def test_a_seed_that_earned_what_its_gradient_promised_is_thought_no_better_for_it() -> None:
    worths = RelativeWorths()
    gains = [Gain(pair, 0.01 * (1 + lead), 1e-5, lead)
             for pair, lead in zip(PAIRS[:2], (0.6, -0.6), strict=True)]  # fmt: skip
    for _ in range(4):
        worths.learn_audition("run", gains)
    assert worths.posterior(PAIRS)[0] == pytest.approx(1, abs=1e-6)
    without = RelativeWorths()
    for _ in range(4):
        without.learn_audition("run", [gain._replace(lead=0.0) for gain in gains])
    means = without.posterior(PAIRS)[0]
    assert means[0] > 1.2
    assert means[1] < 0.8


def test_before_any_history_the_gradient_says_which_seed_and_its_chances_are_true() -> None:
    taken = [0, 0, 0]
    for seed in range(200):
        selector = SeedSelector(Auto(), tracker=PerformanceTracker(run="a"), seed=seed)
        decision = selector.decide("fc1", range(3), _promising({0: 0.1, 1: 2.6, 2: 0.3}))
        taken[decision.seed_idx] += 1
    assert taken[1] > 190
    assert decision.promise == 2.6
    assert decision.reason.propensities[1] > 0.9


def test_sites_are_compared_by_what_their_gradients_promise() -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(run="a"))
    asked = {
        name: (range(2), _promising({0: promise, 1: 1.0}))
        for name, promise in (("fc1", 0.25), ("fc2", 4.0))
    }
    worths = worths_of(selector, asked)
    assert worths.arms[worths.best] == ("fc2", 0)
    assert worths.means == pytest.approx([1 - LEAD / 2, 1, 1 + LEAD, 1])


@pytest.mark.parametrize("promise", [float("nan"), float("inf"), -1.0])
def test_a_promise_that_is_no_size_counts_as_none(promise: float) -> None:
    selector = SeedSelector(Auto(), tracker=PerformanceTracker(store=MemoryStore(), run="a"))
    decision = selector.decide("fc1", range(2), _promising({0: promise}))
    assert decision.promise is None
    assert worths_of(selector, {"fc1": ([1], _promising({1: promise}))}).means == (1.0,)


def test_another_run_reads_what_was_promised_of_each_choice() -> None:
    store = MemoryStore()
    first = _selector(store, "r0")
    decision = first.decide("fc1", range(2), _promising({0: 4.0, 1: 0.25}))
    first.performance_tracker.flush()
    made = next(event for _, event in store.read(kinds=["decision"]))
    assert made.data["promise"] == decision.promise
    assert decision_from(made.data) == decision
