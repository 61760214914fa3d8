"""Record of one layer: its seeds' records, and the strategy's knowledge of their outcomes."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, final

from typing_extensions import override

from esper.contracts.audition import Contrast
from esper.contracts.selection import Decision, SelectionContext
from esper.records.layer_sums import LayerSums
from esper.records.seed import SeedRecord

EXPIRY = 64
"""Later choices in its layer after which a decision of another run expires, since that run may have
died. Its outcome counts all the same if it comes."""


class LayerKnowledge(ABC):
    """Knowledge of one layer's outcomes, for a strategy that needs more than sums over a window.

    Discounted sums, change detection or a regression are kept here and not in the strategy, so that
    they are folded from the log like the records: late outcomes, a second run and a resumed one are
    no special cases.
    """

    __slots__ = ()

    @abstractmethod
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        """Learn one outcome.

        Args:
            seed_idx: The seed that was measured.
            reward: Its reward, in the reward's own units.
            decision: The choice that led to it, where it is known.
        """

    def learn_measured(
        self, seed_idx: int, reward: float, stderr: float, decision: Decision | None
    ) -> None:
        """Learn one outcome whose standard error is known; by default, without it."""
        del stderr
        self.learn(seed_idx, reward, decision)

    def learn_audition(self, seed_idx: int, contrast: Contrast, decision: Decision) -> None:  # noqa: B027 (most learn outcomes alone)
        """Learn what a seed earned in an audition; by default, nothing.

        The seed that won goes on, and its outcome comes in the end as that of any other.
        """

    def learn_unlogged(
        self, seed_idx: int, reward: float, blueprint: str, context: SelectionContext
    ) -> None:
        """Learn one outcome of metrics without a log, as if it had been earned in ``context``."""
        del blueprint, context
        self.learn(seed_idx, reward, None)

    @abstractmethod
    def forget(self, seed_idx: int) -> None:
        """Forget a seed that is bound to another blueprint from now on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Complete state, shared parts included, as JSON data."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, bit for bit, shared parts included.

        Raises:
            ConfigError: if the state is damaged or belongs to another strategy.
        """

    def join(self, other: "LayerKnowledge") -> None:  # noqa: B027 (most share nothing)
        """Share state with the knowledge of the history's first layer; by default, none.

        Called at most once, before anything is learnt.
        """


@final
class LayerMetrics(dict[int, SeedRecord]):
    """Records of a layer's seeds by index, and the strategy's knowledge.

    Attributes:
        knowledge: ``None`` for a strategy that reads the records alone.
        sums: Sums over the records, kept up to date by each outcome.
    """

    __slots__ = ("knowledge", "sums")

    def __init__(self, knowledge: LayerKnowledge | None) -> None:
        super().__init__()
        self.knowledge = knowledge
        self.sums = LayerSums()

    @override
    def __setitem__(self, seed_idx: int, record: SeedRecord) -> None:
        if record._sums is self.sums:  # copying or unpickling
            super().__setitem__(seed_idx, record)
            return
        replaced = self.get(seed_idx)
        if replaced is not None:
            replaced.keep_row(None, 0)
        super().__setitem__(seed_idx, record)
        # In the order of seeds, not of events: sums over them are then equal to the last bit in a
        # run that is resumed.
        for seed in [seed for seed in self if seed > seed_idx]:
            super().__setitem__(seed, self.pop(seed))
        for row, one in enumerate(self.values()):
            one.keep_row(self.sums, row)
        self.sums.replace(self, self.values())


@final
class LayerRecord:
    """Seeds of one layer, each under its current blueprint.

    Attributes:
        name: Dotted name of the layer.
        seeds: Seed to its record; the dictionary that strategies read.
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
        """Count a choice in the layer and return other runs' decisions that expire thereby."""
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
        """Note another run's decision, which expires after `EXPIRY` more choices."""
        if self._elsewhere is None:
            self._elsewhere = deque()
        self._elsewhere.append((self.choices, record, decision_id))

    def current(self, seed_idx: int) -> SeedRecord:
        """Record of the seed under its current blueprint, made if there is none."""
        record = self.seeds.get(seed_idx)
        if record is None:
            record = self.seeds[seed_idx] = SeedRecord(self.name, seed_idx, "")
        return record

    def under(self, seed_idx: int, blueprint: str) -> SeedRecord:
        """Record of the seed under ``blueprint``, current or not, made if there is none."""
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
        """Bind the seed to ``blueprint``, whatever decisions of other runs say."""
        bound = self._bound = set() if self._bound is None else self._bound
        bound.add(seed_idx)
        self._turn_to(seed_idx, blueprint)

    def bindings(self) -> dict[int, str]:
        """Seeds that `bind` was called for, and their blueprints."""
        return {seed_idx: self.seeds[seed_idx].blueprint for seed_idx in sorted(self._bound or ())}

    def follow(self, seed_idx: int, blueprint: str) -> None:
        """Make ``blueprint`` the seed's current one, unless it was bound by `bind`."""
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
