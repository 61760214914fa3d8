"""What events amount to: one compact record per seed, kept up to date by each event.

`fold` is the only way from an event to the records; reading a whole log through it gives the same
records as having been there. Records keep sums, so that choosing never walks over a window; the
windows themselves are rings of doubles, about one kilobyte per seed when full.
"""

from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import fsum, isnan, nan
from typing import Any, final

from typing_extensions import override

from esper.contracts.errors import StoreError
from esper.contracts.events import Event
from esper.contracts.selection import Decision, decision_from
from esper.services.tamiyo.standing import Standing

OPEN = 32
"""Decisions without an outcome that are remembered per seed; older ones count as expired."""

EXPIRY = 64
"""Later choices in its layer after which nobody waits any more for a decision of another run: that
run may have died. Its outcome counts all the same if it comes."""

LATE = 1000
"""Decisions that nobody waits for any more and that are kept all the same, for outcomes that come
even later."""

_CANCELLED = 1e-8
"""When a sum of squares falls to this share of what it was, rounding rules; it is taken anew."""


@final
class Ring:
    """The last ``size`` rows of ``width`` doubles each; NaN is unmeasured."""

    __slots__ = ("_cells", "_oldest", "size", "width")

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self.width = width
        self._cells = array("d")
        self._oldest = 0

    def push(self, *row: float | None) -> float | None:
        """Add a row; returns the first value of the row that fell out, if one did."""
        cells = self._cells
        if len(cells) < self.size * self.width:
            cells.extend([nan if value is None else value for value in row])
            return None
        at = self._oldest
        fallen = cells[at]
        for value in row:
            cells[at] = nan if value is None else value
            at += 1
        self._oldest = at % len(cells)
        return fallen

    def column(self, index: int) -> list[float]:
        """The measured values of one column, oldest first."""
        cells, start = self._cells, self._oldest
        values = cells[start + index :: self.width] + cells[index : start : self.width]
        return [value for value in values if not isnan(value)]


@final
class SeedRecord:
    """One seed of one layer under one blueprint: what `SeedPerformanceMetrics` is made from.

    Attributes:
        seed_idx: Slot of the layer.
        layer_name: Dotted name of the layer.
        blueprint: What was bound to the seed; empty if nothing was.
        kernel_id: The kernel that was measured last.
        count: Outcomes inside the window.
        mean: Mean reward of the window.
        m2: Sum of squared deviations from the mean over the window.
        recent: Exponentially weighted mean of all rewards.
        outcomes: Outcomes ever, failures included.
        total_activations: Choices ever.
        successful_grafts: Kernels that were kept.
        failed_attempts: Grafts that failed with an error.
        last_activation_epoch: Epoch of the latest choice; -1 before the first.
        open: Ids of decisions whose outcome has not come, oldest first.
    """

    __slots__ = (
        "_measured",
        "_row",
        "_standing",
        "_timed",
        "_weight",
        "blueprint",
        "count",
        "failed_attempts",
        "kernel_id",
        "last_activation_epoch",
        "layer_name",
        "m2",
        "mean",
        "open",
        "outcomes",
        "recent",
        "seed_idx",
        "successful_grafts",
        "total_activations",
    )

    def __init__(self, layer_name: str, seed_idx: int, blueprint: str) -> None:
        self.seed_idx = seed_idx
        self.layer_name = layer_name
        self.blueprint = blueprint
        self.kernel_id: str | None = None
        self.count = 0
        self.mean = 0.0
        self.m2 = 0.0
        self.recent = 0.0
        self.outcomes = 0
        self.total_activations = 0
        self.successful_grafts = 0
        self.failed_attempts = 0
        self.last_activation_epoch = -1
        self.open: tuple[str, ...] = ()
        self._weight = 0.0
        self._measured: Ring | None = None
        self._timed: Ring | None = None
        self._standing: Standing | None = None
        self._row = 0

    @property
    def pending(self) -> int:
        """Choices whose outcome has not come yet."""
        return len(self.open)

    def choose(self, decision_id: str, epoch: int) -> str:
        """Note a choice; an id that is not empty waits for its outcome.

        Returns:
            The decision that expires thereby; empty if none does.
        """
        self.total_activations += 1
        self.last_activation_epoch = max(self.last_activation_epoch, epoch)
        if not decision_id:
            return ""
        waiting = self.open
        self.open = (*waiting[-OPEN + 1 :], decision_id)
        return waiting[0] if len(waiting) >= OPEN else ""

    def close(self, decision_id: str) -> bool:
        """No longer wait for this decision; whether it was waited for."""
        if decision_id not in self.open:
            return False
        self.open = tuple([waiting for waiting in self.open if waiting != decision_id])
        return True

    def add(
        self,
        reward: float,
        accuracy: float | None,
        loss: float | None,
        *,
        window_size: int,
        decay_factor: float,
    ) -> None:
        """Take in one outcome, in constant time."""
        if self._measured is None:
            self._measured = Ring(window_size, 3)
        self.outcomes += 1
        self._weight = self._weight * decay_factor + 1.0
        self.recent += (reward - self.recent) / self._weight
        fallen = self._measured.push(reward, accuracy, loss)
        if fallen is None:
            self.count += 1
            self.mean, self.m2 = grow(self.mean, self.m2, self.count, reward)
        elif fallen != reward:
            slid = slide(self.mean, self.m2, self.count, fallen, reward)
            if slid is not None and self.outcomes % window_size:
                self.mean, self.m2 = slid
            else:
                self.mean, self.m2 = mean_and_m2(self.measured()[0])
        if self._standing is not None:
            self._standing.put(self._row, self.count, self.mean, self.m2)

    def stand(self, standing: Standing | None, row: int) -> None:
        """From now on keep a row of a layer's columns up to date, or none."""
        self._standing, self._row = standing, row

    def time(self, latency_ms: float | None, memory_mb: float | None, window_size: int) -> None:
        """Take in what a clock and an allocator said."""
        if latency_ms is None and memory_mb is None:
            return
        if self._timed is None:
            self._timed = Ring(window_size, 2)
        self._timed.push(latency_ms, memory_mb)

    def measured(self) -> tuple[list[float], list[float], list[float]]:
        """Windows of rewards, accuracy gains and loss reductions, oldest first."""
        ring = self._measured
        return (ring.column(0), ring.column(1), ring.column(2)) if ring else ([], [], [])

    def timed(self) -> tuple[list[float], list[float]]:
        """Windows of latencies in milliseconds and memory in megabytes, oldest first."""
        ring = self._timed
        return (ring.column(0), ring.column(1)) if ring else ([], [])


