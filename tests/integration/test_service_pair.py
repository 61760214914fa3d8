"""Two services before one store: real processes that never hand out one seed twice."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from esper.stores import open_store
from tests.services import Service

pytestmark = pytest.mark.dist

SEEDS, SCOPE = list(range(24)), f"team {os.getpid()}"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('pair')}/history.db"
    found: str = request.getfixturevalue("redis_server").url
    return found


@pytest.fixture(scope="module")
def pair(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    folder = tmp_path_factory.mktemp("services")
    both = [Service(folder, url, "--rate", "1000000") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Service.start, both))
    yield both
    for one in both:
        one.kill()


def choose(service: Service, seeds: list[int] = SEEDS, **more: Any) -> dict[str, Any]:
    body = {"scope": SCOPE, "layer": "a/b 7", "seeds": seeds} | more
    answer = service.ask("POST", "/main/v1/choices", body)
    found: dict[str, Any] = answer.json()
    return found | {"status": answer.status}


def tell(service: Service, decision: str, reward: float) -> int:
    outcome = {"decision": decision, "scope": SCOPE, "reward": reward}
    return service.ask("POST", "/main/v1/outcomes", {"outcomes": [outcome]}).status


def until(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    for _ in range(2000):
        found = ask()
        if found["status"] == 200:
            return found
    raise AssertionError(found)


def test_an_event_of_one_service_is_known_to_the_other(pair: list[Service]) -> None:
    event = f"event {os.getpid()}"
    body = {"scope": "events", "actions": [{"id": "a"}, {"id": "b"}], "event": event}
    assert [one.ask("POST", "/main/v1/rank", body).status for one in pair] == [200, 409]
    reward = {"scope": "events", "value": 1.0}
    place = f"/main/v1/events/{event.replace(' ', '%20')}/reward"
    assert pair[1].ask("POST", place, reward).status == 200


def test_no_seed_is_handed_out_twice(pair: list[Service], url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda n: choose(pair[n % 2], SEEDS), range(len(SEEDS)))
        made = list(asked)
    assert [one["status"] for one in made] == [200] * len(SEEDS)
    assert sorted(one["seed"] for one in made) == SEEDS
    for service in pair:
        refused = choose(service, SEEDS)
        assert (refused["status"], refused["error"]) == (409, "NoViableSeedError")
    first, second, third = made[:3]  # chosen by either
    assert tell(pair[1], first["decision"], 0.25) == tell(pair[0], second["decision"], 0.5) == 200
    assert choose(pair[0], [first["seed"]])["status"] == 200  # free for both at once
    assert choose(pair[1], [second["seed"]])["status"] == 200
    if url.startswith("sqlite"):  # a start takes seconds
        pair[0].kill()
        pair[0].start()
    assert choose(pair[0], SEEDS)["status"] == 409  # a restart forgets nothing
    body = {"decision": third["decision"], "scope": SCOPE}
    assert pair[1].ask("POST", "/main/v1/releases", body).status == 200
    assert choose(pair[0], [third["seed"]])["seed"] == third["seed"]
    assert pair[1].ask("POST", "/main/v1/releases", body).status == 200  # it frees no other's
    assert choose(pair[1], [third["seed"]])["status"] == 409
    with open_store(url) as store:
        rewards = [event.data["reward"] for _, event in store.read(scope=SCOPE, kinds=["outcome"])]
    assert sorted(rewards) == [0.25, 0.5]


def test_a_trainer_that_dies_frees_its_seed_and_its_late_outcome_counts(
    pair: list[Service], url: str
) -> None:
    dead = choose(pair[0], [3], layer="another", seconds=1.0)
    assert dead["seed"] == 3
    assert choose(pair[1], [3], layer="another")["status"] == 409
    for _ in range(70):  # so many that the dead trainer's choice is no longer waited for
        other = until(lambda: choose(pair[1], [3], layer="another"))
        assert tell(pair[1], other["decision"], 0.5) == 200
    other = choose(pair[0], [3], layer="another")
    assert tell(pair[1], dead["decision"], 0.25) == 200
    assert (
        choose(pair[1], [3], layer="another")["status"] == 409
    )  # the late outcome frees nobody else's seed
    assert tell(pair[1], other["decision"], 0.5) == 200
    for service in pair:
        assert tell(service, dead["decision"], 9.0) == 200  # counts once
    again = choose(pair[1], [3], layer="another")
    assert (again["seed"], again["version"]) == (3, 72)
    with open_store(url) as store:
        found = [event.data for _, event in store.read(scope=SCOPE, kinds=["outcome"])]
    rewards = [one["reward"] for one in found if one["layer"] == "another"]
    assert (rewards.count(0.25), rewards.count(0.5), len(rewards)) == (1, 71, 72)


def test_many_events_of_one_action_wait_at_once(pair: list[Service], url: str) -> None:
    def rank(number: int) -> str:
        body = {"scope": f"{SCOPE} ranks", "actions": [{"id": "red"}], "event": f"e{number}"}
        assert pair[0].ask("POST", "/main/v1/rank", body).status == 200
        return f"/main/v1/events/e{number}/reward"

    for path in [rank(number) for number in range(40)]:
        body = {"value": 1.0, "scope": f"{SCOPE} ranks"}
        assert pair[0].ask("POST", path, body).status == 200
    with open_store(url) as store:
        assert len(list(store.read(scope=f"{SCOPE} ranks", kinds=["outcome"]))) == 40


@pytest.mark.parametrize("scope", ["", f"{SCOPE} a/b waits"], ids=["unnamed", "named"])
def test_events_wait_over_a_restart_and_for_either_service(
    url: str, tmp_path: Path, scope: str
) -> None:
    pair = [Service(tmp_path, url, "--wait", wait).start() for wait in ("600", "0.6")]

    def ask(service: Service, path: str, **body: object) -> int:
        return service.ask("POST", f"/main/v1/{path}", {"scope": scope} | body).status

    def rank(service: Service, event: str, **more: object) -> int:
        return ask(service, "rank", actions=[{"id": "red"}], event=event, **more)

    try:
        for event in ("killed", "other", "taken", "silent", "default"):
            assert rank(pair[0], event) == 200
        for event in ("late", "never"):
            assert rank(pair[0], event, deferred=True) == 200
        assert ask(pair[0], "events/taken/reward", value=0.5) == 200
        assert ask(pair[0], "choices", layer="fc1", seeds=[0]) == 200
        pair[0].kill()
        pair[0].start()
        with open_store(url) as store:
            made = [e for _, e in store.read(scope=scope, kinds=["decision"])][-1].data["decision"]
        assert ask(pair[0], "choices", layer="fc1", seeds=[0]) == 409
        assert ask(pair[0], "releases", decision=made) == 200
        assert ask(pair[0], "choices", layer="fc1", seeds=[0]) == 200
        assert ask(pair[0], "events/killed/reward", value=0.25) == 200
        assert ask(pair[0], "events/taken/reward", value=9.0) == 409
        assert ask(pair[0], "events/late/activate") == 200
        assert ask(pair[1], "events/killed/reward", value=9.0) == 409  # asked of the other
        assert ask(pair[1], "events/other/reward", value=0.125) == 200
        assert ask(pair[0], "events/other/reward", value=9.0) in (200, 409)  # counts once
        time.sleep(0.7)
        assert rank(pair[1], "more") == 200  # ends what waits there: three defaults, one nothing
        assert ask(pair[0], "events/silent/reward", value=9.0) in (200, 409)
    finally:
        for service in pair:
            service.kill()
    with open_store(url) as store:
        kinds = [event.kind for _, event in store.read(scope=scope)]
        rewards = [e.data["reward"] for _, e in store.read(scope=scope, kinds=["outcome"])]
        assert not store.quarantined
    assert sorted(rewards) == [0.0, 0.0, 0.0, 0.125, 0.25, 0.5]
    assert kinds.count("withdrawal") == 2  # the event, and the choice
