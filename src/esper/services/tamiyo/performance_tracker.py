"""PerformanceTracker: what came of every seed, in memory first, then in the store."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from secrets import token_hex
from threading import RLock
from typing import TYPE_CHECKING, Any, final

from esper.contracts.errors import ConfigError, SelectionError, StoreError
from esper.contracts.events import Event
from esper.contracts.performance import (
    PerformanceDelta,
    SeedPerformanceMetrics,
    require_finite,
    reward,
)
from esper.contracts.selection import MOST_SEEDS, Decision, decision_data
from esper.records.history import KINDS, BeginKnowledge, History, fold, writer_of
from esper.records.layer import LayerRecord
from esper.records.seed import SeedRecord
from esper.records.state import history_data, history_from
from esper.stores.base import MetricsStore
from esper.stores.journal import Journal
from esper.strategies.scoring import standardise
from esper.strategies.thompson import Thompson
from esper.strategies.ucb import UCB

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
        store: Where events go and what is known already comes from.
        scope: Whose history this is; only events of the same scope are read.
        run: Name of this run, unique in the store unless the run is resumed; ids of events and
            decisions are made from it, so a run repeated under one name writes the same ids. If
            empty, a random one is drawn where there is a store.

    Raises:
        ConfigError: if a setting is out of range, or both a client and a store are given.
        StoreError: if the store cannot be read.

    Attributes:
        lock: Held while records change; hold it to read several of them as of one moment.
    """

    def __init__(
        self,
        redis_client: "Redis | AsyncRedis | None" = None,
        *,
        window_size: int = 20,
        decay_factor: float = 0.9,
        store: MetricsStore | Journal | None = None,
        scope: str = "",
        run: str = "",
    ) -> None:
        _check_settings(window_size, decay_factor)
        self.scope = scope
        self.run = run
        self.lock = RLock()
        self._journal = _journal(redis_client, store)
        if not run and self._journal is not None:
            run = token_hex(8)
        self._writer = _writer(scope, run)
        self._history = History(window_size, decay_factor, own=self._writer)
        self._written = 0
        self._cursor = ""
        self._load(None)

    # Reading

    def get_layer_metrics(self, layer_name: str) -> dict[int, SeedPerformanceMetrics]:
        """A snapshot of the layer's seeds, free to keep and change; empty for an unknown layer."""
        with self.lock:
            layer = self._history.layers.get(layer_name)
            if layer is None:
                return {}
            seeds = sorted(layer.seeds)
            bounds = UCB().scores(seeds, layer.seeds)
            posteriors = Thompson().posteriors(seeds, layer.seeds)
            centre, scale, _ = standardise(layer.seeds)
            found = {}
            for seed in seeds:
                alpha, beta = posteriors[seed]
                record = layer.seeds[seed]
                metrics = _snapshot(record, self._history.decay_factor)
                metrics.ucb_score = bounds[seed]
                metrics.thompson_score = alpha / (alpha + beta)
                metrics.performance_score = (
                    (record.recent - centre) / scale if record.count else 0.0
                )
                found[seed] = metrics
            return found

    @property
    def layer_names(self) -> list[str]:
        """The layers that anything is known of, in the order in which it became known."""
        return list(self._history.layers)

    def layer(self, layer_name: str) -> LayerRecord | None:
        """The live record of a layer, to be read under ``lock`` and not changed."""
        return self._history.layers.get(layer_name)

    @property
    def journal(self) -> Journal | None:
        """What events are written through; ``None`` without a store."""
        return self._journal

    # Recording

    def bind(self, layer_name: str, seed_idx: int, blueprint: str) -> None:
        """Say what a seed stands for; what is known of it under another blueprint is kept aside."""
        _check_seed(layer_name, seed_idx)
        with self.lock:
            self._history.layer(layer_name).bind(seed_idx, blueprint)

    def record_selection(
        self, layer_name: str, seed_idx: int, *, decision: Decision | None = None
    ) -> SeedRecord:
        """Count a choice; with its decision, also wait for the outcome.

        Returns:
            The live record of the seed.
        """
        _check_seed(layer_name, seed_idx)
        with self.lock:
            if decision is not None:
                record = self._decided(decision, layer_name, seed_idx)
            else:
                layer = self._history.layer(layer_name)
                record = layer.current(seed_idx)
                self._history.choose(layer, record, "", -1)
                if self._journal is not None:
                    self._note("decision", self._where(record, "") | {"epoch": -1})
        self.flush_soon()
        return record

    def record_decision(self, decision: Decision) -> SeedRecord:
        """`record_selection` of a decision that was just made, under `lock`; `flush_soon` after."""
        layer_name, seed_idx = decision.layer_name, decision.seed_idx
        if layer_name not in self._history.layers:
            _check_seed(layer_name, seed_idx)
        return self._decided(decision, layer_name, seed_idx)

    def _decided(self, decision: Decision, layer_name: str, seed_idx: int) -> SeedRecord:
        history = self._history
        layer = history.layers.get(layer_name) or history.layer(layer_name)
        record = layer.seeds.get(seed_idx) or layer.current(seed_idx)
        history.choose(layer, record, decision.decision_id, decision.epoch)
        if history.begin is not None:
            history.open[decision.decision_id] = decision
        history.writers.add(self._writer)
        if self._journal is not None:
            # Immutable: what is written of it can be worked out when it is written.
            self._journal.later(partial(self._event_of, self._written, decision))
            self._written += 1
        return record

    def update_metrics_now(
        self,
        layer_name: str,
        seed_idx: int,
        performance_delta: PerformanceDelta,
        *,
        decision: Decision | None = None,
        kernel_id: str | None = None,
    ) -> None:
        """Record what came of a choice.

        Args:
            layer_name: The layer.
            seed_idx: The seed.
            performance_delta: What was measured; its reward is `contracts.performance.reward`.
            decision: The decision that this is the outcome of, however late and in any order; a
                second outcome of one decision is not counted. Without it, the outcome answers the
                seed's latest open decision, if there is one.
            kernel_id: The kernel that was measured.

        Raises:
            MeasurementError: if a measurement is NaN or infinite, or nothing was measured.
            SelectionError: if the decision was never made here, or concerns another seed.
        """
        self._take_outcome(layer_name, seed_idx, performance_delta, decision, kernel_id)
        self.flush()

    async def update_metrics(
        self,
        layer_name: str,
        seed_idx: int,
        performance_delta: PerformanceDelta,
        *,
        decision: Decision | None = None,
        kernel_id: str | None = None,
    ) -> None:
        """`update_metrics_now`, the store being written by another thread meanwhile."""
        self._take_outcome(layer_name, seed_idx, performance_delta, decision, kernel_id)
        await self.flush_async()

    def record_failure(
        self, layer_name: str, seed_idx: int, error: str, *, decision: Decision | None = None
    ) -> None:
        """Record that a graft failed: nothing changed, nothing gained, an outcome of reward 0.

        Args:
            layer_name: The layer.
            seed_idx: The seed.
            error: What went wrong, in words.
            decision: As for `update_metrics_now`; a decision that has an outcome is not counted
                again.

        Raises:
            SelectionError: as `update_metrics_now`.
        """
        _check_seed(layer_name, seed_idx)
        with self.lock:
            record, decision_id = self._answered(layer_name, seed_idx, decision)
            if record is None:
                return
            self._apply("failure", self._where(record, decision_id) | {"error": error})
        self.flush()

    def record_verdict(
        self, layer_name: str, seed_idx: int, kept: bool, *, decision: Decision | None = None
    ) -> None:
        """Record that a kernel was kept or culled."""
        self._record("verdict", layer_name, seed_idx, decision, {"kept": kept})

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

        Args:
            layer_name: The layer.
            seed_idx: The seed.
            latency_ms: Forward latency of the kernel, in milliseconds.
            memory_mb: Memory of the kernel, in megabytes.
            decision: The decision that the kernel came from.
            stored: Whether the store gets it too. Without clocks in it, the log of a run depends
                on the run's seed alone.

        Raises:
            MeasurementError: if a measurement is NaN or infinite.
        """
        delta = PerformanceDelta(latency_ms=latency_ms, memory_mb=memory_mb)
        require_finite(delta)
        self._record("timing", layer_name, seed_idx, decision, _measured(delta), stored=stored)

    def declare(self, test: dict[str, Any]) -> None:
        """Write down the A/B test that decisions will be part of; once, however often it is told.

        Args:
            test: As `Assignment.declaration` gives it.
        """
        if self._journal is not None:
            # Not numbered: a resumed run tells it again, before it knows where it went on.
            digest = blake2b(repr(sorted(test.items())).encode(), digest_size=8).hexdigest()
            op_id = f"{_writer(self.scope, self.run)}/ab_test/{digest}"
            self._journal.append(Event(op_id, "ab_test", self.scope, self.run, test))

    def record_of(self, decision: Decision) -> SeedRecord:
        """The live record that the outcome of ``decision`` will go to."""
        with self.lock:
            layer = self._history.layer(decision.layer_name)
            return layer.under(decision.seed_idx, decision.blueprint)

    def withdraw(self, decision: Decision) -> None:
        """No longer wait for the outcome of a decision that came to nothing."""
        with self.lock:
            record = self.record_of(decision)
            if self._journal is not None:
                self._note("withdrawal", self._where(record, decision.decision_id))
            record.close(decision.decision_id)
            self._history.open.pop(decision.decision_id, None)
        self.flush()

    def decision_id(self, layer_name: str, number: int) -> str:
        """Id of the ``number``-th choice in a layer, unique in the store."""
        return f"{self._writer}/{layer_name}/{number}"

    # The store

    def flush(self) -> None:
        """Hand all events so far to the store; in the order in which they happened."""
        if self._journal is not None:
            self._journal.catch_up()

    def flush_soon(self) -> None:
        """`flush`, within 50 ms or so and in another thread."""
        if self._journal is not None:
            self._journal.soon()

    async def flush_async(self) -> None:
        """`flush` in another thread, so that the event loop goes on."""
        if self._journal is not None:
            await asyncio.to_thread(self.flush)

    def refresh(self) -> int:
        """Take in what others have appended to the store since; returns how many events.

        A store that cannot be read is logged as a warning and tried again at the next call.
        """
        if self._journal is None:
            return 0
        own, count = self._op_id(""), 0
        try:
            with self.lock:
                for position, event in self._journal.read(
                    self._cursor, scope=self.scope, kinds=KINDS
                ):
                    self._cursor = position
                    if not event.op_id.startswith(own):
                        fold(self._history, event)
                        count += 1
        except StoreError as error:
            logger.warning("what others learnt cannot be read now: %s", error)
        return count

    def follow(self, begin: BeginKnowledge) -> None:
        """From now on keep a strategy's own knowledge of every layer, beside the records.

        What is known already is learnt first: all of the history from the store; without a store,
        what the windows still hold, seed by seed.

        Args:
            begin: Makes the knowledge of a layer, given its name.
        """
        self.flush()
        with self.lock:
            history = self._history
            history.begin_anew(begin)
            if self._journal is not None:
                bound = {name: layer.bindings() for name, layer in history.layers.items()}
                self._load(self._written)
                for name, blueprints in bound.items():
                    for seed_idx, blueprint in blueprints.items():
                        self.bind(name, seed_idx, blueprint)
                return
            for layer in history.layers.values():
                knowledge = layer.seeds.knowledge
                if knowledge is None:
                    continue
                for seed_idx, record in layer.seeds.items():
                    for value in record.measured()[0]:
                        knowledge.learn(seed_idx, value, None)

    @property
    def position(self) -> int:
        """How many events this run has written; goes into a checkpoint, for `rewind`."""
        self.flush()  # a checkpoint must not count what a killed process may lose
        return self._written

    def rewind(self, position: int, *, run: str | None = None) -> None:
        """Forget what this run did after ``position``: a run is resumed from an older checkpoint.

        What is done anew gets the same ids, so the store keeps one copy. Seeds must be bound again.

        Args:
            position: What `position` was then.
            run: Its name, if it is not this tracker's; the tracker takes it on.

        Raises:
            StoreError: if the store cannot be read.
        """
        self.flush()
        with self.lock:
            if run is not None and run != self.run:
                self.run, self._writer = run, _writer(self.scope, run)
            self._load(position)

    def state_dict(self) -> dict[str, Any]:
        """All that is known, as JSON data, of a tracker without a store.

        Raises:
            ConfigError: if there is a store; a tracker opened on it knows as much.
        """
        self._require_no_store("state_dict")
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
        self._require_no_store("load_state_dict")
        with self.lock:
            old = self._history
            history = history_from(state, old.begin)
            for name in ("window_size", "decay_factor"):
                if getattr(history, name) != getattr(old, name):
                    raise ConfigError(
                        f"the state has {name} {getattr(history, name)}, this tracker "
                        f"{getattr(old, name)}; make it with the same"
                    )
            history.own = old.own
            self._history = history

    def _require_no_store(self, what: str) -> None:
        if self._journal is not None:
            raise ConfigError(
                f"{what}() is for a tracker without a store; with one, open a tracker on the same "
                "store, or rewind() it to a position"
            )

    def _load(self, position: int | None) -> None:
        if self._journal is None:
            return
        old = self._history
        history = History(old.window_size, old.decay_factor, old.begin, self._writer)
        own, written, cursor = self._op_id(""), 0, ""
        for place, event in self._journal.read(scope=self.scope, kinds=KINDS):
            cursor = place
            if event.op_id.startswith(own):
                number = int(event.op_id.removeprefix(own))
                if position is not None and number >= position:
                    continue
                written = max(written, number + 1)
            fold(history, event)
        self._history, self._written, self._cursor = history, written, cursor

    def _take_outcome(
        self,
        layer_name: str,
        seed_idx: int,
        delta: PerformanceDelta,
        decision: Decision | None,
        kernel_id: str | None,
    ) -> None:
        value = float(reward(delta))
        _check_seed(layer_name, seed_idx)
        with self.lock:
            record, decision_id = self._answered(layer_name, seed_idx, decision)
            if record is None:
                return
            if kernel_id is not None:
                record.kernel_id = kernel_id
            history = self._history
            record.add(
                value,
                delta.accuracy_delta,
                delta.loss_delta,
                window_size=history.window_size,
                decay_factor=history.decay_factor,
            )
            record.time(delta.latency_ms, delta.memory_mb, history.window_size)
            history.teach(record, value, decision_id)
            if self._journal is not None:
                data = self._where(record, decision_id) | _measured(delta)
                data["reward"] = value
                if kernel_id is not None:
                    data["kernel"] = kernel_id
                self._note("outcome", data)

    def _answered(
        self, layer_name: str, seed_idx: int, decision: Decision | None
    ) -> tuple[SeedRecord | None, str]:
        """The record that an outcome goes to and the decision that it answers; or no record."""
        if decision is None:
            record = self._history.layer(layer_name).current(seed_idx)
            decision_id = record.open[-1] if record.open else ""
            record.open = record.open[:-1]
            return record, decision_id
        self._check_decision(layer_name, seed_idx, decision)
        record = self._history.layer(layer_name).under(seed_idx, decision.blueprint)
        if record.close(decision.decision_id):
            return record, decision.decision_id
        logger.info(
            "decision %s has its outcome already, or expired; not counted again",
            decision.decision_id,
        )
        return None, decision.decision_id

    def _check_decision(self, layer_name: str, seed_idx: int, decision: Decision) -> None:
        if (decision.layer_name, decision.seed_idx) != (layer_name, seed_idx):
            raise SelectionError(
                f"decision {decision.decision_id!r} chose seed {decision.seed_idx} of layer "
                f"{decision.layer_name!r}, but the outcome is for seed {seed_idx} of layer "
                f"{layer_name!r}; hand each outcome back with its own decision"
            )
        layer = self._history.layers.get(layer_name)
        number = decision.decision_id.rpartition("/")[2]
        writer = writer_of(decision.decision_id, layer_name)
        known = layer is not None and writer in self._history.writers
        if not known or layer is None or int(number) >= layer.choices:
            raise SelectionError(
                f"decision {decision.decision_id!r} was never made as far as this tracker knows; "
                "use the tracker (or a tracker on the store) that it was made with, after refresh()"
            )

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
        _check_seed(layer_name, seed_idx)
        with self.lock:
            if decision is None:
                record, decision_id = self._history.layer(layer_name).current(seed_idx), ""
            else:
                self._check_decision(layer_name, seed_idx, decision)
                layer = self._history.layer(layer_name)
                record = layer.under(seed_idx, decision.blueprint)
                decision_id = decision.decision_id
            self._apply(kind, self._where(record, decision_id) | facts, stored=stored)
        self.flush()

    def _where(self, record: SeedRecord, decision_id: str) -> dict[str, Any]:
        return {
            "decision": decision_id,
            "layer": record.layer_name,
            "seed": record.seed_idx,
            "blueprint": record.blueprint,
        }

    def _apply(self, kind: str, data: dict[str, Any], *, stored: bool = True) -> None:
        fold(self._history, self._note(kind, data, stored=stored))

    def _note(self, kind: str, data: dict[str, Any], *, stored: bool = True) -> Event:
        event = Event(self._op_id(self._written), kind, self.scope, self.run, data)
        if stored and self._journal is not None:  # else it is folded and forgotten
            self._written += 1
            self._journal.later(event)
        return event

    def _event_of(self, number: int, decision: Decision) -> Event:
        # Before this tracker takes on another name it writes what it has.
        data = decision_data(decision)
        return Event(self._op_id(number), "decision", self.scope, self.run, data)

    def _op_id(self, number: int | str) -> str:
        return f"{self._writer}/tracker/{number}"


def _writer(scope: str, run: str) -> str:
    return "/".join(filter(None, (scope, run))) or "local"


def _measured(delta: PerformanceDelta) -> dict[str, float]:
    measured = {}
    if delta.accuracy_delta is not None:
        measured["accuracy_delta"] = float(delta.accuracy_delta)
    if delta.loss_delta is not None:
        measured["loss_delta"] = float(delta.loss_delta)
    if delta.latency_ms is not None:
        measured["latency_ms"] = float(delta.latency_ms)
    if delta.memory_mb is not None:
        measured["memory_mb"] = float(delta.memory_mb)
    if delta.reward_stderr is not None:
        measured["reward_stderr"] = float(delta.reward_stderr)
    return measured


def _snapshot(record: SeedRecord, decay_factor: float) -> SeedPerformanceMetrics:
    rewards, accuracies, losses = record.measured()
    latencies, memory = record.timed()
    return SeedPerformanceMetrics(
        seed_idx=record.seed_idx,
        layer_name=record.layer_name,
        kernel_id=record.kernel_id,
        accuracy_improvements=accuracies,
        loss_reductions=losses,
        execution_latencies=latencies,
        memory_usage=memory,
        total_activations=record.total_activations,
        successful_grafts=record.successful_grafts,
        failed_attempts=record.failed_attempts,
        last_activation_epoch=record.last_activation_epoch,
        blueprint=record.blueprint,
        rewards=rewards,
        total_outcomes=record.outcomes,
        recent_reward=record.recent,
        decay_factor=decay_factor,
    )


def _journal(
    redis_client: "Redis | AsyncRedis | None", store: MetricsStore | Journal | None
) -> Journal | None:
    if redis_client is not None:
        if store is not None:
            raise ConfigError("give redis_client or store, not both; a history has one place")
        from esper.stores.redis import RedisStore  # noqa: PLC0415 (redis is an extra)

        store = RedisStore(redis_client)
    return store if store is None or isinstance(store, Journal) else Journal(store)


def _check_settings(window_size: int, decay_factor: float) -> None:
    if not isinstance(window_size, int) or window_size < 1:
        raise ConfigError(f"window_size is {window_size!r}; it must be a whole number >= 1")
    if not isinstance(decay_factor, int | float) or not 0 < decay_factor <= 1:
        raise ConfigError(f"decay_factor is {decay_factor!r}; it must be a number > 0 and <= 1")


def _check_seed(layer_name: str, seed_idx: int) -> None:
    named = isinstance(layer_name, str)
    if not named or not isinstance(seed_idx, int) or not 0 <= seed_idx < MOST_SEEDS:
        raise SelectionError(
            f"seed {seed_idx!r} of layer {layer_name!r}: a layer is named by a string, and its "
            f"seeds are numbered from 0 to at most {MOST_SEEDS - 1:,}"
        )