def grow(mean: float, m2: float, count: int, reward: float) -> tuple[float, float]:
    """Mean and sum of squared deviations of a window that a reward was added to.

    Args:
        mean: Mean of the window before.
        m2: Sum of squared deviations from it.
        count: Size of the window now.
        reward: The one that came in.

    Example:
        >>> grow(2.0, 2.0, 3, 5.0)
        (3.0, 8.0)
    """
    before = reward - mean
    mean += before / count
    return mean, m2 + before * (reward - mean)


def slide(
    mean: float, m2: float, count: int, fallen: float, reward: float
) -> tuple[float, float] | None:
    """Mean and sum of squared deviations of a full window when its oldest reward makes way.

    Args:
        mean: Mean of the window so far.
        m2: Sum of squared deviations from it.
        count: Size of the window.
        fallen: The reward that falls out.
        reward: The one that comes in; another.

    Returns:
        Both, or ``None`` where rounding would rule: take them anew by `mean_and_m2`.

    Example:
        >>> slide(2.0, 2.0, 3, 1.0, 4.0), mean_and_m2([2.0, 3.0, 4.0])
        ((3.0, 2.0), (3.0, 2.0))
    """
    change = reward - fallen
    now = mean + change / count
    found = m2 + change * (reward - now + (fallen - mean))
    return (now, found) if found > _CANCELLED * (m2 + change * change) else None


def mean_and_m2(rewards: list[float]) -> tuple[float, float]:
    """Mean, and sum of squared deviations from it; at least one reward."""
    mean = fsum(rewards) / len(rewards)
    return mean, fsum([(value - mean) ** 2 for value in rewards])


class LayerKnowledge(ABC):
    """What a strategy makes of one layer's outcomes, where sums over a window are not enough.

    A strategy that needs more than the records (discounted sums, change detection, a regression)
    keeps it here and not in itself, so that it is folded from the log like everything else: late
    outcomes, a second run, and a resumed one need nothing of their own.
    """

    __slots__ = ()

    @abstractmethod
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        """Take in one outcome.

        Args:
            seed_idx: The seed that was measured.
            reward: What it earned, in the reward's own units.
            decision: The choice that this is the outcome of, where it is known.
        """

    @abstractmethod
    def forget(self, seed_idx: int) -> None:
        """The seed stands for another blueprint from now on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, what is shared included, as JSON data."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, bit for bit.

        Raises:
            ConfigError: if the state is damaged or belongs to another strategy.
        """

    def join(self, other: "LayerKnowledge") -> None:  # noqa: B027 (most share nothing)
        """Share what layers have in common with one of the same history that was begun earlier.

        Called at most once, before anything is learnt. By default layers have nothing in common.

        Args:
            other: What the same strategy makes of the history's first layer.
        """


