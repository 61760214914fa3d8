"""Replaying logs of which the truth is known."""

from collections.abc import Iterator, Sequence
from dataclasses import replace as changed
from functools import cache
from statistics import fmean
from typing import Any

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES
from esper.studies.logged.logs import Log
from esper.studies.logged.replay import Replay, replay
from esper.studies.logged.replay_steps import Step, steps
from tests.unit.studies.simulated import GAINS, log_of, record

EXPLORING = STRATEGIES.create("epsilon_greedy", epsilon=0.6, decay_rate=1.0)


@cache
def exploring(seed: int = 0, choices: int = 150) -> Log:
    return log_of(record(EXPLORING, choices=choices, seed=seed))


def truth(found: Sequence[Step]) -> float:
    """Mean true gain of a strategy's choices over the logged histories."""
    return fmean(
        [sum(chance * GAINS[seed] for seed, chance in step.chances.items()) for step in found]
    )


def edited(log: Log, kind: str, **data: Any) -> Log:
    return changed(
        log,
        events=[
            changed(event, data={**event.data, **data}) if event.kind == kind else event
            for event in log.events
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [("ucb", {}), ("fixed", {"seed_idx": 2}), ("performance_weighted", {"temperature": 0.5})],
)
def test_intervals_hold_the_truth_and_bias_is_small(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = STRATEGIES.create(name, **settings)
    runs, held = 80, {"ips": 0, "snips": 0, "dr": 0}
    errors: dict[str, list[float]] = {estimator: [] for estimator in held}
    for seed in range(runs):
        log = exploring(seed, choices=240)
        known = steps(log, strategy)
        monkeypatch.setattr(f"{replay.__module__}.steps", lambda *_, known=known: known)  # not anew
        found = replay([log], strategy)
        right = truth(known[1])
        assert not found.refusal
        for one in found.estimates[1:]:
            held[one.name] += one.interval[0] <= right <= one.interval[1]
            errors[one.name].append(one.value - right)
    for estimator, count in held.items():
        assert 0.87 <= count / runs <= 1.0, estimator
        assert abs(fmean(errors[estimator])) < 0.0012, estimator


def test_the_chooser_replayed_is_what_was_logged() -> None:
    for name in ("epsilon_greedy", "performance_weighted", "random", "ucb"):
        strategy = STRATEGIES.create(name)
        log = log_of(record(strategy, choices=60, seed=3))
        _, found = steps(log, strategy)
        assert [step.weight for step in found] == pytest.approx([1.0] * 60)
        result = replay([log], strategy)
        assert result.sample == pytest.approx(60)
        assert result.estimates[1].value == pytest.approx(result.estimates[0].value)
        assert result.gap == 0


def test_thompson_replayed_is_what_was_logged_up_to_its_error() -> None:
    strategy = STRATEGIES.create("thompson")
    _, found = steps(log_of(record(strategy, choices=40, seed=3)), strategy)
    assert [step.weight for step in found] == pytest.approx([1.0] * 40, abs=1e-6)


def test_a_better_strategy_is_seen_to_be_better_and_a_worse_one_worse() -> None:
    logs = [exploring(seed) for seed in range(4)]
    best = replay(logs, STRATEGIES.create("fixed", seed_idx=2))
    worst = replay(logs, STRATEGIES.create("fixed", seed_idx=0))
    tries = [step for log in logs for step in steps(log, STRATEGIES.create("fixed", seed_idx=2))[1]]
    odd = sum(step.first_try and step.gap > 0 for step in tries)
    assert (best.outcomes, best.used) == (600, 600 - odd)
    for estimate in best.estimates[1:]:
        assert estimate.gain_interval[0] > 0
    for estimate in worst.estimates[1:]:
        assert estimate.gain_interval[1] < 0


def test_first_tries_are_alike_for_every_strategy_that_learns() -> None:
    decided, found = steps(exploring(), STRATEGIES.create("ucb"))
    shared = [step for step in found if step.shared]
    assert decided == 150
    assert len(shared) == 8  # four seeds in two layers
    assert {step.weight for step in shared} == {1.0}


def test_a_baseline_makes_its_own_choice_where_the_log_has_a_first_try() -> None:
    for name, chances in (("fixed", {1.0, 0.0}), ("random", {0.25})):
        _, found = steps(exploring(), STRATEGIES.create(name))
        tries = [step for step in found if step.first_try]
        assert len(tries) == 8
        assert not any(step.shared for step in found)
        assert all(set(step.chances.values()) <= chances for step in tries)


def test_a_first_try_is_put_to_a_strategy_that_would_have_needed_none() -> None:
    auto = STRATEGIES.create("auto")
    _, found = steps(exploring(), auto)
    tries = [step for step in found if step.first_try]
    assert len(tries) == 8
    # Of a kind that the other layer knows, auto needs no first try; the log's were all first.
    assert 0 < sum(step.shared for step in tries) < 8


def test_first_tries_in_which_a_strategy_could_have_gone_on_are_left_out() -> None:
    logs = [exploring(seed, choices=60) for seed in range(6)]
    auto = STRATEGIES.create("auto")
    tries = [step for log in logs for step in steps(log, auto)[1] if step.first_try]
    odd = sum(step.gap > 0 for step in tries)
    assert 0 < odd < len(tries)
    found = replay(logs, auto)
    assert found.used == 6 * 60 - odd
    assert "that auto need not have tried" in found.left_out["first tries"]


def test_a_strategy_makes_the_first_tries_that_the_log_did_not_need() -> None:
    log = log_of(record(STRATEGIES.create("auto"), choices=60, seed=1))
    _, same = steps(log, STRATEGIES.create("auto"))
    assert [step.weight for step in same] == pytest.approx([1.0] * 60)
    _, found = steps(log, STRATEGIES.create("ucb"))
    assert sum(step.shared for step in found) < 8
    early = [step for step in found if not step.shared and 1.0 not in step.chances.values()]
    assert early  # it would have tried, with equal chances, what the log knew from elsewhere
    for step in early:
        assert sum(step.chances.values()) == pytest.approx(1)
        assert set(step.chances.values()) == {1 / len(step.chances)}


def test_first_tries_alone_say_nothing_of_a_strategy() -> None:
    logs = [exploring(seed, choices=8) for seed in range(10)]
    found = replay(logs, STRATEGIES.create("ucb"))
    assert found.used == found.shared == 80
    assert found.sample == pytest.approx(80)
    assert found.own_sample == 0
    assert "80 of them of first tries" in found.refusal


def test_the_gain_of_what_all_would_have_done_is_nothing() -> None:
    _, found = steps(exploring(), STRATEGIES.create("ucb"))
    shared = [step for step in found if step.shared]
    assert shared
    assert all(step.expected == step.predicted for step in shared)


def test_a_deterministic_log_is_refused_and_the_way_out_told() -> None:
    log = log_of(record(STRATEGIES.create("round_robin"), choices=60))
    found = replay([log], STRATEGIES.create("random"))
    assert found.estimates == ()
    assert found.used == 0
    for part in ("of what random would have chosen", "round_robin", "deterministic",
                 "epsilon_greedy", "thompson"):  # fmt: skip
        assert part in found.refusal


def test_a_log_that_could_not_choose_what_is_asked_for_is_refused() -> None:
    log = edited(exploring(), "decision", propensities={"0": 0.5, "1": 0.5, "2": 0.0, "3": 0.0})
    found = replay([log], STRATEGIES.create("fixed", seed_idx=2))
    assert "their logged probability is 0" in found.refusal
    assert found.gap > 0.9
    allowed = replay([log], STRATEGIES.create("fixed", seed_idx=1))
    assert not allowed.left_out


def test_a_log_that_seldom_agrees_is_refused() -> None:
    found = replay([exploring(choices=60)], STRATEGIES.create("fixed", seed_idx=0))
    assert found.sample < 30
    assert "outcomes count as" in found.refusal


def test_choosers_that_could_not_have_chosen_alike_are_left_out() -> None:
    arms = {name: STRATEGIES.create(name) for name in ("random", "round_robin")}
    log = log_of(record(Assignment("mixed", arms), choices=300))
    found = replay([log], STRATEGIES.create("fixed", seed_idx=2))
    assert list(found.left_out) == ["round_robin (arm round_robin)"]
    assert 120 < found.used < 180
    assert found.outcomes == 300
    low, high = found.estimates[3].interval
    assert low < GAINS[2] < high


def test_no_outcome_predicts_itself_or_what_came_before() -> None:
    log = exploring()
    _, plain = steps(log, STRATEGIES.create("random"))
    last = max(n for n, event in enumerate(log.events) if event.kind == "outcome")
    event = log.events[last]
    events = [*log.events[:last], changed(event, data={**event.data, "reward": 1e9})]
    _, other = steps(changed(log, events=[*events, *log.events[last + 1 :]]),
                     STRATEGIES.create("random"))  # fmt: skip
    assert other[-1].reward == 1e9
    pairs = list(zip(plain, other, strict=True))
    assert all(one.predicted == two.predicted for one, two in pairs)
    assert all(one.expected == two.expected for one, two in pairs)


def test_a_strategy_sees_what_was_known_then_and_nothing_later() -> None:
    log = exploring()
    strategy = STRATEGIES.create("ucb")
    _, whole = steps(log, strategy)
    for share in (0.3, 0.6):
        cut = changed(log, events=log.events[: int(share * len(log.events))])
        _, found = steps(cut, strategy)
        assert [step.chances for step in found] == [s.chances for s in whole[: len(found)]]


def test_late_and_missing_outcomes_are_matched_by_decision() -> None:
    tracker = PerformanceTracker(store=(store := MemoryStore()), run="r")
    selector = SeedSelector(STRATEGIES.create("random"), tracker=tracker)
    decisions = [
        selector.decide(f"fc{n}", [0, 1, 2], SelectionContext(current_epoch=n)) for n in range(40)
    ]
    for n, decision in reversed(list(enumerate(decisions[:-1]))):
        delta = PerformanceDelta(reward=float(n))
        for _ in range(2):  # the second does not count
            tracker.update_metrics_now(
                decision.layer_name, decision.seed_idx, delta, decision=decision
            )
    made, found = steps(log_of(store), STRATEGIES.create("random"))
    assert made == 40
    assert {step.decision_id: step.reward for step in found} == {
        decision.decision_id: float(n) for n, decision in enumerate(decisions[:-1])
    }


def test_runs_of_one_store_are_asked_about_alone_with_all_that_was_known() -> None:
    store = record(EXPLORING, choices=40, seed=1)
    record(EXPLORING, choices=40, seed=2, store=store)
    log = log_of(store)
    made, found = steps(changed(log, runs=frozenset({"r2"})), STRATEGIES.create("ucb"))
    assert (made, len(found)) == (40, 40)
    assert not any(step.shared for step in found)  # the other run had tried every seed


def test_a_log_of_an_older_version_has_the_propensity_of_the_choice_alone() -> None:
    def without(log: Log) -> Iterator[Event]:
        for event in log.events:
            if event.kind == "decision":
                data = {k: v for k, v in event.data.items() if not k.startswith("propensities")}
                yield changed(event, data=data)
            else:
                yield event

    log = exploring()
    old = changed(log, events=list(without(log)))
    asked = STRATEGIES.create("fixed", seed_idx=2)
    assert replay([old], asked).estimates == replay([log], asked).estimates
    certain = log_of(record(STRATEGIES.create("round_robin"), choices=60))
    refused = replay([changed(certain, events=list(without(certain)))], asked)
    assert "deterministic" in refused.refusal


@pytest.mark.parametrize(
    ("kinds", "message"),
    [((), "there is no decision"), (("decision",), "none of the 150 decisions")],
)
def test_nothing_to_replay_is_an_error(kinds: tuple[str, ...], message: str) -> None:
    log = exploring()
    empty = changed(log, events=[event for event in log.events if event.kind in kinds])
    with pytest.raises(ConfigError, match=message):
        replay([empty], EXPLORING)


def test_every_strategy_can_be_replayed() -> None:
    log = exploring(choices=40)
    for name in STRATEGIES.names():
        found = replay([log], STRATEGIES.create(name))
        assert isinstance(found, Replay)
        assert bool(found.refusal) != bool(found.estimates)
