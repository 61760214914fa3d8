"""What one run learnt serves the next on the same store, and only where it applies."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from esper.stores import MetricsStore, open_store
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import SmallRun, host, settings

pytestmark = pytest.mark.trains
GROWTH = settings(max_active=1)
EPOCHS = 11


@pytest.fixture(params=["memory", "sqlite"], scope="module")
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SmallRun, Any]:
    """The first run, and where it left its history: a store in memory, or a file."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("history") / "history.db"
        return a_run(f"sqlite:///{path}"), path
    store = MemoryStore()
    return a_run(store), store


@pytest.fixture
def first(begun: tuple[SmallRun, Any]) -> SmallRun:
    return begun[0]


@pytest.fixture
def place(begun: tuple[SmallRun, Any], tmp_path: Path) -> Callable[[], Any]:
    """Gives what is passed as ``store``, for its own history that begins with the first run."""
    if isinstance(begun[1], Path):
        shutil.copy(begun[1], tmp_path / "history.db")
        return lambda: f"sqlite:///{tmp_path}/history.db"
    store = MemoryStore()
    store.append([event for _, event in begun[1].read()])
    return lambda: store


def a_run(store: Any, *, seed: int = 0, epochs: int = EPOCHS, **options: Any) -> SmallRun:
    """A run on this store, ended; its events are read before it closes."""
    run = SmallRun(
        config=GROWTH,
        model=host(seed),
        layers=options.pop("layers", ("fc1",)),
        seeds=options.pop("seeds", ("lowrank", "bottleneck", "gate", "glu")),
        worth=(0.05, -0.02, 0.08, 0.01),
        options={"store": store, "seed": seed, **options},
    ).run(epochs)
    run.decided = run.facts("decision")  # type: ignore[attr-defined]
    run.engine.close()
    return run


@cache
def fresh(scope: str | None = None) -> SmallRun:
    """What the second run would do if there had been no first."""
    return a_run(None, seed=1, scope=scope)


def decided(run: SmallRun) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.decided  # type: ignore[attr-defined]
    return found


def first_tries(run: SmallRun) -> int:
    return sum(decision["reason"].startswith("untried") for decision in decided(run))


def test_a_second_run_starts_from_what_the_first_learnt(
    first: SmallRun, place: Callable[[], Any]
) -> None:
    second = a_run(place(), seed=1)
    assert first_tries(first) == first_tries(fresh()) == 4
    assert first_tries(second) == 0
    assert decided(second)[0]["scores"].keys() == {"0", "1", "2", "3"}
    assert [d["seed"] for d in decided(second)] != [d["seed"] for d in decided(fresh())]
    known = second.engine.tracker.get_layer_metrics("fc1")
    before = first.engine.tracker.get_layer_metrics("fc1")
    new = {seed: sum(d["seed"] == seed for d in decided(second)) for seed in known}
    for seed, metrics in known.items():
        assert metrics.total_activations == before[seed].total_activations + new[seed]


def test_runs_of_one_store_stay_apart_in_its_log(first: SmallRun, place: Callable[[], Any]) -> None:
    second = a_run(place(), seed=1, epochs=6)
    assert first.engine.tracker.events.run != second.engine.tracker.events.run
    store = place()
    opened: MetricsStore = open_store(store) if isinstance(store, str) else store
    for run, count in ((first, EPOCHS), (second, 6)):
        epochs = list(opened.read(run=run.engine.tracker.events.run, kinds=["epoch"]))
        assert [event.data["epoch"] for _, event in epochs] == list(range(count))


def test_another_scope_sees_nothing_of_it(place: Callable[[], Any]) -> None:
    other = a_run(place(), seed=1, scope="another network")
    assert first_tries(other) == 4
    alone = fresh("another network")
    choices = [[(d["seed"], d["epoch"]) for d in decided(run)] for run in (other, alone)]
    assert choices[0] == choices[1]


def test_a_changed_blueprint_in_a_slot_does_not_inherit(place: Callable[[], Any]) -> None:
    changed = a_run(place(), seed=1, seeds=("lowrank", "bottleneck", "lowrank", "glu"))
    assert [d["seed"] for d in decided(changed) if d["reason"].startswith("untried")] == [2]
    assert decided(changed)[0]["seed"] == 2  # what was never tried comes first
    back = a_run(place(), seed=2, epochs=5)
    assert first_tries(back) == 0
    assert back.engine.tracker.get_layer_metrics("fc1")[2].total_activations >= 1


def test_the_grafts_of_earlier_runs_do_not_say_where_to_grow(place: Callable[[], Any]) -> None:
    a_run(place(), scope="both", layers=("fc1", "fc2"))
    again = a_run(place(), scope="both", seed=1, epochs=3, layers=("fc1", "fc2"))
    reason = next(report.reason for report in again.reports if report.decision)
    assert f"{decided(again)[0]['layer']} has had fewest grafts, 0 (0 kept)" in reason


def test_a_store_that_was_handed_in_open_stays_open() -> None:
    store = MemoryStore()
    run = a_run(store, epochs=3)
    run.engine.close()
    assert sum(1 for _ in store.read(kinds=["epoch"])) == 3
