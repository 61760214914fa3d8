"""Bandit: what it refuses, and what it keeps."""

import json
import re
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

import esper
from esper.contracts.errors import ConfigError, EsperError, MeasurementError, SelectionError
from esper.contracts.selection import SelectionContext
from esper.services.tamiyo.bandit import Bandit
from esper.strategies import STRATEGIES

NAMES = ["ucb", "thompson", "auto"]


@pytest.fixture(params=NAMES)
def bandit(request: pytest.FixtureRequest) -> Bandit:
    made = Bandit(request.param, arms=3, seed=1)
    for step in range(30):
        made.update(made.choose(), 0.1 * (step % 4))
    return made


@pytest.mark.parametrize(
    ("arm", "reward", "error"),
    [
        (3, 0.1, SelectionError),
        (-1, 0.1, SelectionError),
        (1.0, 0.1, SelectionError),
        ("1", 0.1, SelectionError),
        (None, 0.1, SelectionError),
        (1, float("nan"), MeasurementError),
        (1, float("inf"), MeasurementError),
        (1, -1e200, MeasurementError),
        (1, "0.1", MeasurementError),
        (1, None, MeasurementError),
    ],
)
def test_a_bad_outcome_is_refused_and_changes_nothing(
    bandit: Bandit, arm: Any, reward: Any, error: type[EsperError]
) -> None:
    before = deepcopy(bandit.state_dict())
    named = repr(arm) if error is SelectionError else repr(reward)
    with pytest.raises(error, match=re.escape(named)):
        bandit.update(arm, reward)
    assert bandit.state_dict() == before


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"strategy": "ucc"}, "Did you mean 'ucb'"),
        ({"strategy": 3}, "strategy is 3"),
        ({"arms": 0}, "arms is 0"),
        ({"arms": True}, "arms is True"),
        ({"seed": 0.5}, r"seed is 0\.5"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_a_bad_argument_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Bandit(**({"strategy": "ucb"} | given))


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ({"current_epoch": 1}, "give a SelectionContext"),
        (SelectionContext(blueprints={0: "glu", 3: "gate"}), "there is no arm 3"),
    ],
)
def test_a_bad_context_is_refused(bandit: Bandit, context: Any, says: str) -> None:
    with pytest.raises(SelectionError, match=says):
        bandit.choose(context=context)
    assert len(bandit.state_dict()["history"]["layers"][0]["seeds"]) == 3


def test_a_decision_of_another_bandit_is_refused(bandit: Bandit) -> None:
    for other in (Bandit("ucb", 3, name="other"), deepcopy(bandit)):
        decision = other.decide()
        with pytest.raises(SelectionError, match="was never made by this bandit, 'bandit'"):
            bandit.update(decision.seed_idx, 0.1, decision=decision)


def test_numbers_of_numpy_are_numbers(bandit: Bandit) -> None:
    twin = deepcopy(bandit)
    bandit.update(np.int64(2), np.float32(0.5))  # type: ignore[arg-type]
    twin.update(2, 0.5)
    assert bandit.state_dict() == twin.state_dict()
    bandit.update(1, 1)
    assert bandit.choose() in range(3)


@pytest.mark.parametrize("state", [None, [], "x"])
def test_what_is_no_state_is_refused(bandit: Bandit, state: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(state))):
        bandit.load_state_dict(state)


@pytest.mark.parametrize("key", ["seed", "history"])
def test_a_damaged_state_is_refused_and_changes_nothing(key: str) -> None:
    bandit = Bandit("ucb", arms=2)
    for _ in range(10):
        bandit.update(bandit.choose(), 0.5)
    state = bandit.state_dict()
    before = deepcopy(state)
    del state[key]
    with pytest.raises(ConfigError, match=key):
        bandit.load_state_dict(state)
    assert bandit.state_dict() == before


def test_the_state_of_another_bandit_is_refused() -> None:
    state = Bandit("ucb", arms=2).state_dict()
    for other in (Bandit("ucb", arms=3), Bandit("thompson", arms=2)):
        with pytest.raises(ConfigError, match="make it as it was made then"):
            other.load_state_dict(state)
    gentler = Bandit(STRATEGIES.create("ucb", exploration_constant=0.5), arms=2)
    with pytest.raises(ConfigError, match=r"exploration_constant=2\.0"):
        gentler.load_state_dict(state)


def test_there_must_be_a_choice_to_explain() -> None:
    bandit = Bandit("ucb", arms=2)
    with pytest.raises(SelectionError, match="choose"):
        bandit.explain()
    bandit.choose()
    assert bandit.explain().reason.startswith("untried")


def test_it_is_at_hand() -> None:
    assert esper.Bandit is Bandit


@pytest.mark.parametrize("name", ["ucb", "thompson", "auto", "linucb"])
def test_the_state_does_not_grow_with_the_outcomes(name: str) -> None:
    bandit, sizes = Bandit(name, arms=4), []
    for step in range(400):
        bandit.update(bandit.choose(), float(step % 7))
        if step in (199, 399):
            sizes.append(len(json.dumps(bandit.state_dict())))
    assert sizes[1] < 1.2 * sizes[0]


def test_unheard_choices_are_pending_up_to_a_limit() -> None:
    bandit = Bandit(STRATEGIES.create("thompson", posterior="gaussian"), arms=2)
    for _ in range(4):
        bandit.update(bandit.choose(), 0.5)
    for _ in range(200):
        assert bandit.choose() in (0, 1)
    [layer] = bandit.state_dict()["history"]["layers"]
    assert max(len(seed["open"]) for seed in layer["seeds"]) == 32


def test_only_viable_arms_are_chosen() -> None:
    bandit = Bandit("ucb", arms=4)
    assert {bandit.choose([2, 1]) for _ in range(6)} == {1, 2}
    for viable in ([0, 4], [], [1, 1], [-1], [0.5], "ab", 1):
        says = f"viable is {re.escape(repr(viable))}; give a list of arms.* from 0 to 3"
        with pytest.raises(SelectionError, match=says):
            bandit.choose(viable)  # type: ignore[arg-type]  # that is the mistake


def test_a_contextual_strategy_sees_the_context() -> None:
    # Which blueprint pays depends on the layer's type, which only the context says.
    bandit, right = Bandit(STRATEGIES.create("linucb", model="disjoint"), arms=2), 0
    for step in range(200):
        epoch = 38 * (step % 2)
        arm = bandit.choose(context=SelectionContext(current_epoch=epoch))
        bandit.update(arm, 0.3 if (arm == 1) == (epoch == 38) else 0.0)
        right += step >= 100 and (arm == 1) == (epoch == 38)
    assert right >= 80


def test_an_outcome_answers_its_decision_once_and_however_late() -> None:
    bandit = Bandit("ucb", arms=2)
    first, second = bandit.decide(), bandit.decide()
    bandit.update(second.seed_idx, 0.5, decision=second)
    bandit.update(first.seed_idx, 0.1, decision=first)
    before = deepcopy(bandit.state_dict())
    bandit.update(first.seed_idx, 0.9, decision=first)
    assert bandit.state_dict() == before
    with pytest.raises(SelectionError, match="its own decision"):
        bandit.update(1 - first.seed_idx, 0.9, decision=first)