@final
class LayerMetrics(dict[int, SeedRecord]):
    """The records of a layer's seeds, and what its strategy has made of their outcomes.

    Attributes:
        knowledge: ``None`` for a strategy that reads the records alone.
        standing: What a choice reads of the records, as columns.
    """

    __slots__ = ("knowledge", "standing")

    def __init__(self, knowledge: LayerKnowledge | None) -> None:
        super().__init__()
        self.knowledge = knowledge
        self.standing = Standing()

    @override
    def __setitem__(self, seed_idx: int, record: SeedRecord) -> None:
        if record._standing is self.standing:  # a copy of all is being put together
            super().__setitem__(seed_idx, record)
            return
        replaced = self.get(seed_idx)
        if replaced is not None:
            replaced.stand(None, 0)
        super().__setitem__(seed_idx, record)
        # In the order of seeds, not of events: sums over them are then equal to the last bit in a
        # run that is resumed.
        for seed in [seed for seed in self if seed > seed_idx]:
            super().__setitem__(seed, self.pop(seed))
        for row, one in enumerate(self.values()):
            one.stand(self.standing, row)
        self.standing.replace(self, self.values())


@final
class LayerRecord:
    """The seeds of one layer, each under the blueprint that is bound to it now.

    Attributes:
        name: Dotted name of the layer.
        seeds: Seed to its record; strategies read this very dictionary.
        choices: Choices ever made in the layer.
    """

    __slots__ = ("_aside", "_bound", "_elsewhere", "choices", "name", "seeds")

    def __init__(self, name: str, knowledge: LayerKnowledge | None = None) -> None:
        self.name = name
        self.seeds = LayerMetrics(knowledge)
        self.choices = 0
        self._aside: dict[tuple[int, str], SeedRecord] | None = None
        self._elsewhere: deque[tuple[int, SeedRecord, str]] | None = None
        self._bound: set[int] | None = None

    def count_choice(self) -> Sequence[str]:
        """One more choice in the layer; what other runs decided long ago expires.

        Returns:
            Decisions that expired.
        """
        self.choices += 1
        if not self._elsewhere:
            return ()
        expired = []
        while self._elsewhere and self._elsewhere[0][0] <= self.choices - EXPIRY:
            _, record, decision_id = self._elsewhere.popleft()
            if record.close(decision_id):
                expired.append(decision_id)
        return expired

    def decided_elsewhere(self, record: SeedRecord, decision_id: str) -> None:
        """Another run waits for an outcome; stop counting on it once it is too old."""
        if self._elsewhere is None:
            self._elsewhere = deque()
        self._elsewhere.append((self.choices, record, decision_id))

    def current(self, seed_idx: int) -> SeedRecord:
        """The record of the seed under its blueprint of now."""
        record = self.seeds.get(seed_idx)
        if record is None:
            record = self.seeds[seed_idx] = SeedRecord(self.name, seed_idx, "")
        return record

    def under(self, seed_idx: int, blueprint: str) -> SeedRecord:
        """The record of the seed under ``blueprint``, whatever is bound to it now."""
        record = self.seeds.get(seed_idx)
        if record is not None and record.blueprint == blueprint:
            return record
        if record is None and not (self._bound and seed_idx in self._bound):
            record = self.seeds[seed_idx] = SeedRecord(self.name, seed_idx, blueprint)
            return record
        aside = self._aside = {} if self._aside is None else self._aside
        record = aside.get((seed_idx, blueprint))
        if record is None:
            record = aside[seed_idx, blueprint] = SeedRecord(self.name, seed_idx, blueprint)
        return record

    def bind(self, seed_idx: int, blueprint: str) -> None:
        """From now on the seed stands for ``blueprint``, whatever others do in their runs."""
        bound = self._bound = set() if self._bound is None else self._bound
        bound.add(seed_idx)
        self._turn_to(seed_idx, blueprint)

    def bindings(self) -> dict[int, str]:
        """Seeds that `bind` was called for, and what they stand for."""
        return {seed_idx: self.seeds[seed_idx].blueprint for seed_idx in sorted(self._bound or ())}

    def follow(self, seed_idx: int, blueprint: str) -> None:
        """Let the seed stand for ``blueprint`` unless `bind` said what it stands for."""
        if not (self._bound and seed_idx in self._bound):
            self._turn_to(seed_idx, blueprint)

    def _turn_to(self, seed_idx: int, blueprint: str) -> None:
        current = self.seeds.get(seed_idx)
        if current is not None and current.blueprint == blueprint:
            return
        aside = self._aside = {} if self._aside is None else self._aside
        if current is not None:
            aside[seed_idx, current.blueprint] = current
            if self.seeds.knowledge is not None:
                self.seeds.knowledge.forget(seed_idx)
        record = aside.pop((seed_idx, blueprint), None)
        self.seeds[seed_idx] = record or SeedRecord(self.name, seed_idx, blueprint)


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
