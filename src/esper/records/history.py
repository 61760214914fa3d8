"""History of one scope: a compact record per seed and layer, and the open decisions."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import final

from esper.contracts.audition import Contrast
from esper.contracts.errors import ConfigError, SelectionError
from esper.contracts.events import joined
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, require_seed
from esper.records.layer import LayerKnowledge, LayerRecord
from esper.records.seed import SeedRecord

logger = logging.getLogger(__name__)

LATE = 1000
"""Expired decisions that are kept, for outcomes that come even later."""

TOLD = 10_000
"""Outcomes of other writers' decisions that are remembered, so that none counts twice."""

BeginKnowledge = Callable[[str], LayerKnowledge | None]
"""Layer name to empty knowledge; ``None`` for a strategy that reads the records alone."""


@final
class History:
    """Records of all layers of one scope.

    Args:
        window_size: Outcomes in a seed's window, >= 1.
        decay_factor: Weight of an outcome relative to the one after it, in (0, 1].
        begin: Makes the strategy's knowledge of a new layer; ``None`` for a strategy that reads the
            records alone.
        own: Writer whose decisions do not expire, as `writer_of` names it.

    Raises:
        ConfigError: if a setting is out of range.

    Attributes:
        layers: Name to record.
        writers: Writers of the decisions in it.
        open: Decisions whose outcome has not come, by id; kept only for a strategy that learns.
        late: Ids of the expired ones among them, oldest first; at most `LATE`.
        told: Ids of other writers' decisions whose outcome was told here; the latest `TOLD`.
        quarantined: Id of each stored event that was passed over, and why.
    """

    def __init__(
        self,
        window_size: int,
        decay_factor: float,
        begin: BeginKnowledge | None = None,
        own: str = "",
    ) -> None:
        if not isinstance(window_size, int) or window_size < 1:
            raise ConfigError(f"window_size is {window_size!r}; it must be a whole number >= 1")
        if not isinstance(decay_factor, int | float) or not 0 < decay_factor <= 1:
            raise ConfigError(f"decay_factor is {decay_factor!r}; it must be a number > 0 and <= 1")
        if begin is not None and not callable(begin):
            raise ConfigError(
                f"begin is {begin!r}; give what makes a layer's knowledge, as strategy.begin"
            )
        self.own = own
        self.window_size = window_size
        self.decay_factor = decay_factor
        self.begin = begin
        self.layers: dict[str, LayerRecord] = {}
        self.writers: set[str] = set()
        self.open: dict[str, Decision] = {}
        self.late: deque[str] = deque()
        self.told: dict[str, None] = {}
        self.quarantined: dict[str, str] = {}
        self._first: LayerKnowledge | None = None

    def layer(self, name: str) -> LayerRecord:
        """Record of a layer, made if there is none."""
        record = self.layers.get(name)
        if record is None:
            record = self.layers[name] = LayerRecord(name, self._begun(name))
        return record

    def begin_anew(self, begin: BeginKnowledge) -> None:
        """Replace the knowledge of every layer by another strategy's, still empty."""
        self.begin, self._first = begin, None
        for name, layer in self.layers.items():
            layer.seeds.knowledge = self._begun(name)

    def choose(self, layer: LayerRecord, record: SeedRecord, decision_id: str, epoch: int) -> None:
        """Count a choice of a seed; the oldest expired decisions are dropped."""
        expired, dropped = layer.count_choice(), record.choose(decision_id, epoch)
        if self.open and (expired or dropped):
            self.late += [one for one in (*expired, dropped) if one in self.open]
            while len(self.late) > LATE:
                self.open.pop(self.late.popleft(), None)

    def answered(
        self, layer_name: str, seed_idx: int, decision: Decision | None
    ) -> tuple[SeedRecord | None, str]:
        """Record that an outcome belongs to, and id of the decision that it answers.

        Without a decision it is the latest open one of the seed, if there is one. No record if it
        has its outcome already, or expired. Raises as `located`.
        """
        record = self.located(layer_name, seed_idx, decision)
        decision_id = record.answer() if decision is None else decision.decision_id
        if decision is not None and not record.close(decision_id):
            logger.info("decision %s has its outcome already, or expired", decision_id)
            return None, decision_id
        if decision_id and writer_of(decision_id, layer_name) != self.own:
            self.told[decision_id] = None
            if len(self.told) > TOLD:
                del self.told[next(iter(self.told))]
        return record, decision_id

    def quarantine(self, op_id: str, why: str) -> None:
        """Note that a stored event is passed over; the first one is logged."""
        if not self.quarantined:
            logger.warning("%s; it is passed over. To see all: esper store check", why)
        if len(self.quarantined) < LATE:
            self.quarantined[op_id] = why

    def located(self, layer_name: str, seed_idx: int, decision: Decision | None) -> SeedRecord:
        """Record of a seed under the blueprint of a decision, or its current one.

        Raises:
            SelectionError: if the seed's index is invalid, or the decision was never made in this
                history or concerns another seed.
        """
        layer = self.layers.get(layer_name)
        if decision is None:
            require_seed(layer_name, seed_idx)
            return (layer or self.layer(layer_name)).current(seed_idx)
        if not isinstance(decision, Decision):
            raise SelectionError(
                f"decision is {decision!r}; hand the Decision back that decide() gave, not its id"
            )
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
        """Add an outcome to the windows and to the strategy's knowledge."""
        record.add(
            reward,
            delta.accuracy_delta,
            delta.loss_delta,
            window_size=self.window_size,
            decay_factor=self.decay_factor,
        )
        record.time(delta.latency_ms, delta.memory_mb, self.window_size)
        self.teach(record, reward, decision_id, delta.reward_stderr or 0.0)

    def teach_windows(self) -> None:
        """Add the rewards in all windows to the strategy's knowledge, seed by seed."""
        for layer in self.layers.values():
            knowledge = layer.seeds.knowledge
            if knowledge is None:
                continue
            for seed_idx, record in layer.seeds.items():
                for reward in record.measured()[0]:
                    knowledge.learn(seed_idx, reward, None)

    def teach(
        self, record: SeedRecord, reward: float, decision_id: str, stderr: float = 0.0
    ) -> None:
        """Add one outcome, and its standard error, to the strategy's knowledge, if it has any."""
        metrics = self.layers[record.layer_name].seeds
        if metrics.knowledge is not None:
            decision = self.open.pop(decision_id, None)
            if metrics.get(record.seed_idx) is record:
                metrics.knowledge.learn_measured(record.seed_idx, reward, stderr, decision)

    def teach_audition(
        self, record: SeedRecord, contrast: Contrast, decision: Decision | None
    ) -> None:
        """Add what a seed earned in an audition to the strategy's knowledge, if it has any."""
        metrics = self.layers[record.layer_name].seeds
        current = metrics.get(record.seed_idx) is record
        if metrics.knowledge is not None and decision is not None and current:
            metrics.knowledge.learn_audition(record.seed_idx, contrast, decision)

    def records(self) -> Iterator[SeedRecord]:
        """Record of every seed under its current blueprint."""
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


def writer_of(decision_id: str, layer_name: str) -> str:
    """Writer in a decision's id ``writer/layer/number``; empty if it is no such id.

    Example:
        >>> writer_of("run-7/fc1/3", "fc1")
        'run-7'
    """
    before, _, number = decision_id.rpartition("/")
    end = f"/{joined(layer_name)}"
    return before.removesuffix(end) if number.isdecimal() and before.endswith(end) else ""
