"""The service with real processes: keys, limits, choices, faults, and trainers that share it."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3

from esper.contracts.errors import ConfigError, StoreError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.runs.store_care import check
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import open_store
from esper.strategies import STRATEGIES
from tests.services import Service

pytestmark = pytest.mark.dist

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Service] = []

    def begin(*arguments: str) -> Service:
        given = arguments or (f"sqlite:///{tmp_path}/history.db",)
        made.append(Service(tmp_path, *given).start())
        return made[-1]

    yield begin
    for one in made:
        one.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("service"), "memory:").start()
    yield made
    made.kill()


def choose(service: Service, **more: Any) -> dict[str, Any]:
    body = {"scope": "s", "layer": "fc1", "seeds": [0, 1, 2]} | more
    answer = service.ask("POST", "/main/v1/choices", body)
    found: dict[str, Any] = answer.json()
    return found | {"status": answer.status}


def tell(service: Service, decision: str, reward: float) -> int:
    outcome = {"decision": decision, "scope": "s", "reward": reward}
    return service.ask("POST", "/main/v1/outcomes", {"outcomes": [outcome]}).status


def key(tmp_path: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "esper", "key", *arguments, "--keys", str(tmp_path / "keys")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_choices_are_learnt_from_and_survive_a_kill(start: Start) -> None:
    service = start()
    first = [choose(service) for _ in range(3)]
    assert {one["seed"] for one in first} == {0, 1, 2}
    refused = choose(service)
    assert (refused["status"], refused["error"]) == (409, "NoViableSeedError")
    for one in first[:2]:
        assert tell(service, one["decision"], 0.5 if one["seed"] == 1 else 0.0) == 200
        assert tell(service, one["decision"], 9.0) == 200  # counts once
    service.kill()
    service.start()
    assert tell(service, first[2]["decision"], 0.5 if first[2]["seed"] == 1 else 0.0) == 200
    assert tell(service, "nobody's", 1.0) == 409
    again = choose(service)
    assert (again["seed"], again["version"], again["strategy"]) == (1, 3, "auto")
    with open_store(service.url) as store:
        rewards = [event.data["reward"] for _, event in store.read(kinds=["outcome"])]
    assert sorted(rewards) == [0.0, 0.0, 0.5]


def test_scopes_draw_their_own_numbers(start: Start) -> None:
    service = start("memory:")
    made = [choose(service, scope=f"scope-{number}") for number in range(30)]
    assert {one["propensity"] for one in made} == {1 / 3}
    assert {one["seed"] for one in made} == {0, 1, 2}


def test_a_second_outcome_is_told_to_be_ignored(start: Start) -> None:
    service = start("memory:")
    outcome = {"decision": choose(service)["decision"], "scope": "s", "reward": 0.5}
    for body, found in ((outcome, (1, 0)), (outcome | {"reward": 9.0}, (0, 1))):
        answer = service.ask("POST", "/main/v1/outcomes", {"outcomes": [body]}).json()
        assert (answer["stored"], answer["ignored"]) == found


@pytest.mark.parametrize("wrong", [{"decision": "nobody's"}, {"reward": 1e200}])
def test_outcomes_are_stored_all_or_none(start: Start, wrong: dict[str, Any]) -> None:
    service = start("memory:")
    made = [choose(service, scope=scope)["decision"] for scope in ("s", "s", "t")]
    good = [
        {"decision": one, "scope": scope, "reward": 9.0}
        for one, scope in zip(made, ("s", "s", "t"), strict=True)
    ]
    mixed = {"outcomes": [*good[:2], good[2] | wrong]}
    assert service.ask("POST", "/main/v1/outcomes", mixed).status in {409, 422}
    corrected = {"outcomes": [one | {"reward": 0.5} for one in good]}
    answer = service.ask("POST", "/main/v1/outcomes", corrected).json()
    assert (answer["stored"], answer["ignored"]) == (3, 0)


@pytest.mark.parametrize("reward", [True, "0.5", None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_in_json(service: Service, reward: Any) -> None:
    outcome = {"decision": choose(service)["decision"], "scope": "s", "reward": reward}
    answer = service.ask("POST", "/main/v1/outcomes", {"outcomes": [outcome]})
    assert answer.status == 422
    found = json.loads(answer.data, parse_constant=pytest.fail)
    assert set(found) == {"error", "message"}
    assert "reward" in found["message"]
    service.ask("POST", "/main/v1/releases", {k: outcome[k] for k in ("decision", "scope")})


def test_refusals_have_one_shape_and_long_paths_are_cut_in_the_log(service: Service) -> None:
    for method, path, body, status in (
        ("GET", "/nowhere", None, 404),
        ("GET", "/nowhere/v1/store", None, 404),
        ("DELETE", "/healthz", None, 405),
        ("POST", "/main/v1/choices", {"scope": 1, "x": float("nan")}, 422),
        ("POST", "/main/v1/events", {"events": [["x"]]}, 422),
        ("GET", "/" + 5000 * "a", None, 404),
    ):
        answer = service.ask(method, path, body)
        assert answer.status == status
        assert set(json.loads(answer.data, parse_constant=pytest.fail)) == {"error", "message"}
    assert max(map(len, service.log.read_text().splitlines())) < 1000
    schema = service.ask("GET", "/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_a_reservation_ends_by_itself_and_by_release(start: Start) -> None:
    service = start()
    held = choose(service, seeds=[4], seconds=0.3)
    assert held["seed"] == 4
    other = choose(service, seeds=[5])
    assert other["status"] == 200
    assert choose(service, seeds=[5])["status"] == 409
    released = service.ask(
        "POST", "/main/v1/releases", {"decision": other["decision"], "scope": "s"}
    )
    assert released.status == 200
    assert choose(service, seeds=[5])["seed"] == 5
    found: dict[str, Any] = {}
    for _ in range(200):
        time.sleep(0.01)
        found = choose(service, seeds=[4], seconds=0.3)
        if found["status"] == 200:
            break
    assert found["seed"] == 4
    assert tell(service, held["decision"], 0.25) == 200  # late, and it counts


def test_ranks_learn_which_action_to_take(start: Start, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/history.db"
    service = start(store, "--wait", "4")

    def rank(**more: Any) -> dict[str, Any]:
        body = {"scope": "s", "actions": [{"id": "red"}, {"id": "blue"}]} | more
        found: dict[str, Any] = service.ask("POST", "/main/v1/rank", body).json()
        return found

    def reward(event: str, value: object) -> int:
        path = f"/main/v1/events/{event}/reward"
        return service.ask("POST", path, {"value": value, "scope": "s"}).status

    for number in range(8):
        found = rank(event=f"e{number}")
        assert reward(found["event"], float(found["action"] == "blue")) == 200
        assert reward(found["event"], 1.0) == 409  # the first counts
    assert {rank()["action"], rank()["action"]} == {"blue"}  # at the same time
    for event in ("", "a/b", "ü ☃", "e?x=1", "%2F"):  # any id, and the one that is drawn
        assert reward(quote(rank(event=event)["event"], safe=""), 0.5) == 200
    assert "cannot stand in the path" in rank(event="a/../b")["message"]
    assert "'green' is none of the actions" in rank(excluded=["green"])["message"]
    assert [reward(rank()["event"], odd) for odd in (True, "0.5", None)] == [422] * 3
    half = b'{"actions": [{"id": "x"}], "event": "\\ud800"}'  # no text that UTF-8 has
    told = {"Content-Type": "application/json"}
    refused = urllib3.request("POST", f"{service.url}/v1/rank", body=half, headers=told)
    assert (refused.status, "event" in refused.data.decode()) == (422, True)
    assert [one["id"] for one in rank(excluded=["blue"])["ranking"]] == ["red", "blue"]
    waits = rank(deferred=True, event="never")
    assert waits["event"] == "never"
    gone = service.ask("POST", "/main/v1/events/later/activate", {"scope": "s"})
    assert gone.status == 409
    late = rank(event="late")
    time.sleep(4.2)
    rank()
    assert reward(late["event"], 1.0) == 409  # it earned the default
    assert reward("never", 1.0) == 409  # and this one nothing
    service.kill()
    assert check(store).unknown == {}
    with open_store(store) as history:
        kinds = [event.kind for _, event in history.read(kinds=["outcome", "withdrawal"])]
    assert kinds.count("withdrawal") == 1


def test_an_apprentice_answers_the_first_action_and_learns(start: Start, tmp_path: Path) -> None:
    pupil = start(f"sqlite:///{tmp_path}/history.db", "--apprentice")
    body = {"scope": "s", "actions": [{"id": "red"}, {"id": "blue"}]}
    taken = []
    for _ in range(3):
        taken.append(pupil.ask("POST", "/main/v1/rank", body).json())
        path = f"/main/v1/events/{taken[-1]['event']}/reward"
        assert pupil.ask("POST", path, {"value": 0.5, "scope": "s"}).status == 200
    assert [one["action"] for one in taken] == ["red"] * 3
    assert taken[0]["ranking"][0] == {"id": "red", "probability": 1.0}
    assert [one["version"] for one in taken] == [0, 1, 2]


def test_keys_say_who_may_do_what(start: Start, tmp_path: Path) -> None:
    writer = key(tmp_path, "trainer", "--project", "main")
    reader = key(tmp_path, "viewer", "--right", "read")
    stranger = key(tmp_path, "stranger", "--project", "other")
    kept = tmp_path / "keys"
    assert kept.stat().st_mode & 0o077 == 0
    assert not {writer, reader, stranger} & set(kept.read_text().split())
    service = start(f"sqlite:///{tmp_path}/history.db", "--keys", str(kept))
    body = {"scope": "s", "layer": "fc1", "seeds": [0]}

    def status(secret: str, method: str = "POST", path: str = "/main/v1/choices") -> int:
        given = body if method == "POST" else None
        return service.ask(method, path, given, Authorization=f"Bearer {secret}").status

    assert service.ask("POST", "/main/v1/choices", body).status == 401
    assert [status(one) for one in (writer, reader, stranger, "x", "")] == [200, 403, 403, 401, 401]
    assert [status(one, "GET", "/main/v1/store") for one in (writer, reader, stranger)] == [
        *(200, 200, 403)
    ]
    assert (service.ask("GET", "/metrics").status, status(reader, "GET", "/metrics")) == (401, 200)
    assert service.ask("GET", "/readyz").status == 200
    with pytest.raises(StoreError, match="asks for a key"):
        open_store(service.url)
    with open_store(service.url.replace("//", f"//:{writer}@")) as store:
        assert store.identity
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(line for line in lines if not line.startswith("trainer")))
    assert status(writer) == 401  # revoked, without a restart
    kept.write_bytes(b"viewer read * \xff\x00")
    assert status(reader, "GET", "/main/v1/store") == 503  # nobody passes a damaged file
    assert service.ask("GET", "/readyz").status == 200
    assert "is no file of keys, or damaged" in service.log.read_text()
    kept.write_text("".join(lines))
    assert status(writer, "GET", "/main/v1/store") == 200
    assert "Traceback" not in service.log.read_text()
    assert writer not in service.log.read_text()


def test_what_is_too_large_too_much_or_odd_is_refused(start: Start, tmp_path: Path) -> None:
    service = start(f"sqlite:///{tmp_path}/history.db", "--rate", "2")
    large = {"events": [["x" * (17 << 20), "k", "s", "r", {}, 1, "", -1]]}
    assert service.ask("POST", "/main/v1/events", large).status == 413
    odd = {"events": [["x", "k", "s", "r", {"a": float("nan")}, 1, "", -1], ["y"]]}
    answer = service.ask("POST", "/main/v1/events", odd)
    assert (answer.status, answer.json()["error"]) == (422, "ConfigError")
    assert service.ask("GET", "/nowhere/v1/store").status == 404
    answers = [service.ask("GET", "/main/v1/store") for _ in range(80)]
    late = next(one for one in answers if one.status == 429)
    assert late.headers["Retry-After"] == "1"
    with open_store(f"sqlite:///{tmp_path}/history.db") as store:
        assert list(store.read()) == []


def test_it_says_how_it_is_and_ends_in_order(start: Start) -> None:
    service = start()
    choose(service)
    metrics = service.ask("GET", "/metrics").data.decode()
    assert re.search(r'esper_requests_total\{route="/choices",status="200"\} 1', metrics)
    assert service.ask("GET", "/openapi.json").json()["info"]["title"] == "Esper"
    assert service.stop() in {0, -signal.SIGTERM}
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert any(line.get("message") == "Application shutdown complete." for line in lines)
    asked = next(line for line in lines if line.get("path") == "/main/v1/choices")
    assert (asked["method"], asked["status"], asked["level"]) == ("POST", 200, "info")


def test_urls_that_are_none_and_services_that_are_none(start: Start) -> None:
    service = start()
    with pytest.raises(ConfigError, match="cannot be read; write http"):
        open_store("http://:secret@/x?key=1")
    with pytest.raises(StoreError, match="no such project"):
        open_store(f"{service.address}/other")
    service.kill()
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store(service.url)


@pytest.mark.slow
def test_no_request_that_the_schema_allows_is_an_error_of_the_server(start: Start) -> None:
    service = start("memory:", "--rate", "1000000")
    settings = service.log.parent / "schemathesis.toml"
    settings.write_text('[parameters]\n"path.project" = "main"\n')
    found = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.address}/openapi.json"),
            *("--checks", "not_a_server_error", "--max-examples", "8", "--seed", "1"),
            *("--no-color", "--phases", "examples,coverage,fuzzing"),
        ],
        check=False, capture_output=True, text=True, cwd=service.log.parent,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    assert service.ask("GET", "/healthz").status == 200
    assert "Traceback" not in service.log.read_text()


def play(selector: SeedSelector, epochs: range) -> None:
    for epoch in epochs:
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
        delta = PerformanceDelta(reward=0.1 * seed_idx)
        selector.performance_tracker.update_metrics_now("fc1", seed_idx, delta)


def test_a_trainer_goes_on_without_the_service_and_delivers_later(start: Start) -> None:
    service = start()
    tracker = PerformanceTracker(store=service.url, scope="s", run="r")
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
    play(selector, range(5))
    service.kill()
    play(selector, range(5, 10))
    service.start()
    journal = tracker.events.journal
    assert journal is not None
    play(selector, range(10, 15))
    journal.flush(60)
    journal.close()
    with closing(open_store(service.url)) as store:
        assert sum(1 for _ in store.read(kinds=["outcome"])) == 15
        assert store.missing(tracker.events.name, tracker.events.written) == []


def test_a_stalled_service_stops_nobody(start: Start) -> None:
    service = start()
    tracker = PerformanceTracker(store=service.url, scope="s", run="r")
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
    play(selector, range(2))
    service.signal(signal.SIGSTOP)
    play(selector, range(2, 40))  # 76 events; each would wait for a time-out
    service.signal(signal.SIGCONT)
    journal = tracker.events.journal
    assert journal is not None
    journal.flush(60)
    journal.close()
    with closing(open_store(service.url)) as store:
        assert sum(1 for _ in store.read(kinds=["outcome"])) == 40


def transcript() -> list[tuple[list[str], str]]:
    """Commands of the transcript in the documentation, and what they print there."""
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    block = page.read_text(encoding="utf-8").partition("```console\n")[2].partition("```")[0]
    parts = [part.partition("\n") for part in block.split("$ ") if part]
    return [(command.split(), printed) for command, _, printed in parts]


def plain(text: str) -> list[str]:
    """Words without numbers and ids, which differ from run to run."""
    return re.sub(r"[0-9a-f]{16}|[\d,.:]+", "#", text).split()


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_two_trainers_share_a_history_through_it(start: Start, tmp_path: Path) -> None:
    (serve, _), *others = transcript()
    assert serve == ["esper", "serve", "sqlite:///history.db"]
    service = start(f"sqlite:///{tmp_path}/history.db")
    trainers: list[subprocess.Popen[str]] = []
    for command, printed in others:
        words = [word.replace("http://127.0.0.1:8000/main", service.url) for word in command]
        if words[-1] != "&":
            while trainers:  # as a person does, who sees that both have ended
                ended(trainers.pop())
        process = subprocess.Popen(
            [sys.executable, "-m", *(word for word in words if word != "&")],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if words[-1] == "&":
            trainers.append(process)
        elif "check" in words:
            assert plain(ended(process)) == plain(printed)
        else:
            ended(process)
    with open_store(service.url) as store:
        assert len({event.run for _, event in store.read(kinds=["epoch"])}) == 2
        writers = {event.writer for _, event in store.read() if event.writer}
        assert [store.missing(one, store.next_number(one)) for one in writers] == [[], []]
