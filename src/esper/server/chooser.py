"""Chooser: the selector of one scope of a project, for those who ask over HTTP.

What is answered is stored, its reservation too, so that two services before one store choose no
seed twice. A reservation ends with its outcome, its release, or by itself; an outcome counts once,
however late it comes, also after a restart of the service.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from hashlib import blake2b
from secrets import token_hex
from typing import Any, final

from esper.contracts.errors import NoViableSeedError, SelectionError, StoreError
from esper.contracts.events import Event, joined, parted
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import Decision, SelectionContext, decision_from
from esper.services.tamiyo.assignment import knowledge_of
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores import MetricsStore
from esper.strategies import STRATEGIES

_PATIENCE_S = 5.0
"""Longest wait for the store before a request is refused."""

_REFRESH_S = 1.0
"""Least time between two looks at what other writers stored."""

_KEPT = 10_000
"""Decisions that are kept at hand."""


@final
class Chooser:
    """Choices of one scope. Safe to use from several threads.

    What it draws depends on the scope's name, the layer's, and the number of the choice alone.

    Args:
        store: Where decisions and outcomes go; it is closed with the chooser.
        scope: The scope.
        strategy: Name of the strategy.
        clock: Monotonic seconds, for tests.

    Attributes:
        tracker: What is known of the scope.
        selector: Chooses from it.
        clock: As given.

    Raises:
        ConfigError: if there is no such strategy.
        StoreError: if the store cannot be read.
    """

    def __init__(
        self,
        store: MetricsStore,
        scope: str,
        strategy: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        chooses, run = STRATEGIES.create(strategy), f"service-{token_hex(6)}"
        self.tracker = PerformanceTracker(
            store=store, scope=scope, run=run, begin=knowledge_of(chooses)
        )
        self.selector = SeedSelector(chooses, tracker=self.tracker, seed=_seed_of(scope))
        self._store, self._scope, self.clock = store, scope, clock
        self._made: dict[str, Decision] = {}
        self._looked = clock()

    def choose(
        self, layer: str, seeds: list[int], context: SelectionContext, seconds: float
    ) -> tuple[Decision, int]:
        """Choose and reserve a seed for so many seconds.

        Returns:
            The decision, which is stored, and the number of outcomes that it was made from.

        Raises:
            NoViableSeedError, SelectionError: as `SeedSelector.select_seed_now`.
            StoreError: if it cannot be stored now; nothing is reserved then.
        """
        self._look()
        while True:
            decision, version = self._decide(layer, seeds, context)
            try:
                reserved = self._reserve(decision, seconds)
                if reserved:
                    self._stored()
            except BaseException:
                self._end(decision)
                raise
            finally:
                with self.tracker.lock, suppress(SelectionError):  # the store has it, not the book
                    self.selector.expire(layer, decision.seed_idx)
            if reserved:
                self._keep(decision)
                return decision, version
            self.tracker.withdraw(decision)  # another service was faster; choose among the others

    def choose_among(
        self, layer: str, seeds: list[int], context: SelectionContext, own: int | None
    ) -> tuple[Decision, int]:
        """Choose a seed that others may choose at the same time; or note ``own``, the caller's.

        It is stored by the next `settle`. Returns, raises: as `choose`.
        """
        self._look()
        with self.tracker.lock:
            version = self._version(layer)
            decision = self.selector.decide(layer, seeds if own is None else [own], context)
            self.selector.expire(layer, decision.seed_idx)
        self._keep(decision)
        return decision, version

    def require(self, decision_id: str) -> None:
        """Refuse what is no decision: a `SelectionError`."""
        self._decision(decision_id)

    def tell(self, decision_id: str, delta: PerformanceDelta) -> bool:
        """Record the outcome of a choice; false if it has one, and this one is not counted.

        Raises:
            MeasurementError: if a number is not finite.
            SelectionError: if there is no such decision.
        """
        decision, answered = self._decision(decision_id)
        if not answered:
            with self.tracker.lock:
                self.tracker.record_of(decision).await_again(decision_id)
            self.tracker.update_metrics_now(
                decision.layer_name, decision.seed_idx, delta, decision=decision
            )
        self._made.pop(decision_id, None)
        self._reserve(decision, 0)
        return not answered

    def release(self, decision_id: str) -> None:
        """A choice came to nothing; again does nothing.

        Raises:
            SelectionError: if there is no such decision.
        """
        self._end(self._decision(decision_id)[0])

    def give_up(self, decision_id: str) -> None:
        """Withdraw a choice of which nothing comes, however long ago it was made.

        Raises:
            SelectionError: if there is no such decision.
            StoreError: if it is not known here, and the store cannot be read.
        """
        decision, answered = self._decision(decision_id)
        if not answered:
            with self.tracker.lock:
                self.tracker.record_of(decision).await_again(decision_id)
            self._end(decision)

    def note(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """Write an event beside the choices; `settle` waits until it is stored."""
        self.tracker.events.write_about(kind, subject, data)

    def read(self, after: str, kinds: Collection[str]) -> Iterator[tuple[str, Event]]:
        """Stored events of the scope, by position; raises StoreError."""
        return self._store.read(after, scope=self._scope, kinds=kinds)

    def end(self) -> str:
        """Position of the last stored event of the scope; raises StoreError."""
        return self._store.end(self._scope)

    def settle(self) -> None:
        """Wait until all that was told is stored.

        Raises:
            StoreError: if that takes too long.
        """
        self._stored()

    def close(self) -> None:
        """Deliver what waits and close the store."""
        if self.tracker.events.journal is not None:
            self.tracker.events.journal.close()

    def _version(self, layer: str) -> int:
        found = self.tracker.layer(layer)
        return sum(one.outcomes for one in found.seeds.values()) if found else 0

    def _stored(self) -> None:
        journal = self.tracker.events.journal
        assert journal is not None
        self.tracker.flush()
        journal.flush(_PATIENCE_S)

    def _look(self) -> None:
        now = self.clock()
        if now - self._looked >= _REFRESH_S:
            self._looked = now
            self.tracker.refresh()

    def _decide(
        self, layer: str, seeds: list[int], context: SelectionContext
    ) -> tuple[Decision, int]:
        """Choose among the seeds that nobody has reserved in the store."""
        taken = self._store.reserved(joined(self._scope, layer))
        free = [seed for seed in seeds if str(seed) not in taken]
        if seeds and not free:
            raise NoViableSeedError(
                f"layer {layer!r} has no viable seed: {sorted(seeds)} are reserved; wait for an "
                "outcome or a release, or until a reservation ends by itself"
            )
        with self.tracker.lock:
            version = self._version(layer)
            return self.selector.decide(layer, free, context), version

    def _reserve(self, decision: Decision, seconds: float) -> bool:
        group = joined(self._scope, decision.layer_name)
        return self._store.reserve(group, str(decision.seed_idx), decision.decision_id, seconds)

    def _end(self, decision: Decision) -> None:
        self.tracker.withdraw(decision)
        self._reserve(decision, 0)

    def _keep(self, decision: Decision) -> None:
        """Keep a decision whose outcome may come soon; others are found in the store."""
        self._made[decision.decision_id] = decision
        if len(self._made) > _KEPT:
            with suppress(KeyError, StopIteration, RuntimeError):  # another thread does the same
                del self._made[next(iter(self._made))]

    def _decision(self, decision_id: str) -> tuple[Decision, bool]:
        """A decision, and whether its outcome is stored; of another process or long ago, too."""
        known = self._made.get(decision_id)
        with self.tracker.lock:
            if known and decision_id in self.tracker.record_of(known).open:
                return known, False
        self._stored()
        self._catch_up()
        *_, run, _, _ = "", "", "", *parted(decision_id)  # a scope stands before, if it has a name
        made = self._store.read(scope=self._scope, run=run, kinds=["decision"])
        for position, event in made:
            if event.data.get("decision") == decision_id:
                told = self._store.read(position, scope=self._scope, kinds=["outcome", "failure"])
                answered = any(one.data.get("decision") == decision_id for _, one in told)
                return decision_from(event.data), answered
        raise SelectionError(
            f"no decision {decision_id!r} is stored in scope {self._scope!r}; tell the outcome "
            "under the id and the scope of its choice"
        )

    def _catch_up(self) -> None:
        """Take in what is stored by now."""
        deadline, answers = time.monotonic() + _PATIENCE_S, 0
        while answers < 2:  # the first may be to an earlier question
            try:
                self.tracker.catch_up()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                answers += 1


def _seed_of(scope: str) -> int:
    """Seed of a scope's randomness; with one for all, scopes would draw the same numbers."""
    return int.from_bytes(blake2b(scope.encode(), digest_size=6).digest(), "big")
