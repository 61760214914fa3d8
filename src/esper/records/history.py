"""What events amount to: a compact record per seed and layer, kept up to date by each event.

`fold` is the only way from an event to the records; reading a whole log through it gives the same
records as having been there.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from esper.contracts.errors import SelectionError, StoreError
from esper.contracts.events import SCHEMA, Event
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, decision_from, require_seed
from esper.records.layer import LayerKnowledge, LayerRecord
from esper.records.seed import SeedRecord

logger = logging.getLogger(__name__)

LATE = 1000
"""Decisions that nobody waits for any more and that are kept all the same, for outcomes that come
even later."""

BeginKnowledge = Callable[[str], LayerKnowledge | None]
"""Takes the name of a layer; gives nothing for a strategy that reads the records alone."""


@final
class History:
    """All layers of one scope.

    Args:
        window_size: Outcomes of a seed that are remembered, >= 1.
        decay_factor: Weight of an outcome relative to the one after it, in (0, 1].
        begin: Makes the strategy's knowledge of a new layer, given its name; ``None`` for a
            strategy that reads the records alone.
        own: Whose decisions do not expire, as `writer_of` names them.

    Attributes:
        layers: Name to record.
        writers: Who made the decisions in it.
        open: Decisions whose outcome has not come, by id; kept only for a strategy that learns.
        late: Ids of those that expired, oldest first; of as many as are kept.
    """

    def __init__(
        self,
        window_size: int,
        decay_factor: float,
        begin: BeginKnowledge | None = None,
        own: str = "",
    ) -> None:
        self.own = own
        self.window_size = window_size
        self.decay_factor = decay_factor
        self.begin = begin
        self.layers: dict[str, LayerRecord] = {}
        self.writers: set[str] = set()
        self.open: dict[str, Decision] = {}
        self.late: deque[str] = deque()
        self._first: LayerKnowledge | None = None

    def layer(self, name: str) -> LayerRecord:
        """The record of a layer, begun if there is none."""
        record = self.layers.get(name)
        if record is None:
            record = self.layers[name] = LayerRecord(name, self._begun(name))
        return record

    def begin_anew(self, begin: BeginKnowledge) -> None:
        """Let another strategy begin to learn every layer; it knows nothing yet."""
        self.begin, self._first = begin, None
        for name, layer in self.layers.items():
            layer.seeds.knowledge = self._begun(name)

    def choose(self, layer: LayerRecord, record: SeedRecord, decision_id: str, epoch: int) -> None:
        """Count a choice of a seed; decisions that expired long ago are forgotten."""
        expired, dropped = layer.count_choice(), record.choose(decision_id, epoch)
        if self.open and (expired or dropped):
            self.late += [one for one in (*expired, dropped) if one in self.open]
            while len(self.late) > LATE:
                self.open.pop(self.late.popleft(), None)

    def answered(
        self, layer_name: str, seed_idx: int, decision: Decision | None
    ) -> tuple[SeedRecord | None, str]:
        """The record that an outcome goes to and the decision that it answers.

        Args:
            layer_name: The layer.
            seed_idx: The seed.
            decision: The decision; ``None``: the latest open one of the seed, if there is one.

        Returns:
            No record if the decision has its outcome already, or expired.

        Raises:
            SelectionError: as `located`.
        """
        record = self.located(layer_name, seed_idx, decision)
        if decision is None:
            return record, record.answer()
        if record.close(decision.decision_id):
            return record, decision.decision_id
        logger.info("decision %s has its outcome already, or expired", decision.decision_id)
        return None, decision.decision_id

    def located(self, layer_name: str, seed_idx: int, decision: Decision | None) -> SeedRecord:
        """The record of a seed under the blueprint of a decision, or of now.

        Raises:
            SelectionError: if there can be no such seed, or the decision was never made in this
                history or concerns another seed.
        """
        layer = self.layers.get(layer_name)
        if decision is None:
            require_seed(layer_name, seed_idx)
            return (layer or self.layer(layer_name)).current(seed_idx)
        if (decision.layer_name, decision.seed_idx) != (layer_name, seed_idx):
            raise SelectionError(
                f"decision {decision.decision_id!r} chose seed {decision.seed_idx} of layer "
                f"{decision.layer_name!r}, but the outcome is for seed {seed_idx!r} of layer "
                f"{layer_name!r}; hand each outcome back with its own decision"
            )
        number = decision.decision_id.rpartition("/")[2]
        known = writer_of(decision.decision_id, layer_name) in self.writers
        if not known or layer is None or int(number) >= layer.choices:
            raise SelectionError(
                f"decision {decision.decision_id!r} was never made as far as this tracker knows; "
                "use the tracker (or a tracker on the store) that it was made with, after refresh()"
            )
        return layer.under(seed_idx, decision.blueprint)

    def learn(
        self, record: SeedRecord, decision_id: str, reward: float, delta: PerformanceDelta
    ) -> None:
        """Take in an outcome: the window, the clock's measurements, the strategy's knowledge."""
        record.add(
            reward,
            delta.accuracy_delta,
            delta.loss_delta,
            window_size=self.window_size,
            decay_factor=self.decay_factor,
        )
        record.time(delta.latency_ms, delta.memory_mb, self.window_size)
        self.teach(record, reward, decision_id)

    def teach_windows(self) -> None:
        """Let the strategy learn what the windows still hold, seed by seed."""
        for layer in self.layers.values():
            knowledge = layer.seeds.knowledge
            if knowledge is None:
                continue
            for seed_idx, record in layer.seeds.items():
                for reward in record.measured()[0]:
                    knowledge.learn(seed_idx, reward, None)

    def teach(self, record: SeedRecord, reward: float, decision_id: str) -> None:
        """Let the strategy learn from one outcome, if it is one that learns."""
        metrics = self.layers[record.layer_name].seeds
        if metrics.knowledge is not None:
            decision = self.open.pop(decision_id, None)
            if metrics.get(record.seed_idx) is record:
                metrics.knowledge.learn(record.seed_idx, reward, decision)

    def records(self) -> Iterator[SeedRecord]:
        """Every seed under its blueprint of now."""
        for layer in self.layers.values():
            yield from layer.seeds.values()

    def _begun(self, name: str) -> LayerKnowledge | None:
        knowledge = None if self.begin is None else self.begin(name)
        if knowledge is not None:
            if self._first is None:
                self._first = knowledge
            else:
                knowledge.join(self._first)
        return knowledge


def fold(history: History, event: Event) -> None:
    """Bring ``history`` up to date with one event; kinds that do not concern it change nothing.

    Touches nothing but ``history`` and depends on nothing but its arguments.

    Raises:
        StoreError: if the event lacks what its kind must have.
    """
    take_in = _FOLDS.get(event.kind)
    if take_in is None or (event.kind == "graft" and event.schema == 0):  # then there is a verdict
        return
    if event.schema > SCHEMA:
        raise StoreError(
            f"event {event.op_id!r} has schema {event.schema}, this version reads up to {SCHEMA}; "
            "upgrade with: pip install -U esper-morph"
        )
    try:
        take_in(history, event.data)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"event {event.op_id!r} of kind {event.kind!r} cannot be read ({error!r}); it was "
            "written by another version of Esper or damaged"
        ) from error


def _decision(history: History, data: Mapping[str, Any]) -> None:
    decision_id, layer_name = data["decision"], data["layer"]
    layer = history.layer(layer_name)
    layer.follow(data["seed"], data["blueprint"])
    record = layer.under(data["seed"], data["blueprint"])
    history.choose(layer, record, decision_id, data["epoch"])
    if history.begin is not None and decision_id:
        history.open[decision_id] = decision_from(data)
    if decision_id:
        writer = writer_of(decision_id, layer_name)
        history.writers.add(writer)
        if writer != history.own:
            layer.decided_elsewhere(record, decision_id)


def _outcome(history: History, data: Mapping[str, Any]) -> None:
    record = _record(history, data)
    record.close(data["decision"])
    if data.get("kernel") is not None:
        record.kernel_id = data["kernel"]
    delta = PerformanceDelta(
        data.get("accuracy_delta"),
        data.get("loss_delta"),
        data.get("latency_ms"),
        data.get("memory_mb"),
    )
    history.learn(record, data["decision"], data["reward"], delta)


def _failure(history: History, data: Mapping[str, Any]) -> None:
    record = _record(history, data)
    record.close(data["decision"])
    record.failed_attempts += 1
    history.learn(record, data["decision"], 0.0, PerformanceDelta())


def _withdrawal(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).close(data["decision"])
    history.open.pop(data["decision"], None)


def _end(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).successful_grafts += bool(data["kept"])


def _timing(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).time(data.get("latency_ms"), data.get("memory_mb"), history.window_size)


def _record(history: History, data: Mapping[str, Any]) -> SeedRecord:
    return history.layer(data["layer"]).under(data["seed"], data["blueprint"])


def writer_of(decision_id: str, layer_name: str) -> str:
    """Who made a decision, as its id says: ``writer/layer/number``; empty if it is no such id.

    Example:
        >>> writer_of("run-7/fc1/3", "fc1")
        'run-7'
    """
    before, _, number = decision_id.rpartition("/")
    end = f"/{layer_name}"
    return before.removesuffix(end) if number.isdecimal() and before.endswith(end) else ""


_FOLDS: dict[str, Callable[[History, Mapping[str, Any]], None]] = {
    "decision": _decision,
    "outcome": _outcome,
    "failure": _failure,
    "withdrawal": _withdrawal,
    "graft": _end,
    "verdict": _end,  # of schema 0
    "timing": _timing,
}

KINDS = tuple(_FOLDS)
"""The kinds of event that make up a history."""
