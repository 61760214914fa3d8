"""Whatever happens, in whatever order: records stay exact and choices stay allowed."""

import json
from math import fsum, inf, isfinite, isinf, isnan
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esper.contracts.errors import ConfigError, NoViableSeedError
from esper.contracts.performance import PerformanceDelta, SeedPerformanceMetrics
from esper.contracts.selection import SelectionConstraints, SelectionContext
from esper.records.layer import LayerRecord
from esper.records.layer_sums import LayerSums
from esper.records.seed import SeedRecord
from esper.services.tamiyo.occupancy import Occupancy
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.settings import config_from
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.strategies.scoring import standardise

SIZES = st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12) | st.just(0.0)
REWARDS = st.lists(SIZES, min_size=1, max_size=60)


@given(REWARDS, st.integers(1, 25), st.floats(0.01, 1.0))
def test_running_sums_are_those_of_the_window(
    rewards: list[float], window_size: int, decay_factor: float
) -> None:
    record = SeedRecord("fc1", 0, "")
    for reward in rewards:
        record.add(reward, None, reward, window_size=window_size, decay_factor=decay_factor)
    window = rewards[-window_size:]
    assert record.measured() == (window, [], window)
    assert record.outcomes == len(rewards)
    assert record.count == len(window)
    size = max(map(abs, rewards))
    mean = fsum(window) / len(window)
    m2 = fsum([(reward - mean) ** 2 for reward in window])
    assert record.mean == pytest.approx(mean, rel=1e-9, abs=1e-7 * max(map(abs, window)))
    assert record.m2 == pytest.approx(m2, rel=1e-4, abs=1e-7 * max(map(abs, window)) ** 2)
    weights = [decay_factor**age for age in range(len(rewards))]
    recent = fsum([w * r for w, r in zip(weights, reversed(rewards), strict=True)]) / fsum(weights)
    assert record.recent == pytest.approx(recent, rel=1e-6, abs=1e-9 * size)


@given(st.dictionaries(st.integers(0, 7), REWARDS, max_size=8))
def test_units_are_finite_and_never_zero(rewards: dict[int, list[float]]) -> None:
    metrics = {
        seed: SeedPerformanceMetrics(seed, "fc1", rewards=values)
        for seed, values in rewards.items()
    }
    units = standardise(metrics)
    assert isfinite(units.centre)
    assert units.scale > 0
    for seed in metrics.values():
        assert isfinite((seed.mean - units.centre) / units.scale)


@given(
    st.lists(st.tuples(st.integers(0, 5), SIZES | st.just(1e99)), min_size=1, max_size=200),
    st.integers(1, 25),
    st.booleans(),
)
@example([(0, 1e12), (1, -1e12), *[(index % 2, 1e-12 * index) for index in range(60)]], 20, False)
@example([(index % 3, 7.0) for index in range(150)], 20, True)
def test_units_that_follow_every_outcome_are_those_of_the_columns(
    outcomes: list[tuple[int, float]], window_size: int, rebound: bool
) -> None:
    layer = LayerRecord("fc1")
    for number, (seed_idx, reward) in enumerate(outcomes):
        if rebound and not number % 9:
            layer.follow(seed_idx, f"blueprint {number % 4}")
        record = layer.current(seed_idx)
        record.add(reward, None, None, window_size=window_size, decay_factor=0.9)
        found = layer.seeds.sums.units()
        anew = LayerSums()
        anew.replace(layer.seeds, layer.seeds.values())
        centre, scale, count = anew.units()
        assert found[2] == count == sum(one.outcomes for one in layer.seeds.values())
        if isinf(scale) or isinf(found[1]):
            # Which spreads are rounding is itself known to within rounding only.
            size = max(abs(one.mean) for one in layer.seeds.values())
            assert min(scale, found[1]) == inf or min(scale, found[1]) < 1e-11 * size
            continue
        assert found[1] == pytest.approx(scale, rel=1e-7)
        assert found[0] == pytest.approx(centre, abs=1e-7 * scale)


@given(
    st.sets(st.integers(0, 9), min_size=1),
    st.sets(st.integers(0, 9), max_size=3),
    st.dictionaries(st.integers(0, 9), st.integers(0, 30)),
    st.integers(0, 40),
    st.none()
    | st.builds(SelectionConstraints, st.integers(0, 9), st.integers(1, 4), st.booleans()),
)
def test_every_seed_is_viable_or_cooling_or_shut_out(
    seeds: set[int],
    active: set[int],
    freed: dict[int, int],
    epoch: int,
    constraints: SelectionConstraints | None,
) -> None:
    book = Occupancy(busy=sorted(active), freed=freed)
    viable, cooling = book.sift(sorted(seeds), epoch, constraints)
    assert not set(viable) & set(cooling)
    assert set(viable) | set(cooling) <= seeds - active
    if constraints is None:
        assert set(viable) == seeds - active
    elif len(active) >= constraints.max_concurrent_seeds:
        assert not viable
        assert not cooling
    else:
        assert set(viable) | set(cooling) == seeds - active
        for seed in cooling:
            assert freed[seed] + constraints.min_dormant_epochs > epoch


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["choose", "commit", "release", "free", "outcome", "late", "failure"]),
        st.integers(0, 30),
        st.floats(-1, 1),
    ),
    max_size=60,
)


