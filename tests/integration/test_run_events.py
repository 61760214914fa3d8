"""What a run tells of itself: what it is, how it ended, and when, which is kept apart."""

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.contracts.events import CLOCK, Event
from esper.runs import event_rows
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.stores import open_store
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from tests.unit.services.small_run import KEPT, LAYERS, SEEDS, SmallRun, same, settings


def short(**more: Any) -> SmallRun:
    """A run with one graft at a time, which begins at the end of epoch 1 and blends in epoch 3."""
    return SmallRun(config=settings(train_epochs=1, max_active=1), worth=[KEPT], **more)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'history.db'}"


def stored(url: str) -> list[Event]:
    with open_store(url) as store:
        return [event for _, event in store.read()]


def test_the_first_event_says_what_runs_and_two_runs_of_a_seed_tell_the_same(url: str) -> None:
    runs = [short(options={"seed": 3, "store": url, "scope": "s", "run": n}).run(2) for n in "ab"]
    first, second = (run.events()[0] for run in runs)
    assert (first.kind, first.number, first.data) == ("run", 0, second.data)
    assert first.data["model"] == "Sequential"
    assert first.data["optimizers"] == ["Adam"]
    assert first.data["sites"] == [{"layer": name, "seeds": list(SEEDS)} for name in LAYERS]
    assert first.data["settings"]["growth"]["budget"] == 400
    assert (first.data["seed"], set(first.data["versions"])) == (3, {"esper", "torch", "python"})


def test_before_its_first_epoch_a_run_tells_nothing(url: str) -> None:
    short(options={"store": url}).engine.close()
    assert stored(url) == []


def test_the_alpha_of_a_kernel_is_told_while_it_is_blended_in() -> None:
    config = settings(train_epochs=1, blend_epochs=3, ramp=1.0, max_active=1)
    told = [data.get("alphas") for data in SmallRun(config=config).run(5).facts("epoch")]
    blending = [next(iter(alphas.values())) for alphas in told if alphas]
    assert told[:2] == [None, None]
    assert blending == pytest.approx([0, 1 / 3, 2 / 3])


def test_when_it_happened_is_stored_beside_the_log(url: str) -> None:
    run = short(options={"store": url, "scope": "s"}).run(3)
    told = run.events()
    run.engine.close()
    clocks = [event for event in stored(url) if event.kind == CLOCK]
    assert [event.data["epoch"] for event in clocks] == [0, 1, 2, 2]
    assert [event.data.get("end") for event in clocks] == [None, None, None, "closed"]
    assert all(event.number < 0 for event in clocks)
    assert not [event for event in told if event.kind == CLOCK]
    rows = event_rows.rows(stored(url))
    assert not [row for row in rows if row["kind"] == CLOCK]
    assert [row["kind"] for row in event_rows.timings(stored(url))].count(CLOCK) == 4


# --- how it ends ----------------------------------------------------------------------------------


def test_a_run_that_is_closed_keeps_nobody_waiting_and_leaves_the_model_alone() -> None:
    run = short(options={"store": MemoryStore()}).run(3)
    (graft,) = run.engine.grafts.grafts
    before = run.state()
    run.engine.close()
    assert same(run.state(), before)
    assert [data["decision"] for data in run.facts("withdrawal")] == [graft.decision.decision_id]
    assert run.facts("end") == [{"epoch": 2, "how": "closed"}]
    run.run(4, first=3)
    run.engine.close()
    assert run.reports[-1].reason == "the run is finished"
    assert not run.reports[-1].verdicts
    assert len(run.facts("end")) == len(run.facts("withdrawal")) == 1


def test_trials_that_are_pruned_leave_no_choice_open_and_teach_nothing(url: str) -> None:
    for trial in range(4):
        run = short(options={"store": url, "scope": "s", "seed": trial})
        run.run(6 if trial == 3 else 2 + trial)  # the last one is not pruned
        run.engine.close()
    kinds = Counter(event.kind for event in stored(url))
    assert kinds["withdrawal"] >= 3
    assert kinds["outcome"] >= 1
    assert kinds["decision"] == kinds["outcome"] + kinds["withdrawal"]
    assert kinds["run"] == kinds["end"] == 4
    with Journal(open_store(url)) as journal:
        tracker = PerformanceTracker(store=journal, scope="s")
        layers = [layer for name in LAYERS if (layer := tracker.layer(name)) is not None]
        records = [record for layer in layers for record in layer.seeds.values()]
        assert sum(record.outcomes for record in records) == kinds["outcome"]
        assert not any(record.open for record in records)


@pytest.mark.parametrize("how", ["finish", "close"])
def test_a_run_that_ended_is_taken_up_again_and_its_outcome_counts(url: str, how: str) -> None:
    def begun(name: str) -> SmallRun:
        return short(options={"store": url, "scope": name, "run": name})

    def state(run: SmallRun) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "model": run.model,
            "tamiyo": run.engine,
            "optimizer": run.optimizer,
        }
        random = torch.get_rng_state()
        return deepcopy({name: one.state_dict() for name, one in parts.items()}) | {"rng": random}

    def again(name: str, saved: dict[str, Any], epoch: int) -> SmallRun:
        run = begun(name)
        run.model.load_state_dict(saved["model"])
        run.engine.load_state_dict(saved["tamiyo"])
        run.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        return run.run(epoch + 2, first=epoch)

    run = begun("stopped").run(3)
    for epoch in (3, 5):  # each time, what the end had told is in the store
        saved = state(run)
        getattr(run.engine, how)()
        run.engine.close()
        run = again("stopped", saved, epoch)
    whole = begun("whole").run(7)
    for kinds in (("outcome", "graft", "lifecycle"), ("epoch", "health", "run", "decision")):
        log = json.dumps(whole.facts(*kinds)).replace("whole/whole/", "stopped/stopped/")
        told = [data for data in run.facts(*kinds) if data.get("why") != "the run ended"]
        assert told == json.loads(log)
    assert whole.facts("outcome")

    def learnt(run: SmallRun) -> Any:
        layers = [run.engine.tracker.layer(name) for name in LAYERS]
        records = [record for layer in layers if layer for record in layer.seeds.values()]
        return [(one.mean, one.recent, one.outcomes, one.total_activations, len(one.open))
                for one in records]  # fmt: skip

    assert learnt(run) == learnt(whole)
