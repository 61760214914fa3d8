"""A bandit is a selector without the rest: the same choices and reasons, and state that goes on."""

import json
from collections.abc import Callable
from functools import partial
from random import Random  # noqa: TID251 (test data, seeded)

import pytest

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext, reason_data
from esper.services.tamiyo.bandit import Bandit
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES
from esper.strategies.base import SelectionStrategy

ARMS = 5
MAKERS: dict[str, Callable[[], SelectionStrategy]] = {
    **{name: partial(STRATEGIES.create, name) for name in STRATEGIES.names()},
    "thompson_gaussian": partial(STRATEGIES.create, "thompson", posterior="gaussian"),
    "thompson_nig": partial(STRATEGIES.create, "thompson", posterior="nig"),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[], SelectionStrategy]:
    return MAKERS[request.param]


def rewards(step: int, arm: int) -> float:
    """Noisy, at times equal for all arms, at times huge."""
    if step % 50 < 12:
        return 0.25
    return Random(1000 * step + arm).gauss(0.1 * arm, 0.3) * (1e6 if 140 < step < 150 else 1.0)


def play(bandit: Bandit, first: int, end: int) -> list[int]:
    chosen = []
    for step in range(first, end):
        arm = bandit.choose()
        chosen.append(arm)
        if step % 7 != 3:  # now and then nothing is heard
            bandit.update(arm, rewards(step, arm))
        if step % 11 == 5:  # or of another arm
            bandit.update((arm + 1) % ARMS, rewards(step, (arm + 1) % ARMS))
    return chosen


def test_it_chooses_what_the_selector_chooses_for_the_same_reasons(
    make: Callable[[], SelectionStrategy],
) -> None:
    steps = 60 if make().name == "neural" else 250
    bandit, selector = Bandit(make(), ARMS, seed=3), SeedSelector(make(), seed=3)
    tracker = selector.performance_tracker
    for step in range(steps):
        context = SelectionContext(current_epoch=step)
        wanted, why = selector.select_seed_now("bandit", list(range(ARMS)), context)
        assert bandit.choose() == wanted
        told = [(wanted, rewards(step, wanted))]
        if step % 11 == 5:
            told.append(((wanted + 1) % ARMS, rewards(step, (wanted + 1) % ARMS)))
        for arm, reward in told:
            tracker.update_metrics_now("bandit", arm, PerformanceDelta(reward=reward))
            bandit.update(arm, reward)
        if step % 9 == 0:  # after the outcome: a reason is of the moment of the choice
            assert reason_data(bandit.explain()) == reason_data(why)


def test_it_goes_on_to_the_last_bit_after_json(make: Callable[[], SelectionStrategy]) -> None:
    one = Bandit(make(), ARMS, seed=4, name="other")
    steps = 40 if make().name == "neural" else 120
    step = 0
    for pause in (0, 3, steps):
        play(one, step, pause)
        state = json.loads(json.dumps(one.state_dict()))
        two = Bandit(make(), ARMS)
        two.load_state_dict(state)
        assert json.loads(json.dumps(two.state_dict())) == state
        step = pause + 30 if pause == steps else pause
        assert play(two, pause, step) == play(one, pause, step)
        assert json.dumps(two.state_dict()) == json.dumps(one.state_dict())
    assert reason_data(two.explain()) == reason_data(one.explain())
