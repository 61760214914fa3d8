"""Assignment to the arms of an A/B test: sticky, seeded, fair, and written down."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any, get_args

import pytest

from esper.contracts.config import Config
from esper.contracts.errors import ConfigError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import (
    Decision,
    SelectionContext,
    SelectionReason,
    decision_data,
    decision_from,
)
from esper.services.tamiyo.assignment import Assignment, KnowledgeOfArms, Unit, arm_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.settings import config_from
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES, SelectionStrategy

TWO = {"a": 1.0, "b": 1.0}
SECTION: dict[str, Any] = {
    "salt": "t1",
    "arms": {
        "now": {"strategy": "ucb"},
        "new": {"strategy": "thompson", "settings": {"prior_alpha": 2.0}, "weight": 2.0},
    },
}


def _with(arm: dict[str, Any]) -> dict[str, Any]:
    arms: dict[str, Any] = SECTION["arms"]
    return arms | {"x": arm}


def selector(assignment: Assignment, store: MemoryStore, run: str = "r") -> SeedSelector:
    return SeedSelector(assignment, tracker=PerformanceTracker(store=store, scope="s", run=run))


def choose(chooser: SeedSelector, choices: int, layers: int = 2) -> list[Any]:
    made = []
    for epoch in range(choices):
        decision = chooser.decide(
            f"fc{epoch % layers}", [0, 1, 2], SelectionContext(current_epoch=epoch)
        )
        chooser.performance_tracker.update_metrics_now(
            decision.layer_name,
            decision.seed_idx,
            PerformanceDelta(reward=0.01 * decision.seed_idx + 0.001 * (epoch % 5)),
            decision=decision,
        )
        made.append(decision)
    return made


def two(unit: Unit = "graft", first: str = "ucb", second: str = "random") -> Assignment:
    arms = {"a": STRATEGIES.create(first), "b": STRATEGIES.create(second)}
    return Assignment("t", arms, unit=unit)


def test_another_process_assigns_alike_in_any_order() -> None:
    units = [f"s/r{number}" for number in range(50)]
    code = (
        "import sys, json; from esper.services.tamiyo.assignment import arm_of; "
        "print(json.dumps([arm_of('t', u, {'b': 1.0, 'a': 1.0}) for u in json.loads(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(units[::-1])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)[::-1] == [arm_of("t", unit, TWO) for unit in units]


def test_the_split_is_that_of_the_weights_and_another_salt_is_another_split() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    units = [str(number) for number in range(8000)]
    split = [arm_of("t", unit, weights) for unit in units]
    count = Counter(split)
    for arm, weight in weights.items():
        expected = 1000 * weight
        assert abs(count[arm] - expected) < 4 * expected**0.5
    other = [arm_of("u", unit, weights) for unit in units]
    both = sum(one == two for one, two in zip(split, other, strict=True)) / 8000
    assert abs(both - (1 + 4 + 25) / 64) < 0.03  # as often as by chance


@pytest.mark.parametrize("unit", get_args(Unit))
def test_what_is_assigned_stays_assigned(unit: Unit) -> None:
    store = MemoryStore()
    made = [d for run in range(12) for d in choose(selector(two(unit), store, f"r{run}"), 8)]
    by_unit: dict[str, set[str]] = {}
    for decision in made:
        assert decision.ab.test == "t"
        by_unit.setdefault(decision.ab.unit, set()).add(decision.ab.arm)
        assert decision.reason.strategy == {"a": "ucb", "b": "random"}[decision.ab.arm]
    assert all(len(arms) == 1 for arms in by_unit.values())
    assert len(by_unit) == {"run": 12, "layer": 24, "graft": 96}[unit]
    assert set.union(*by_unit.values()) == {"a", "b"}


def test_every_decision_and_the_test_itself_are_in_the_log() -> None:
    store = MemoryStore()
    assignment = two()
    made = choose(selector(assignment, store), 10)
    selector(assignment, store)  # a resumed run tells the same
    events = [event for _, event in store.read()]
    (declared,) = [event.data for event in events if event.kind == "ab_test"]
    assert declared == assignment.declaration()
    assert [arm["strategy"] for arm in declared["arms"]] == ["ucb", "random"]
    logged = [event.data["ab"] for event in events if event.kind == "decision"]
    assert [(ab["arm"], ab["unit"]) for ab in logged] == [(d.ab.arm, d.ab.unit) for d in made]
    for decision in made:
        assert decision_from(json.loads(json.dumps(decision_data(decision)))) == decision


def test_without_a_test_the_log_says_nothing_of_one() -> None:
    store = MemoryStore()
    chooser = SeedSelector(STRATEGIES.create("ucb"), tracker=PerformanceTracker(store=store))
    choose(chooser, 3)
    assert all("ab" not in event.data for _, event in store.read())


LEARNING = [
    name
    for name in STRATEGIES.names()
    if type(STRATEGIES.create(name)).begin is not SelectionStrategy.begin
]


@pytest.mark.parametrize("name", LEARNING or ["ucb"])
def test_a_strategy_that_learns_has_its_own_knowledge_of_all_outcomes(name: str) -> None:
    """With weights that leave it alone, it chooses as if there were no test."""
    arms = {"alone": STRATEGIES.create(name), "never": STRATEGIES.create("random")}
    test = Assignment("t", arms, weights={"alone": 1.0, "never": 1e-12})
    tested = choose(selector(test, MemoryStore()), 40)
    chooser = SeedSelector(
        STRATEGIES.create(name),
        tracker=PerformanceTracker(store=MemoryStore(), scope="s", run="r"),
    )
    plain = choose(chooser, 40)
    assert [d.seed_idx for d in tested] == [d.seed_idx for d in plain]


@pytest.mark.parametrize("name", LEARNING or ["ucb"])
def test_a_strategy_that_learns_may_stand_beside_any_other(name: str) -> None:
    made = choose(selector(two(first=name, second="epsilon_greedy"), MemoryStore()), 60)
    assert {decision.ab.arm for decision in made} == {"a", "b"}


def test_an_arm_learns_of_another_arms_choice_how_likely_each_seed_was() -> None:
    test = two(first="exp3", second="lin_ts")
    together, alone = test.begin("fc1"), test.arms["a"].begin("fc1")
    assert alone is not None
    reason = SelectionReason(
        "lin_ts", 1, 0.5, {}, {0: 0.4, 1: 0.6, 2: 0.0}, "", False, (0, 2), features=(1.0,)
    )
    made = Decision(
        decision_id="r/fc1/0",
        layer_name="fc1",
        seed_idx=1,
        blueprint="glu",
        epoch=0,
        reason=reason,
        random_key=(0, "fc1", 0),
    )
    together.by_arm["a"].learn(0, 1.0, None)
    alone.learn(0, 1.0, None)
    KnowledgeOfArms({"a": together.by_arm["a"]}, together.strategies).learn(1, 2.0, made)
    alone.learn(1, 2.0, made)
    assert together.by_arm["a"].state_dict() == alone.state_dict()


def test_a_resumed_selector_goes_on_with_the_same_arms_only() -> None:
    chooser = selector(two(), MemoryStore())
    state = json.loads(json.dumps(chooser.state_dict()))
    chooser.load_state_dict(state)
    other = Assignment("t", {"x": STRATEGIES.create("ucb"), "y": STRATEGIES.create("random")})
    with pytest.raises(ConfigError, match="resume with the settings"):
        selector(other, MemoryStore()).load_state_dict(state)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "at least two arms, this one has 1"),
        ({}, "at least two arms, this one has 0"),
        ({"a": 1.0, "b": 0.0}, "arm 'b' has weight 0.0"),
        ({"a": -1.0, "b": 1.0}, "arm 'a' has weight -1.0"),
        ({"a": float("nan"), "b": 1.0}, "arm 'a' has weight nan"),
        ({"a": float("inf"), "b": 1.0}, "arm 'a' has weight inf"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm_of("t", "unit", weights)
    with pytest.raises(ConfigError):
        Assignment("t", dict.fromkeys(weights, STRATEGIES.create("ucb")), weights=weights)


def test_weights_for_other_arms_are_refused() -> None:
    arms = dict.fromkeys("ab", STRATEGIES.create("ucb"))
    with pytest.raises(ConfigError, match="weights are for a, c, but the arms are a, b"):
        Assignment("t", arms, weights={"a": 1.0, "c": 1.0})


def test_the_section_makes_the_assignment_and_survives_json() -> None:
    config = config_from({"ab_test": SECTION})
    assert Config.model_validate(json.loads(config.model_dump_json())) == config
    assert config.ab_test is not None
    test = Assignment.of(config.ab_test)
    assert test.weights == {"now": 1.0, "new": 2.0}
    assert test.arms["new"] == STRATEGIES.create("thompson", prior_alpha=2.0)
    assert test.guardrails == {"failure_rate": 0.05, "culled_share": 0.1, "latency": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"now": {"strategy": "ucb"}}}, "1 arm.*at least two"),
        ({"arms": _with({"strategy": "ucbb"})}, "arms.x: .*mean 'ucb'"),
        ({"arms": _with({})}, "ab_test.arms.x.strategy is missing"),
        ({"arms": _with({"strategy": "ucb", "weight": 0})}, "weight is 0; .*greater than 0"),
        ({"arms": _with({"strategy": "ucb", "weight": -2.0})}, "weight is -2.0"),
        ({"arms": _with({"strategy": "ucb", "wait": 1})}, "'wait'.*strategy"),
        ({"arms": _with({"strategy": "ucb", "settings": {"c": 1}})}, "'ucb': 'c'"),
        ({"arms": SECTION["arms"] | {3: {"strategy": "ucb"}}}, "key 3 in ab_test.arms"),
        ({"arms": None}, "ab_test.arms is None"),
        ({"salt": ""}, "ab_test.salt is empty"),
        ({"unit": "epoch"}, "ab_test.unit is 'epoch'"),
        ({"guardrails": {"latency_ms": 1.0}}, "'latency_ms'.*mean 'latency'"),
        ({"guardrails": {"latency": -1.0}}, "guardrails.latency is -1.0"),
        ({"sault": "x"}, "'sault'.*mean 'salt'"),
    ],
)
def test_a_mistake_in_the_section_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from({"ab_test": SECTION | change})