class Run:
    """A selector, and a plain model of what its seeds are doing."""

    def __init__(self, strategy: str, constraints: SelectionConstraints | None) -> None:
        self.store = MemoryStore()
        self.tracker = PerformanceTracker(store=self.store, run="r", window_size=4)
        self.selector = SeedSelector(
            STRATEGIES.create(strategy), tracker=self.tracker, constraints=constraints
        )
        self.constraints = constraints
        self.reserved: dict[int, Any] = {}
        self.busy: dict[int, Any] = {}
        self.old: list[Any] = []
        self.epoch = 0

    def step(self, what: str, pick: int, value: float) -> None:
        self.epoch += 1
        getattr(self, what)(pick, PerformanceDelta(reward=value))

    def choose(self, pick: int, delta: PerformanceDelta) -> None:
        active = self.reserved.keys() | self.busy.keys()
        try:
            decision = self.selector.decide(
                "fc1", [3, 0, 1, 2], SelectionContext(current_epoch=self.epoch)
            )
        except NoViableSeedError:
            rules = self.constraints
            limit = 4 if rules is None else rules.max_concurrent_seeds
            waiting = rules is not None and not rules.fallback_to_zero
            assert waiting or len(active) >= min(limit, 4)
            return
        assert decision.seed_idx not in active
        assert 0 < decision.reason.propensity <= 1
        assert all(not isnan(score) for score in decision.reason.scores.values())
        self.reserved[decision.seed_idx] = decision

    def commit(self, pick: int, delta: PerformanceDelta) -> None:
        if self.reserved:
            seed = sorted(self.reserved)[pick % len(self.reserved)]
            self.selector.commit("fc1", seed)
            self.busy[seed] = self.reserved.pop(seed)

    def release(self, pick: int, delta: PerformanceDelta) -> None:
        if self.reserved:
            seed = sorted(self.reserved)[pick % len(self.reserved)]
            self.selector.release("fc1", seed)
            del self.reserved[seed]

    def free(self, pick: int, delta: PerformanceDelta) -> None:
        if self.busy:
            seed = sorted(self.busy)[pick % len(self.busy)]
            self.selector.free("fc1", seed, self.epoch)
            self.old.append(self.busy.pop(seed))

    def outcome(self, pick: int, delta: PerformanceDelta) -> None:
        seed = pick % 4
        decision = self.reserved.pop(seed, None)
        self.tracker.update_metrics_now("fc1", seed, delta, decision=decision)

    def failure(self, pick: int, delta: PerformanceDelta) -> None:
        seed = pick % 4
        decision = self.reserved.pop(seed, None)
        self.tracker.record_failure("fc1", seed, "it broke", decision=decision)

    def late(self, pick: int, delta: PerformanceDelta) -> None:
        if self.old:
            decision = self.old[pick % len(self.old)]
            self.tracker.update_metrics_now("fc1", decision.seed_idx, delta, decision=decision)


@settings(max_examples=60, deadline=None)
@given(
    STEPS,
    st.sampled_from(STRATEGIES.names()),
    st.none()
    | st.builds(SelectionConstraints, st.integers(0, 9), st.integers(1, 4), st.booleans()),
)
def test_no_story_breaks_the_selector_and_the_store_tells_it_again(
    steps: list[tuple[str, int, float]], strategy: str, constraints: SelectionConstraints | None
) -> None:
    run = Run(strategy, constraints)
    for step in steps:
        run.step(*step)
    again = PerformanceTracker(store=run.store, window_size=4)
    assert again.get_layer_metrics("fc1") == run.tracker.get_layer_metrics("fc1")
    state = run.selector.state_dict()
    run.selector.load_state_dict(json.loads(json.dumps(state)))
    assert run.selector.state_dict() == state


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["seed_selection", "growth", "reward", "constraints", "performance", "ucb", "strategy", "kind"]
)


@given(st.dictionaries(KEYS, PLAIN | st.dictionaries(KEYS | st.text(max_size=5), PLAIN)) | PLAIN)
def test_settings_are_taken_or_refused_by_a_config_error(data: Any) -> None:
    try:
        config_from(data)
    except ConfigError as error:
        message = str(error)
    else:
        message = "settings: "
    assert message.startswith("settings: ")
