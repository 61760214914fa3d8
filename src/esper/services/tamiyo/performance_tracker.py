"""PerformanceTracker: the outcomes of every seed, in memory first, then in the store."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, final

from esper.contracts.audition import Contrast
from esper.contracts.errors import StoreError
from esper.contracts.names import require_name
from esper.contracts.performance import (
    PerformanceDelta,
    SeedPerformanceMetrics,
    require_finite,
    reward,
)
from esper.contracts.selection import Decision, require_seed
from esper.records.event_writer import Bindings, EventWriter, Reads
from esper.records.facts import add_measured, place_data
from esper.records.fold import fold, take
from esper.records.history import BeginKnowledge, History
from esper.records.layer import LayerRecord
from esper.records.reading import read_history
from esper.records.seed import SeedRecord
from esper.records.state import history_data, history_from
from esper.stores import opened
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal
from esper.strategies.snapshot import snapshot

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

__all__ = ["PerformanceDelta", "PerformanceTracker", "SeedPerformanceMetrics"]

logger = logging.getLogger(__name__)


@final
class PerformanceTracker:
    """Keeps the record of every seed, and shares it through a store if there is one.

    Every change is an event that is folded into memory at once and appended to the store after; a
    tracker opened on that store later starts from the same records. Without a store no event is
    made or kept, so memory does not grow with the number of updates. Safe to use from several
    threads and asyncio tasks.

    Args:
        redis_client: A redis-py client, sync or asyncio; short for ``store=RedisStore(client)``.
        window_size: Outcomes of a seed that are remembered, >= 1.
        decay_factor: Weight of an outcome relative to the one after it, in (0, 1].
        store: Where events go and what is known already comes from: a URL as
            ``"sqlite:///history.db"``, or a store.
        scope: Whose history this is; only events of the same scope are read.
        run: Name of this run, unique in the store unless the run is resumed; ids of events and
            decisions are made from it, so a run repeated under one name writes the same ids. If
            empty, a random one is drawn where there is a store.
        begin: As for `follow`, if it is known already: the store is then read once, not twice.

    Raises:
        ConfigError: if a setting is out of range, or both a client and a store are given.
        StoreError: if the store cannot be opened or read.

    Attributes:
        events: Writes the events, and reads those of others.
        lock: Held while records change; hold it to read several of them as of one moment.
    """

    def __init__(
        self,
        redis_client: "Redis | AsyncRedis | None" = None,
        *,
        window_size: int = 20,
        decay_factor: float = 0.9,
        store: str | MetricsStore | Journal | None = None,
        scope: str = "",
        run: str = "",
        begin: BeginKnowledge | None = None,
    ) -> None:
        require_name("scope", scope)  # all is refused before a store is opened
        require_name("run", run)
        history = History(window_size, decay_factor, begin)
        self._given, self.lock, self._reading = begin, RLock(), Lock()
        self.events = EventWriter(opened(store, redis_client), scope=scope, run=run)
        self._history = read_history(self.events, history)

    def get_layer_metrics(self, layer_name: str) -> dict[int, SeedPerformanceMetrics]:
        """A snapshot of the layer's seeds, free to keep and change; empty for an unknown layer."""
        with self.lock:
            layer = self._history.layers.get(layer_name)
            return {} if layer is None else snapshot(layer, self._history.decay_factor)

    @property
    def layer_names(self) -> list[str]:
        """The layers with a record, in the order in which they came up."""
        return list(self._history.layers)

    def layer(self, layer_name: str) -> LayerRecord | None:
        """The live record of a layer, to be read under ``lock`` and not changed."""
        return self._history.layers.get(layer_name)

    def record_of(self, decision: Decision) -> SeedRecord:
        """The live record that the outcome of ``decision`` will go to."""
        with self.lock:
            layer = self._history.layer(decision.layer_name)
            return layer.under(decision.seed_idx, decision.blueprint)

    # Recording

    def bind(self, layer_name: str, seed_idx: int, blueprint: str) -> None:
        """Say what a seed stands for; what is known of it under another blueprint is kept aside."""
        require_seed(layer_name, seed_idx)
        require_name("blueprint", blueprint)
        with self.lock:
            self._history.layer(layer_name).bind(seed_idx, blueprint)

    def record_selection(
        self, layer_name: str, seed_idx: int, *, decision: Decision | None = None
    ) -> SeedRecord:
        """Count a choice, and wait for the outcome of its decision; the seed's live record."""
        history, events = self._history, self.events
        with self.lock:
            layer = history.layers.get(layer_name)
            if layer is None or decision is None:
                require_seed(layer_name, seed_idx)
                layer = history.layer(layer_name)
            record = layer.seeds.get(seed_idx) or layer.current(seed_idx)
            if decision is None:
                history.choose(layer, record, "", -1)
                events.write("decision", place_data(record, "") | {"epoch": -1})
            else:
                history.choose(layer, record, decision.decision_id, decision.epoch)
                if history.begin is not None:
                    history.open[decision.decision_id] = decision
                history.writers.add(events.name)
                events.write_decision(decision)
        events.flush_soon()
        return record

    def update_metrics_now(
        self,
        layer_name: str,
        seed_idx: int,
        performance_delta: PerformanceDelta,
        *,
        decision: Decision | None = None,
        kernel_id: str | None = None,
    ) -> float:
        """Record the outcome of a choice.

        Args:
            layer_name: The layer.
            seed_idx: The seed.
            performance_delta: What was measured; its reward is `contracts.performance.reward`.
            decision: The decision that this is the outcome of, however late and in any order; a
                second outcome of one decision is not counted. Without it, the outcome answers the
                seed's latest open decision, if there is one.
            kernel_id: The kernel that was measured.

        Returns:
            The reward.

        Raises:
            MeasurementError: if a measurement is NaN or infinite, or nothing was measured.
            SelectionError: if the decision was never made here, or concerns another seed.
        """
        value = self._take(layer_name, seed_idx, performance_delta, decision, kernel_id)
        self.events.flush()
        return value

    async def update_metrics(
        self,
        layer_name: str,
        seed_idx: int,
        performance_delta: PerformanceDelta,
        *,
        decision: Decision | None = None,
        kernel_id: str | None = None,
    ) -> float:
        """`update_metrics_now`, the store being written by another thread meanwhile."""
        value = self._take(layer_name, seed_idx, performance_delta, decision, kernel_id)
        await self.events.flush_async()
        return value

    def record_failure(
        self, layer_name: str, seed_idx: int, error: str, *, decision: Decision | None = None
    ) -> None:
        """Record that a graft failed: nothing gained, an outcome of reward 0.

        Args, and errors, are those of `update_metrics_now`; ``error`` says what went wrong.
        """
        with self.lock:
            record, decision_id = self._history.answered(layer_name, seed_idx, decision)
            if record is not None:
                facts = place_data(record, decision_id) | {"error": error}
                fold(self._history, self.events.write("failure", facts))
        self.events.flush()

    def record_audition(self, decision: Decision, contrast: Contrast, **more: Any) -> None:
        """Record what a seed earned in an audition; errors are those of `update_metrics_now`."""
        require_finite(PerformanceDelta(reward=contrast.gain, reward_stderr=contrast.stderr))
        facts = {"epoch": decision.epoch, "site": str(decision.site), **asdict(contrast), **more}
        facts["relative"] = contrast.relative
        self._record("audition", decision.layer_name, decision.seed_idx, decision, facts)

    def record_end(
        self,
        layer_name: str,
        seed_idx: int,
        kept: bool,
        *,
        decision: Decision | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a graft ended, its kernel kept or culled; ``facts`` go into the event."""
        self._record("graft", layer_name, seed_idx, decision, {**(facts or {}), "kept": kept})

    def record_timing(
        self,
        layer_name: str,
        seed_idx: int,
        *,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        decision: Decision | None = None,
        stored: bool = True,
    ) -> None:
        """Record what depends on the machine of the day, apart from the outcome, which does not.

        Without clocks in it, not ``stored``, the log of a run depends on the run's seed alone.

        Raises:
            MeasurementError: if a measurement is NaN or infinite.
        """
        delta = PerformanceDelta(latency_ms=latency_ms, memory_mb=memory_mb)
        facts: dict[str, Any] = {}
        require_finite(delta)
        add_measured(facts, delta)
        self._record("timing", layer_name, seed_idx, decision, facts, stored=stored)

    def withdraw(self, decision: Decision) -> None:
        """No longer wait for the outcome of a decision that came to nothing."""
        with self.lock:
            record = self.record_of(decision)
            if decision.decision_id in record.open:
                facts = place_data(record, decision.decision_id)
                fold(self._history, self.events.write("withdrawal", facts))
        self.events.flush()

    def flush(self) -> None:
        """Hand all events so far to the store; in the order in which they happened."""
        self.events.flush()

    def refresh(self) -> int:
        """Take in what others have appended to the store since; returns how many events.

        Waits 0.08 s at most; a store that fails or is late is asked again at the next call.
        """
        try:
            return self.catch_up()
        except StoreError as error:  # the journal has told it, once
            logger.info("what others learnt cannot be read now: %s", error)
            return 0

    def catch_up(self) -> int:
        """`refresh`, with a StoreError where that leaves it to the next call."""
        with self._reading:
            found = self.events.fetch_new()
            with self.lock:
                for event in found:
                    take(self._history, event)
                    self.events.note_read(event)
        return len(found)

    def follow(self, begin: BeginKnowledge) -> None:
        """From now on keep a strategy's own knowledge of layers; ``begin`` makes it, of a name.

        What is known is learnt first: all of the history from the store; without a store, what the
        windows still hold, seed by seed.
        """
        given, self._given = self._given, None
        if begin == given:  # the history was read with it
            return
        self.events.flush()
        with self.lock:
            history = self._history
            history.begin_anew(begin)
            if self.events.journal is None:
                history.teach_windows()
                return
            layers = history.layers.items()
            bindings = [
                (name, *pair) for name, layer in layers for pair in layer.bindings().items()
            ]
            self._history = read_history(
                self.events, history, self.events.written, bindings=bindings
            )

    @property
    def position(self) -> int:
        """Number of events that this run has written; goes into a checkpoint, for `rewind`."""
        return self.events.written

    def rewind(
        self,
        position: int | None,
        *,
        run: str | None = None,
        reads: Reads = (),
        bindings: Bindings = (),
    ) -> None:
        """Forget what this run did after ``position``: a run is resumed from an older checkpoint.

        What is done anew gets the same ids, so the store keeps one copy. With ``reads``, records
        are what they were, bit for bit; without, the order of the store decides.

        Args:
            position: What `position` was then; ``None``: take up all that is in the store.
            run: Its name, if it is not this tracker's; the tracker takes it on.
            reads: What ``events.reads`` was then.
            bindings: Layers, seeds and blueprints, as bound before the run's first choice.

        Raises:
            StoreError: if the store cannot be read.
        """
        self.events.flush()
        with self.lock:
            if run is not None and run != self.events.run:
                self.events.rename(run)
            self._history = read_history(
                self.events, self._history, position, reads=reads, bindings=bindings
            )

    def state_dict(self) -> dict[str, Any]:
        """All that is known, as JSON data, of a tracker without a store.

        Raises:
            ConfigError: if there is a store; a tracker opened on it knows as much.
        """
        self.events.require_no_store("state_dict")
        with self.lock:
            return history_data(self._history)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, bit for bit.

        Make the selector first: what its strategy has learnt is in the state. Load the selector's
        own state after this.

        Raises:
            ConfigError: if there is a store, or the state is damaged, of other settings or of
                another strategy; nothing is taken over then.
        """
        self.events.require_no_store("load_state_dict")
        with self.lock:
            self._history = history_from(state, self._history)

    def _take(
        self,
        layer_name: str,
        seed_idx: int,
        delta: PerformanceDelta,
        decision: Decision | None,
        kernel_id: str | None,
    ) -> float:
        value = float(reward(delta))
        with self.lock:
            record, decision_id = self._history.answered(layer_name, seed_idx, decision)
            if record is None:
                return value
            if kernel_id is not None:
                record.kernel_id = kernel_id
            self._history.learn(record, decision_id, value, delta)
            if self.events.journal is not None:
                facts = place_data(record, decision_id)
                add_measured(facts, delta)
                facts["reward"] = value
                if kernel_id is not None:
                    facts["kernel"] = kernel_id
                self.events.write("outcome", facts)
            return value

    def _record(
        self,
        kind: str,
        layer_name: str,
        seed_idx: int,
        decision: Decision | None,
        facts: dict[str, Any],
        *,
        stored: bool = True,
    ) -> None:
        with self.lock:
            record = self._history.located(layer_name, seed_idx, decision)
            facts = place_data(record, decision.decision_id if decision else "") | facts
            fold(self._history, self.events.write(kind, facts, stored=stored))
        self.events.flush()
