"""A run that is stopped and resumed writes the log of one that was not, by every strategy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random  # noqa: TID251 (the script of a run, not a choice)

import pytest

from esper.contracts.errors import NoViableSeedError
from esper.contracts.events import Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import (
    Decision,
    SelectionConstraints,
    SelectionContext,
    decision_data,
    decision_from,
)
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import MetricsStore
from esper.stores.journal import Journal
from esper.stores.memory import MemoryStore
from esper.stores.sqlite import SqliteStore
from esper.strategies import STRATEGIES

EPOCHS = 60
STOPS = (1, 23, 47)
OURS = {
    "out": ("lowrank", "gate", "glu"),
    "fc3": ("gate", "glu", "lowrank"),
    "fc1": ("glu", "lowrank"),
}
THEIRS = {"fc1": ("lowrank", "gate"), "extra": ("lowrank", "gate"), "fc3": ("gate", "glu")}
Menus = Mapping[str, tuple[str, ...]]


@dataclass
class Scripted:
    """A run whose outcomes are written down beforehand: tracker and selector as Tamiyo has them.

    Now and then a graft fails or is withdrawn; outcomes come up to four epochs late.
    """

    strategy: str
    store: MetricsStore
    name: str
    menus: Menus
    pending: list[tuple[int, str, float, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        journal = Journal(self.store, patience_s=60)  # a late answer would be another log
        self.tracker = PerformanceTracker(store=journal, scope="model", run=self.name)
        self.bindings = [
            (layer, seed, blueprint)
            for layer, menu in self.menus.items()
            for seed, blueprint in enumerate(menu)
        ]
        for binding in self.bindings:
            self.tracker.bind(*binding)
        self.selector = SeedSelector(
            STRATEGIES.create(self.strategy),
            tracker=self.tracker,
            constraints=SelectionConstraints(min_dormant_epochs=1),
        )

    def epoch(self, epoch: int) -> None:
        script = Random(f"{self.name}, epoch {epoch}")
        due = [one for one in self.pending if one[0] <= epoch]
        self.pending = [one for one in self.pending if one[0] > epoch]
        for _, end, reward, decision in due:
            self._end(decision, end, reward)
            self.selector.free(decision.layer_name, decision.seed_idx, epoch)
        self.tracker.refresh()
        layer = script.choice(list(self.menus))
        late, end = script.randint(1, 4), script.choice([*["outcome"] * 6, "failure", "withdrawal"])
        context = SelectionContext(current_epoch=epoch, layer_type="Linear")
        try:
            decision = self.selector.decide(layer, range(len(self.menus[layer])), context)
        except NoViableSeedError:
            return
        self.selector.commit(layer, decision.seed_idx)
        reward = script.gauss(0.01 * decision.seed_idx + 0.05 * (epoch > 30), 0.013)
        self.pending.append((epoch + late, end, reward, decision))
        self.tracker.flush()

    def _end(self, decision: Decision, end: str, reward: float) -> None:
        if end == "failure":
            self.selector.fail(decision, "told to")
        elif end == "withdrawal":
            self.tracker.withdraw(decision)
        else:
            delta = PerformanceDelta(reward=reward, loss_delta=1.1 * reward)
            self.tracker.update_metrics_now(
                decision.layer_name, decision.seed_idx, delta, decision=decision
            )

    def saved(self) -> str:
        pending = [(*one[:3], decision_data(one[3])) for one in self.pending]
        tracker, selector = self.tracker, self.selector.state_dict()
        return json.dumps([tracker.position, list(tracker.events.reads), selector, pending])

    def resumed(self) -> "Scripted":
        """A fresh run that takes up where this one is, as in another process."""
        position, reads, selector, pending = json.loads(self.saved())
        again = Scripted(self.strategy, self.store, self.name, self.menus)
        again.tracker.rewind(position, reads=reads, bindings=again.bindings)
        again.selector.load_state_dict(selector)
        again.pending = [(*one[:3], decision_from(one[3])) for one in pending]
        return again


def log_of(strategy: str, store: MetricsStore, stop: int | None = None) -> dict[str, Event]:
    """Events of a store by id: of one run before and beside ours, which is stopped and resumed."""
    theirs = Scripted(strategy, store, "theirs", THEIRS)
    for epoch in range(20):
        theirs.epoch(epoch)
    ours = Scripted(strategy, store, "ours", OURS)
    for epoch in range(EPOCHS):
        if epoch == stop:
            ours = ours.resumed()
        ours.epoch(epoch)
        if epoch % 3 == 0:
            theirs.epoch(20 + epoch)
    return {event.op_id: event for _, event in store.read()}


@cache
def uninterrupted(strategy: str) -> dict[str, Event]:
    return log_of(strategy, MemoryStore())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_the_log_of_a_resumed_run_is_exact(
    strategy: str, stop: int, kind: str, tmp_path: Path
) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "history.db")
    with store:
        assert log_of(strategy, store, stop) == uninterrupted(strategy)


def test_the_log_has_what_a_resumed_run_must_order() -> None:
    events = uninterrupted("auto").values()
    kinds = [event.kind for event in events if event.run == "ours"]
    assert set(kinds) == {"decision", "outcome", "failure", "withdrawal"}
    assert kinds.count("outcome") > 30
    assert sum(event.run == "theirs" for event in events) > 50
