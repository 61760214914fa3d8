"""Files of every kind, damaged: one of our errors, or a whole answer; never a bare error.

Where a checksum promises it, a damaged file is an error, or what was read is what was written.
Each kind is damaged 30 times; with ``ESPER_LONG=1`` 250 times.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest
import torch

import esper
from esper.contracts.errors import EsperError, NoViableSeedError
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.execution import checkpoint, topology
from esper.records import snapshot
from esper.records.history import History
from esper.records.state import history_data
from esper.runs import store_care
from esper.runs.run_folder import RunFolder
from esper.server.keys import add_key, read_keys
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.settings import load_config
from esper.stores import addresses, open_store
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES
from tests.damage import damages
from tests.rounds import rounds
from tests.unit.adapters.test_adapt import adapted, batches, host
from tests.unit.execution.test_state_dict import fresh, grown

SETTINGS = """
seed_selection:
  strategy: ucb
  ucb: {exploration_constant: 1.5}
  constraints: {min_dormant_epochs: 3, max_concurrent_seeds: 2, fallback_to_zero: true}
growth: {budget: 400, plateau_threshold: 1.0, probe_every: 7, max_active: 2}
"""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        path: The file, whole.
        read: What is read from it, comparable; raises one of our errors if it cannot be.
        checksum: True if damage is always noticed.
    """

    path: Path
    read: Callable[[], object]
    checksum: bool


def play(url: str) -> None:
    tracker = PerformanceTracker(store=url, scope="s", run="r")
    selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
    for epoch in range(12):
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
        delta = PerformanceDelta(reward=0.1 * seed_idx, latency_ms=1 / (epoch + 3))
        tracker.update_metrics_now("fc1", seed_idx, delta)
    assert tracker.events.journal is not None
    tracker.events.journal.close()


def sqlite(folder: Path) -> Kind:
    path, taken = folder / "history.db", iter(range(10**9))
    play(f"sqlite:///{path}")
    with SqliteStore(path) as store:
        store.compact()

    def read() -> object:
        """Read it, append to a copy, and choose from what it teaches."""
        copy = folder / f"copy-{next(taken)}.db"
        shutil.copy(path, copy)
        with suppress(EsperError), SqliteStore(path, read_only=True) as store:
            list(store.read())
        store_care.check(f"sqlite:///{copy}")
        tracker = PerformanceTracker(store=f"sqlite:///{copy}", scope="s", run="another")
        selector = SeedSelector(STRATEGIES.create("auto"), tracker=tracker)
        with suppress(NoViableSeedError):
            selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(3))
        assert tracker.events.journal is not None
        tracker.events.journal.close(1.0)
        return None

    return Kind(path, read, checksum=False)


def exported(folder: Path) -> Kind:
    path = folder / "history.jsonl"
    play(f"sqlite:///{folder}/history.db")
    store_care.export(f"sqlite:///{folder}/history.db", path)
    taken = iter(range(10**9))

    def read() -> object:
        url = f"sqlite:///{folder}/in-{next(taken)}.db"
        counts = store_care.take_in(path, url)
        with open_store(url) as store:
            return counts, [event for _, event in store.read()]

    return Kind(path, read, checksum=True)


def a_checkpoint(folder: Path) -> Kind:
    path = folder / "checkpoint.safetensors"
    weights = {f"w{n}": torch.arange(40.0).reshape(8, 5) * n for n in range(3)}
    checkpoint.save(
        path, {"model": weights, "epoch": 3, "rng": torch.arange(9, dtype=torch.uint8), "x": [1.5]}
    )

    def read() -> object:
        return repr(checkpoint.load(path))

    return Kind(path, read, checksum=True)


def a_snapshot(folder: Path) -> Kind:
    path, store = folder / "snapshot.json", MemoryStore()
    tracker = PerformanceTracker(store=store, scope="s", run="r")
    selector = SeedSelector(STRATEGIES.create("ucb"), tracker=tracker)
    for epoch in range(9):
        seed_idx, _ = selector.select_seed_now("fc1", [0, 1, 2], SelectionContext(epoch))
        tracker.update_metrics_now("fc1", seed_idx, PerformanceDelta(reward=0.1 * seed_idx))
    kept: dict[str, str] = {}
    store.save_snapshot = kept.__setitem__  # type: ignore[method-assign, assignment]
    store.load_snapshot = kept.get  # type: ignore[method-assign, assignment]
    history, place = tracker._history, {"cursor": "18", "seen": {"s/r": 18}}
    history.own = ""
    snapshot.save(store, "s", history, place)
    ((name, text),) = kept.items()
    path.write_text(text, encoding="utf-8")

    def read() -> object:
        kept[name] = path.read_bytes().decode(errors="surrogateescape")
        found = snapshot.load(store, "s", History(20, 0.9))
        return found if found is None else (history_data(found[0]), found[1])

    return Kind(path, read, checksum=True)


