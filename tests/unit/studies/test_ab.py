"""Verdicts on A/B tests whose truth is known."""

from collections.abc import Mapping
from dataclasses import replace as changed
from typing import Any, Literal

import numpy as np
import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.services.tamiyo.assignment import Assignment, arm_of
from esper.strategies import STRATEGIES
from esper.studies.logged.ab import AbResult, analyse
from esper.studies.logged.logs import Log
from tests.unit.studies.simulated import log_of, record

EVEN = {"a": 1.0, "b": 1.0}


def experiment(
    difference: float,
    units: int,
    *,
    unit: Literal["run", "layer", "graft"] = "graft",
    per_unit: int = 1,
    weights: Mapping[str, float] = EVEN,
    lost: float = 0.0,
    seed: int = 0,
) -> Log:
    """A log as production would write it: ``b`` earns ``difference`` sd more than ``a``."""
    rng = np.random.default_rng(seed)
    arms = [{"arm": name, "strategy": name, "weight": weight} for name, weight in weights.items()]
    about: dict[str, Any] = {"test": "t", "unit": unit, "arms": arms, "guardrails": {}}
    events = [Event("declared", "ab_test", "s", "r", about)]
    for number in range(units):
        name = f"s/r{number}"
        arm = arm_of("t", name, weights)
        if arm == "b" and rng.random() < lost:
            continue
        base = rng.normal() + (difference if arm == "b" else 0.0)
        for choice in range(per_unit):
            made = {"decision": f"{name}/fc1/{choice}", "layer": "fc1"}
            decision = {
                **made, "strategy": arm, "ab": {"test": "t", "arm": arm, "unit": name}
            }  # fmt: skip
            # Outcomes of one unit are nearly the same: it says hardly more than one of them.
            outcome = {**made, "reward": base + 0.1 * rng.normal()}
            events += [
                Event(f"d{number}/{choice}", "decision", "s", name, decision),
                Event(f"o{number}/{choice}", "outcome", "s", name, outcome),
            ]
    return Log(name="t", events=events)


def verdict(result: AbResult) -> str:
    (said,) = result.verdicts
    return said


def test_a_difference_is_decided_in_words_with_an_interval() -> None:
    found = analyse([experiment(0.6, 400)])
    (one,) = found.comparisons
    assert one.state == "decided"
    assert one.low is not None
    assert one.high is not None
    assert 0 < one.low < 0.6 < one.high
    assert one.decided_after is not None
    assert one.decided_after < 400
    said = verdict(found)
    assert said.startswith(f"b earns {one.difference:.2f} sd more than a (95 % confidence sequence")
    assert said.endswith(f": decided after {one.decided_after} grafts")


def test_the_worse_arm_is_named_as_such() -> None:
    assert verdict(analyse([experiment(-0.8, 300)])).startswith("a earns ")


def test_undecided_says_how_many_more() -> None:
    found = analyse([experiment(0.3, 100)])
    (one,) = found.comparisons
    assert one.state == "open"
    assert one.needed is not None
    said = verdict(found)
    assert said.startswith("not decided yet: ")
    assert said.endswith("more grafts if the difference stays")


def test_arms_that_are_surely_alike_are_called_so() -> None:
    found = analyse([experiment(0.0, 8000)])
    assert found.comparisons[0].state == "alike"
    assert "alike, within 0.1 sd" in verdict(found)


def test_a_difference_that_went_away_is_told() -> None:
    first, then = experiment(1.0, 120), experiment(-1.0, 240, seed=1)
    fresh = [event for event in then.events if event.run not in {e.run for e in first.events}]
    found = analyse([changed(first, events=[*first.events, *fresh])])
    assert found.comparisons[0].state == "faded"
    assert "differed after" in verdict(found)


@pytest.mark.parametrize("unit", ["run", "layer"])
def test_outcomes_of_one_run_or_layer_do_not_count_as_independent(unit: Any) -> None:
    wrong = {1: 0, 20: 0}
    for per_unit in wrong:
        for seed in range(40):
            log = experiment(0.0, 40, unit=unit, per_unit=per_unit, seed=seed)
            (one,) = analyse([log]).comparisons
            assert len(one.path.counts) == 40
            wrong[per_unit] += one.state == "decided"
    assert max(wrong.values()) <= 4


