"""What events amount to: a compact record per seed and layer, kept up to date by each event.

`fold` is the only way from an event to the records; reading a whole log through it gives the same
records as having been there.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.contracts.selection import Decision, decision_from
from esper.records.layer import LayerKnowledge, LayerRecord
from esper.records.seed import SeedRecord

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
    if take_in is None:
        return
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
    record.add(
        data["reward"],
        data.get("accuracy_delta"),
        data.get("loss_delta"),
        window_size=history.window_size,
        decay_factor=history.decay_factor,
    )
    record.time(data.get("latency_ms"), data.get("memory_mb"), history.window_size)
    history.teach(record, data["reward"], data["decision"])


def _failure(history: History, data: Mapping[str, Any]) -> None:
    record = _record(history, data)
    record.close(data["decision"])
    record.failed_attempts += 1
    record.add(0.0, None, None, window_size=history.window_size, decay_factor=history.decay_factor)
    history.teach(record, 0.0, data["decision"])


def _withdrawal(history: History, data: Mapping[str, Any]) -> None:
    _record(history, data).close(data["decision"])
    history.open.pop(data["decision"], None)


def _verdict(history: History, data: Mapping[str, Any]) -> None:
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
    "verdict": _verdict,
    "timing": _timing,
}

KINDS = tuple(_FOLDS)
"""The kinds of event that make up a history."""
