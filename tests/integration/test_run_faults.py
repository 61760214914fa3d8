"""Runs of ``esper train`` whose store, folder or log is lost, damaged, read-only or hostile."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random  # noqa: TID251 (where files are damaged)
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from esper.cli.main import app
from esper.contracts.events import LOST, Event
from esper.runs.run_folder import RunFolder
from esper.stores import addresses, open_store
from esper.stores.sqlite import SqliteStore
from tests.servers import RedisServer

pytestmark = pytest.mark.trains
Start = Callable[..., RedisServer]
QUICK = ("digits", "--epochs", "3", "--no-static")


def esper(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its log in its folder."""
    runs = tmp_path_factory.mktemp("runs")
    esper("train", *QUICK, "--runs", str(runs))
    return runs / "digits-s0"


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.db"
    else:
        yield request.getfixturevalue("own_redis_server")().url


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be harmed."""
    copy = tmp_path / "runs" / "digits-s0"
    shutil.copytree(finished, copy)
    return copy


def log_of(run: Path) -> dict[str, Event]:
    """The log; clocks stand beside it."""
    with SqliteStore(run / "history.db", read_only=True) as store:
        return {event.op_id: event for _, event in store.read() if event.kind != "clock"}


def resume(run: Path, *options: str, code: int = 0) -> Result:
    return esper("train", "--resume", run.name, "--runs", str(run.parent), *options, code=code)


# --- what a store lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [6, 15, None])
def test_a_finished_run_tells_again_what_its_store_lost(
    run: Path, finished: Path, lost: int | None
) -> None:
    whole, report = log_of(run), (run / "report.json").read_bytes()
    with closing(sqlite3.connect(run / "history.db")) as file, file:
        (count,) = file.execute("SELECT count(*) FROM events").fetchone()
        file.execute("DELETE FROM events WHERE position > ?", (count - (lost or count),))
    gone = len(whole) - len(log_of(run))
    told = resume(run).stderr
    assert f"{gone} events that its store had not were told again" in told
    assert log_of(run) == whole
    assert (run / "report.json").read_bytes() == report
    assert "there is nothing to resume" in resume(run).stderr


def test_a_log_that_was_removed_is_told_again(run: Path) -> None:
    whole = log_of(run)
    for part in run.glob("history.db*"):
        part.unlink()
    resume(run)
    assert log_of(run) == whole


def test_an_interrupted_run_says_what_its_store_lost(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = log_of(run)
    for name in ("report.json", "stored.json", "grown.json"):
        (run / name).unlink()
    with closing(sqlite3.connect(run / "history.db")) as file, file:
        file.execute("DELETE FROM events WHERE number BETWEEN 3 AND 8 OR number > 20")
    resume(run)
    assert log_of(run) == whole
    assert "the store has lost events: of run 'digits-s0'" in caplog.text
    assert "0 are lost" in caplog.text


def test_what_no_copy_is_left_of_is_told_and_noted(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esper.records.event_writer import EventWriter  # noqa: PLC0415 (here alone)

    load = EventWriter.load_state_dict

    def without_copies(self: EventWriter, state: dict[str, Any], *, keep_name: bool) -> Any:
        return load(self, {**state, "events": []}, keep_name=keep_name)

    monkeypatch.setattr(EventWriter, "load_state_dict", without_copies)
    with closing(sqlite3.connect(run / "history.db")) as file, file:
        file.execute("DELETE FROM events WHERE number BETWEEN 3 AND 8")
    resume(run)
    (gap,) = [event for event in log_of(run).values() if event.kind == LOST]
    assert (gap.data["first"], gap.number) == (3, 8)
    assert "0 were told again and 6 are lost" in caplog.text
    assert "there is nothing to resume" in resume(run).stderr


@pytest.mark.redis
def test_a_run_whose_server_died_is_finished_once_it_is_back(
    own_redis_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esper.services.tamiyo.tamiyo import Tamiyo  # noqa: PLC0415 (here alone)

    server, runs = own_redis_server("--appendfsync", "always"), tmp_path / "runs"
    on_epoch_end = Tamiyo.on_epoch_end

    def dies(self: Tamiyo, epoch: int) -> Any:
        if epoch == 1:
            server.kill()
        return on_epoch_end(self, epoch)

    asked = ("train", *QUICK, "--runs", str(runs))
    with monkeypatch.context() as patch:
        patch.setattr(Tamiyo, "on_epoch_end", dies)
        done = esper(*asked, "--store", server.url, code=1)
    assert "run 'digits-s0' is trained, but" in done.stderr
    assert "deliver them with: esper train --resume digits-s0" in done.stderr
    assert not (runs / "digits-s0" / "report.json").exists()
    server.start()
    resume(runs / "digits-s0")
    esper(*asked)  # the same, in its own folder
    url = json.loads((runs / "digits-s0" / "run.json").read_text())["run"]
    with open_store(server.url) as store:
        stored = [event for _, event in store.read(run=url) if event.kind != "clock"]
    told = {event.number: (event.kind, event.data.get("epoch")) for event in stored}
    wanted = log_of(runs / "digits-s0-2").values()
    assert told == {event.number: (event.kind, event.data.get("epoch")) for event in wanted}


@pytest.mark.dist
@pytest.mark.slow
def test_a_killed_run_is_resumed_at_once_to_the_same_log(
    tmp_path: Path, url: str, finished: Path
) -> None:
    """Its lease is not waited for, no event is lost or doubled, and those of the log are equal."""
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "esper", "train", *QUICK, "--runs", str(runs), "--store", url]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    run, patience = runs / "digits-s0", time.monotonic() + 120
    while not (run / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.01)
    process.kill()
    process.wait()
    resume(run)
    name = json.loads((run / "run.json").read_text(encoding="utf-8"))["run"]
    with open_store(url) as store:
        found = [event for _, event in store.read(run=name) if event.kind != "clock"]
        assert store.missing(found[0].writer, len(found)) == []
    assert len({event.op_id for event in found}) == len(found)
    wanted = log_of(finished).values()
    assert [_facts(event) for event in sorted(found, key=lambda e: e.number)] == [
        _facts(event) for event in sorted(wanted, key=lambda e: e.number)
    ]


def _facts(event: Event) -> tuple[str, dict[str, Any]]:
    named = ("decision", "latency_ms", "kernel", "kernel_id")  # the run's name, and a clock
    return event.kind, {key: value for key, value in event.data.items() if key not in named}


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.redis
def test_a_password_is_kept_nowhere_and_a_new_one_is_taken(
    own_redis_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_KNOWN", {})
    server, runs = own_redis_server("--requirepass", "s3cret"), tmp_path / "runs"
    url = server.url.replace("//", "//:s3cret@")
    done = esper("train", *QUICK, "--runs", str(runs), "--store", url)
    run = runs / "digits-s0"
    shown = done.output + esper("inspect", "digits-s0", "--runs", str(runs), "--json").output
    assert "s3cret" not in shown
    for path in run.iterdir():
        assert b"s3cret" not in path.read_bytes(), path
    monkeypatch.setattr(addresses, "_KNOWN", {})  # another process
    assert "login is right" in esper("inspect", "digits-s0", "--runs", str(runs), code=1).stderr
    monkeypatch.setenv("ESPER_STORE_PASSWORD", "s3cret")
    esper("inspect", "digits-s0", "--runs", str(runs))
    monkeypatch.delenv("ESPER_STORE_PASSWORD")
    (run / "report.json").unlink()
    _set_password(server, "s3cret", "rotated")
    resume(run, "--store", server.url.replace("//", "//:rotated@"))
    assert (run / "report.json").exists()


def _set_password(server: RedisServer, old: str, new: str) -> None:
    import redis  # noqa: PLC0415 (an extra)

    with redis.Redis(port=server.port, password=old) as client:
        client.config_set("requirepass", new)


# --- folders --------------------------------------------------------------------------------------


def test_a_picture_is_there_whole_or_not_at_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "run.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_room)
        resume(run, code=1)
    assert not list(run.glob("run.png*"))
    resume(run)
    assert (run / "run.png").stat().st_size > 1000


def _no_room(_: int) -> None:
    raise OSError(28, "No space left on device")


DAMAGES: list[Callable[[Random, bytes], bytes]] = [
    lambda random, text: text[: random.randrange(len(text))],
    lambda random, text: text.replace(b"1", random.choice([b"1e999", b"NaN", b'"x"', b"[]"]), 2),
    lambda random, text: text.replace(b'"', b"'", 3),
    lambda random, text: bytes(random.randrange(256) for _ in range(200)),
    lambda random, text: b"[" * random.choice([3, 100_000]),
    lambda random, text: random.choice([b"", b"null", b"[]", b"{}", b'{"schema": []}', b"7"]),
]


def _without_a_key(random: Random, text: bytes) -> bytes:
    data = json.loads(text)
    data.pop("checksum")
    data.pop(random.choice(list(data)))
    return json.dumps(data).encode()


def _with_another_value(random: Random, text: bytes) -> bytes:
    data = json.loads(text)
    data.pop("checksum")
    data[random.choice(list(data))] = random.choice([None, "x", -1, [], {}, [1], {"a": 1}, 1e300])
    return json.dumps(data).encode()


DAMAGES += [_without_a_key, _with_another_value]


@pytest.mark.parametrize("name", ["run", "control", "grown", "report", "stored"])
def test_damaged_files_of_a_run_are_one_sentence(run: Path, name: str) -> None:
    path, random = run / f"{name}.json", Random(name)
    whole = path.read_bytes()
    for number in range(40):
        path.write_bytes(DAMAGES[number % len(DAMAGES)](random, whole))
        for command in (("runs",), ("inspect", "digits-s0")):
            done = CliRunner().invoke(app, [*command, "--runs", str(run.parent)])
            assert done.exit_code in {0, 1, 2}, (path.read_bytes()[:300], done.exception)
            assert done.exception is None or isinstance(done.exception, SystemExit)
            if done.exit_code:
                assert len(done.stderr.splitlines()) == 1


def test_a_changed_file_of_a_run_is_noticed(run: Path) -> None:
    path = run / "control.json"
    text = path.read_text(encoding="utf-8")
    at = text.index("0.", text.index("losses"))
    path.write_text(text[:at] + "9." + text[at + 2 :], encoding="utf-8")
    line = esper("inspect", "digits-s0", "--runs", str(run.parent), code=1).stderr
    assert "control.json is damaged: its checksum is wrong" in line


def test_odd_rows_of_a_log_are_one_sentence_or_passed_over(run: Path) -> None:
    random = Random(3)
    with SqliteStore(run / "history.db") as store:
        count = len(list(store.read()))
    shutil.copy(run / "history.db", run / "whole.db")
    for _ in range(60):
        shutil.copy(run / "whole.db", run / "history.db")
        with closing(sqlite3.connect(run / "history.db")) as file, file:
            position = random.randrange(1, count + 1)
            data = random.choice(
                ["{", "[]", "{}", '{"epoch": "x"}', '{"layer": 5, "seed": {}}', "[" * 9000, "1e999",
                 '{"kept": NaN}', b"\xff\x00", '{"epoch": 1, "losses": null, "new": "?"}']
            )  # fmt: skip
            file.execute("UPDATE events SET data = ? WHERE position = ?", (data, position))
        for command in (("runs",), ("inspect", "digits-s0")):
            done = CliRunner().invoke(app, [*command, "--runs", str(run.parent)])
            assert done.exception is None or isinstance(done.exception, SystemExit), data


def test_names_cannot_rule_the_terminal(tmp_path: Path) -> None:
    evil = "fc1\x1b]0;owned\x07\x1b[2J\u202e"
    path = tmp_path / "history.db"
    from esper.contracts.selection import SelectionContext  # noqa: PLC0415 (here alone)
    from esper.services.tamiyo.performance_tracker import PerformanceTracker  # noqa: PLC0415
    from esper.services.tamiyo.seed_selector import SeedSelector  # noqa: PLC0415
    from esper.strategies import STRATEGIES  # noqa: PLC0415

    tracker = PerformanceTracker(store=f"sqlite:///{path}", scope=evil, run=evil)
    selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
    selector.select_seed_now(evil, [0, 1], SelectionContext())
    tracker.events.journal.close()  # type: ignore[union-attr]  # it has one
    shown = esper("inspect", str(path)).output
    assert "\\x1b" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n"
            for n in range(10)
        ),
        "[" * 5000,
        "{a: " * 5000,
        "&a [*a]",
        f"growth: {{budget: {'9' * 6000}}}",
        "growth: {budget: 2001-99-99}",
    ],
    ids=["aliases", "deep", "deep maps", "itself", "long number", "no date"],
)  # fmt: skip
def test_settings_that_would_hang_or_crash_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    done = esper("train", "digits", "--config", str(path), "--runs", str(tmp_path / "r"), code=2)
    assert len(done.stderr.splitlines()) == 1
    esper("ab", "x", "y", "--set", f"x={text}", code=2)


def test_every_kind_of_event_that_a_run_writes_is_known(finished: Path) -> None:
    found = esper("store", "check", str(finished / "history.db"), "--json")
    assert json.loads(found.stdout)["unknown"] == {}
    assert {"run", "end", "epoch"} <= set(json.loads(found.stdout)["kinds"])


def test_a_run_folder_reads_what_it_wrote(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write("control", {"losses": [0.1, None], "n": {"a": 1}})
    assert folder.read("control") == {"losses": [0.1, None], "n": {"a": 1}}