def test_units_missing_from_an_arm_forbid_a_verdict() -> None:
    found = analyse([experiment(0.5, 400, lost=0.4)])
    assert not found.balance.even
    assert found.balance.p_value < 0.001
    assert verdict(found).startswith("no verdict: the split is a ")
    assert "begin anew with another salt" in verdict(found)


def test_weights_are_what_the_split_is_held_to() -> None:
    weights = {"a": 3.0, "b": 1.0}
    found = analyse([experiment(0.5, 400, weights=weights)])
    assert found.balance.even
    assert [arm.weight for arm in found.arms] == [3.0, 1.0]
    assert found.arms[0].units > 2 * found.arms[1].units


def test_weights_changed_in_mid_test_are_found_out() -> None:
    log = experiment(0.5, 300)
    again = {**log.events[0].data, "arms": experiment(0, 0, weights={"a": 9.0, "b": 1.0})
             .events[0].data["arms"]}  # fmt: skip
    events = [*log.events, Event("again", "ab_test", "s", "r", again)]
    found = analyse([changed(log, events=events)])
    assert found.balance.moved > 50
    assert "changed in mid-test" in verdict(found)


def test_an_arm_that_does_harm_is_to_be_stopped() -> None:
    arms = {name: STRATEGIES.create("random") for name in ("tame", "wild")}
    found = analyse([log_of(record(Assignment("t", arms), choices=400, failing="wild"))])
    rails = {rail.name: rail for rail in found.comparisons[0].guardrails}
    assert rails["failure_rate"].state == "crossed"
    assert rails["failure_rate"].worse_by == pytest.approx(0.5, abs=0.1)
    assert rails["culled_share"].worse_by is not None
    assert rails["latency"].state == "not known yet"  # always the same: no spread to judge by
    assert any(said.startswith("stop wild: its failure rate is worse") for said in found.verdicts)


def test_three_arms_share_the_risk() -> None:
    arms = {name: STRATEGIES.create(name) for name in ("random", "ucb", "thompson")}
    found = analyse([log_of(record(Assignment("t", arms), choices=200))])
    assert [(one.reference, one.arm) for one in found.comparisons] == [
        ("random", "ucb"),
        ("random", "thompson"),
    ]
    assert {one.confidence for one in found.comparisons} == {0.975}
    assert sum(arm.decisions for arm in found.arms) == 200
    assert sum(arm.outcomes for arm in found.arms) == 200


def test_an_arm_without_outcomes_is_no_error() -> None:
    log = experiment(0.0, 3)
    found = analyse([changed(log, events=log.events[:1])])
    assert [arm.units for arm in found.arms] == [0, 0]
    assert "cannot be compared yet" in verdict(found)


def test_a_log_without_the_declaration_is_read_with_equal_weights() -> None:
    log = experiment(0.6, 300)
    found = analyse([changed(log, events=log.events[1:])])
    assert [arm.arm for arm in found.arms] == ["a", "b"]
    assert found.comparisons[0].state == "decided"


def test_second_outcomes_do_not_count() -> None:
    log = experiment(0.6, 100)
    twice = [
        copy
        for event in log.events
        for copy in (
            event,
            *([changed(event, op_id=f"{event.op_id}+")] * (event.kind == "outcome")),
        )
    ]
    assert analyse([changed(log, events=twice)]).arms == analyse([log]).arms


def test_what_cannot_be_analysed_says_why() -> None:
    plain = log_of(record(STRATEGIES.create("random"), choices=4))
    with pytest.raises(ConfigError, match="part of an A/B test; begin one with an ab_test"):
        analyse([plain])
    log = experiment(0.0, 20)
    with pytest.raises(ConfigError, match=r"unknown A/B test 'tt'.*Did you mean 't'"):
        analyse([log], test="tt")
    alone = [event for event in log.events[1:] if event.data.get("ab", {"arm": ""})["arm"] == "a"]
    with pytest.raises(ConfigError, match="has one arm in this log, 'a'"):
        analyse([changed(log, events=alone)])
    other = [Event("x", "ab_test", "s", "r", {**log.events[0].data, "test": "u"})]
    with pytest.raises(ConfigError, match="there are 2 A/B tests in this log, t, u; say which"):
        analyse([changed(log, events=[*log.events, *other])])
    assert analyse([changed(log, events=[*log.events, *other])], test="t").test == "t"