def of_a_run(folder: Path) -> Kind:
    run = RunFolder(folder)
    facts = {"task": "digits", "seed": 0, "layers": ["fc1"], "slots": {"fc1": ["glu", "gate"]}}
    run.write("run", {**facts, "config": {"growth": {"budget": 400}}, "losses": [0.5, None, 1e-9]})

    def read() -> object:
        found = run.read("run")
        # An older version wrote no checksum: without the word, a file is one of those.
        return found and {name: found.get(name) for name in (*facts, "config", "losses")}

    return Kind(folder / "run.json", read, checksum=True)


def adapter(folder: Path, name: str) -> Kind:
    whole, x = host(), batches(1, 7)[0][0]
    adapted(whole, budget=2.0)
    esper.save_adapter(whole, folder)

    def read() -> object:
        model = host()
        try:
            esper.load_adapter(model, folder)
        except EsperError:
            with torch.no_grad():
                assert torch.equal(model.eval()(x), host().eval()(x))  # left as it was
            raise
        with torch.no_grad():
            return model.eval()(x).tolist()

    return Kind(folder / name, read, checksum=True)


def state_dict(folder: Path) -> Kind:
    """Topology of a wrapped layer, as it travels in every state dict."""
    path = folder / "topology.json"

    state = grown().state_dict()
    key = next(name for name in state if name.endswith(topology.KEY))
    path.write_bytes(bytes(state[key].tolist()))

    def read() -> object:
        content = list(path.read_bytes())
        with suppress(RuntimeError):  # torch's own, of keys that are missing or not expected
            fresh().load_state_dict({**state, key: torch.tensor(content, dtype=torch.uint8)})
        return None

    return Kind(path, read, checksum=False)


def keys(folder: Path) -> Kind:
    path = folder / "keys.txt"
    for name in ("trainer", "viewer"):
        add_key(path, name, "read" if name == "viewer" else "write", "main")

    def read() -> object:
        found = read_keys(path)
        assert all(len(key.digest) == 64 and key.right in {"read", "write"} for key in found)
        return None

    return Kind(path, read, checksum=False)


def logins(folder: Path) -> Kind:
    path = folder / "credentials"
    path.write_text("machine h.example.org:8000 login me password s3cret\ndefault login x\n")
    path.chmod(0o600)

    def read() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ESPER_CREDENTIALS", str(path))
            addresses.with_secrets("http://h.example.org:8000/main")
        return None

    return Kind(path, read, checksum=False)


def settings(folder: Path) -> Kind:
    path = folder / "esper.yaml"
    path.write_text(SETTINGS, encoding="utf-8")

    def read() -> object:
        load_config(path)
        return None

    return Kind(path, read, checksum=False)


KINDS: dict[str, Callable[[Path], Kind]] = {
    "sqlite": sqlite,
    "export": exported,
    "checkpoint": a_checkpoint,
    "snapshot": a_snapshot,
    "run": of_a_run,
    "adapter": lambda folder: adapter(folder, "adapter.json"),
    "adapter values": lambda folder: adapter(folder, "adapter.safetensors"),
    "state dict": state_dict,
    "keys": keys,
    "logins": logins,
    "settings": settings,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_noticed_and_breaks_nothing(name: str, tmp_path: Path) -> None:
    kind, count = KINDS[name](tmp_path), rounds(30, 250)
    whole, expected = kind.path.read_bytes(), kind.read()
    refused = 0
    for number, (how, content) in enumerate(damages(whole, count, seed=crc32(name.encode()))):
        kind.path.write_bytes(content)
        where = f"{name}, damage {number}, {how}: {content[:300]!r}"
        try:
            told, found = "-", kind.read()
        except EsperError as error:
            told, found = str(error), None
        except Exception as error:
            raise AssertionError(where) from error
        refused += found is None
        assert len(told.splitlines()) == 1, where
        assert not kind.checksum or found in (expected, None), where
    kind.path.write_bytes(whole)
    assert kind.read() == expected
    assert refused > count / 5
