"""SeedSelector: which seed of a layer to activate; reserves it, and says why."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from esper.contracts.errors import ConfigError, NoViableSeedError, SelectionError
from esper.contracts.schema import require_schema
from esper.contracts.selection import (
    Assigned,
    Decision,
    SelectionConstraints,
    SelectionContext,
    SelectionReason,
    checked_seeds,
    whole,
)
from esper.drawing.html_tables import seeds_table
from esper.records.draws import Draws
from esper.records.seed import SeedRecord
from esper.services.tamiyo.assignment import Assignment, knowledge_of, strategy_in_turn
from esper.services.tamiyo.occupancy import Occupancy, Sifted, occupancy_from
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.strategies import STRATEGIES
from esper.strategies.base import SelectionStrategy
from esper.strategies.first_try import first_try

__all__ = [
    "SeedSelector",
    "SelectionConstraints",
    "SelectionContext",
    "SelectionReason",
    "SelectionStrategy",
]

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the state."""

_NONE: list[int] = []


@final
class SeedSelector:
    """Chooses seeds by a strategy, within constraints.

    What all strategies share lives here: every viable seed is tried once before a strategy that
    learns is asked, but for those that it has evidence on already; a seed that was chosen is
    reserved until `release`, or until its first outcome; once committed it is busy until `free`.
    Safe to use from several threads and asyncio tasks.

    Args:
        strategy: Who decides among seeds that have been tried, a name standing for the strategy
            with its defaults; or an A/B test of several.
        tracker: What is known of the seeds; by default a new one without a store.
        seed: Seed of all randomness; a choice draws from it, the layer's name and the number of
            the choice in that layer.
        constraints: Cooldown and concurrency; ``None`` for neither.

    Example:
        >>> selector = SeedSelector("ucb")
        >>> seed_idx, reason = selector.select_seed_now("fc1", [0, 1], SelectionContext())
        >>> reason.score, reason.propensity, reason.reason
        (inf, 0.5, 'untried, like 2 of 2 viable seeds; drawn')
    """

    def __init__(
        self,
        strategy: SelectionStrategy | Assignment | str,
        *,
        tracker: PerformanceTracker | None = None,
        seed: int = 0,
        constraints: SelectionConstraints | None = None,
    ) -> None:
        if isinstance(strategy, str):
            strategy = STRATEGIES.create(strategy)
        if not isinstance(strategy, SelectionStrategy | Assignment):
            raise ConfigError(f"strategy is {strategy!r}; give a strategy or its name, as 'ucb'")
        if tracker is not None and not isinstance(tracker, PerformanceTracker):
            raise ConfigError(f"tracker is {tracker!r}; give a PerformanceTracker, or none")
        self.strategy, self.seed = strategy, whole("seed", seed)
        self.performance_tracker = PerformanceTracker() if tracker is None else tracker
        if isinstance(strategy, Assignment):
            self.performance_tracker.events.write_once("ab_test", strategy.declaration())
        begin = knowledge_of(strategy)
        if begin is not None:
            self.performance_tracker.follow(begin)
        self.constraints = constraints
        self._layers: dict[str, Occupancy] = {}

    async def select_seed(
        self, layer_name: str, available_seeds: Sequence[int], context: SelectionContext
    ) -> tuple[int, SelectionReason]:
        """`select_seed_now`, others having a turn; a choice whose caller is gone is released."""
        decision = self.decide(layer_name, available_seeds, context)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.release(layer_name, decision.seed_idx)
            raise
        return decision.seed_idx, decision.reason

    def select_seed_now(
        self, layer_name: str, available_seeds: Sequence[int], context: SelectionContext
    ) -> tuple[int, SelectionReason]:
        """Choose and reserve a seed.

        Args:
            layer_name: Dotted name of the layer.
            available_seeds: Seeds that are dormant and fit; each once, in any order.
            context: Epoch, and what else is known.

        Returns:
            The seed, and why.

        Raises:
            NoViableSeedError: if none may be chosen now; nothing was touched.
            SelectionError: if ``available_seeds`` is empty, repeats a seed or holds a negative one.
        """
        decision = self.decide(layer_name, available_seeds, context)
        return decision.seed_idx, decision.reason

    def decide(
        self, layer_name: str, available_seeds: Sequence[int], context: SelectionContext
    ) -> Decision:
        """Choose and reserve a seed, as `select_seed_now` does; returns the record that travels."""
        if not hasattr(context, "current_epoch"):
            raise SelectionError(
                f"layer {layer_name!r}: the context is {context!r}; give a SelectionContext, as "
                "SelectionContext(current_epoch=7)"
            )
        return self._choose(layer_name, available_seeds, context)

    def commit(self, layer_name: str, seed_idx: int) -> None:
        """The kernel is loaded: the seed is busy until `free`.

        Raises:
            SelectionError: if the seed is not reserved.
        """
        with self.performance_tracker.lock:
            self._reserved(layer_name, seed_idx, "commit").commit(seed_idx)

    def follow(self, decision: Decision) -> None:
        """Take over a choice that another process made, and whose kernel is loaded here too."""
        with self.performance_tracker.lock:
            book = self._layers.setdefault(decision.layer_name, Occupancy())
            place = (decision.layer_name, decision.seed_idx)
            book.reserve(
                decision, self.performance_tracker.record_selection(*place, decision=decision)
            )
            book.commit(decision.seed_idx)

    def release(self, layer_name: str, seed_idx: int) -> None:
        """The choice came to nothing: the seed may be chosen again at once.

        Raises:
            SelectionError: if the seed is not reserved.
        """
        with self.performance_tracker.lock:
            decision = self._reserved(layer_name, seed_idx, "release").release(seed_idx)
            self.performance_tracker.withdraw(decision)

    def expire(self, layer_name: str, seed_idx: int) -> None:
        """Whoever asked for the choice is gone: the seed is free, its outcome would still count.

        Raises:
            SelectionError: if the seed is not reserved.
        """
        with self.performance_tracker.lock:
            self._reserved(layer_name, seed_idx, "expire").release(seed_idx)

    def fail(self, decision: Decision, error: str) -> None:
        """The graft of a choice failed: an outcome of reward 0; a reserved seed cools down."""
        tracker = self.performance_tracker
        tracker.record_failure(decision.layer_name, decision.seed_idx, error, decision=decision)

    def free(self, layer_name: str, seed_idx: int, epoch: int | None) -> None:
        """The life cycle of a committed seed ended at ``epoch``; its cooldown begins.

        Without an epoch there is no cooldown: the seed was never active, as one that lost an
        audition.

        Raises:
            SelectionError: if the seed is not busy.
        """
        with self.performance_tracker.lock:
            book = self._layers.get(layer_name)
            if book is None or seed_idx not in book.busy:
                raise SelectionError(
                    f"seed {seed_idx} of layer {layer_name!r} is not busy and cannot be freed; "
                    "commit() it first, or release() a seed that is only reserved"
                )
            book.free(seed_idx, epoch)

    def freed(self, layer_name: str) -> Mapping[int, int]:
        """Seeds of a layer that were active, and the epoch at which each was freed."""
        book = self._layers.get(layer_name)
        return {} if book is None else book.freed

    def _repr_html_(self) -> str:
        tracker = self.performance_tracker
        strategy = getattr(self.strategy, "name", "an A/B test")
        with tracker.lock:
            layers = map(tracker.layer, tracker.layer_names)
            return seeds_table(f"SeedSelector: {strategy}", layers, "now", self._now)

    def _now(self, record: SeedRecord) -> str:
        book = self._layers.get(record.layer_name) or Occupancy()
        seed, freed = record.seed_idx, book.freed.get(record.seed_idx)
        active = "busy" if seed in book.busy else "reserved" if seed in book.reserved else ""
        return active or ("free" if freed is None else f"free since epoch {freed}")

    def state_dict(self) -> dict[str, Any]:
        """Reservations, busy seeds and cooldowns as JSON data; what was learnt is the tracker's."""
        self.performance_tracker.flush()  # what a checkpoint reserves must be in the log
        with self.performance_tracker.lock:
            return {
                "schema": SCHEMA,
                "strategy": self.strategy.state_dict(),
                "layers": {name: book.state_dict() for name, book in self._layers.items()},
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, over a tracker that knows as much.

        Raises:
            ConfigError: if the state is damaged or of another schema; nothing is taken over then.
        """
        require_schema(state, "selector", SCHEMA)
        with self.performance_tracker.lock:
            layers = {}
            try:
                for name, layer in state["layers"].items():
                    layers[name], decisions = occupancy_from(layer)
                    for decision in decisions:
                        record = self.performance_tracker.record_of(decision)
                        layers[name].reserve(decision, record)
                self.strategy.load_state_dict(state["strategy"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(
                    f"the state of a selector cannot be read ({error!r}); it is damaged"
                ) from error
            self._layers = layers

    def _choose(
        self, layer_name: str, available_seeds: Sequence[int], context: SelectionContext
    ) -> Decision:
        seeds = checked_seeds(layer_name, available_seeds)
        with self.performance_tracker.lock:
            found = self.situation(layer_name, seeds, context)
            strategy, assigned = self.strategy, None
            if isinstance(strategy, Assignment):  # a call less, where there is no test
                decision_id = self.performance_tracker.events.decision_id(layer_name, found.number)
                turn = strategy_in_turn(strategy, decision_id, layer_name, found.metrics)
                strategy, metrics, assigned = turn
                found = replace(found, metrics=metrics)
            if not found.viable:
                freed, epoch = found.book.freed, context.current_epoch
                reason = _fall_back(strategy, layer_name, found.cooling, freed, epoch)
            else:
                rng = Draws(self.seed, layer_name, found.number)
                reason = self._ask(strategy, found.viable, found.metrics, context, rng)
            return self.reserve(layer_name, reason, found, context, assigned=assigned)

    def situation(
        self, layer_name: str, seeds: Sequence[int], context: SelectionContext
    ) -> "Situation":
        """The layer before a choice, the tracker's lock being held; raises `NoViableSeedError`."""
        tracker = self.performance_tracker
        book = self._layers.get(layer_name) or Occupancy()
        viable, cooling = list(seeds), _NONE
        if book.active or book.freed:
            viable, cooling = self._sift(layer_name, viable, context.current_epoch)
        for seed, blueprint in context.blueprints.items():
            tracker.bind(layer_name, seed, blueprint)
        layer = tracker.layer(layer_name)
        return Situation(
            book, viable, cooling, layer.seeds if layer else {}, layer.choices if layer else 0
        )

    def reserve(
        self,
        layer_name: str,
        reason: SelectionReason,
        found: "Situation",
        context: SelectionContext,
        *,
        assigned: Assigned | None = None,
        audition: str = "",
    ) -> Decision:
        """Reserve the seed of a reason; the decision, which is in the log."""
        tracker, number = self.performance_tracker, found.number
        known = found.metrics.get(reason.seed_idx)
        decision = Decision(
            decision_id=tracker.events.decision_id(layer_name, number),
            layer_name=layer_name,
            seed_idx=reason.seed_idx,
            blueprint=known.blueprint if known else "",
            epoch=context.current_epoch,
            reason=reason,
            random_key=(self.seed, layer_name, number),
            layer_type=context.layer_type,
            ab=assigned,
            audition=audition,
            depth=context.health.depth if context.health else None,
            promise=context.promise_of(reason.seed_idx),
        )
        record = tracker.record_selection(layer_name, reason.seed_idx, decision=decision)
        self._layers[layer_name] = found.book
        found.book.reserve(decision, record)
        return decision

    def _sift(self, layer_name: str, seeds: list[int], epoch: int) -> Sifted:
        book, constraints = self._layers[layer_name], self.constraints
        book.settle()
        found = book.sift(seeds, epoch, constraints)
        may_fall_back = found.cooling and constraints and constraints.fallback_to_zero
        if not found.viable and not may_fall_back:
            raise NoViableSeedError(book.refusal(layer_name, seeds, epoch, constraints))
        return found

    def _ask(
        self,
        strategy: SelectionStrategy,
        viable: list[int],
        metrics: Mapping[int, SeedRecord],
        context: SelectionContext,
        rng: Draws,
    ) -> SelectionReason:
        first = first_try(strategy, viable, metrics, rng, context)
        seed_idx, reason = first or strategy.decide(viable, metrics, context, rng)
        if seed_idx not in viable:
            raise SelectionError(
                f"strategy {strategy.name!r} chose seed {seed_idx!r}, which is not among the "
                f"viable ones, {viable}; that is a mistake in the strategy"
            )
        if self.performance_tracker.events.journal is not None and not reason.knows_propensities:
            # Now, because the log wants them and the choice changes the metrics.
            known = {seed_idx: reason.propensity}
            chances = strategy.propensities(viable, metrics, context, known=known)
            reason = reason.with_(propensity=chances)
        return reason

    def _reserved(self, layer_name: str, seed_idx: int, what: str) -> Occupancy:
        book = self._layers.get(layer_name)
        if book is not None:
            book.settle()
            if seed_idx in book.reserved:
                return book
        busy = book is not None and seed_idx in book.busy
        raise SelectionError(
            f"seed {seed_idx} of layer {layer_name!r} is {'busy' if busy else 'not reserved'}, so "
            f"{what}() has nothing to do; a reservation is made by choosing the seed and ends "
            "with commit(), release() or the seed's first outcome"
        )


@dataclass(frozen=True, slots=True)
class Situation:
    """A layer before a choice.

    Attributes:
        book: Who is reserved, busy or cooling.
        viable: Seeds that may be chosen.
        cooling: Seeds that only cool down.
        metrics: Records of the layer's seeds.
        number: Number of the choice in the layer.
    """

    book: Occupancy
    viable: list[int]
    cooling: list[int]
    metrics: Mapping[int, SeedRecord]
    number: int


def _fall_back(
    strategy: SelectionStrategy,
    layer_name: str,
    cooling: list[int],
    freed: Mapping[int, int],
    epoch: int,
) -> SelectionReason:
    chosen, rested = cooling[0], epoch - freed[cooling[0]]
    rest = f"after {rested} epoch(s) of rest" if rested else "which was freed in this epoch"
    why = f"every seed that is free cools down; the lowest, {rest}"
    logger.warning("layer %s, epoch %d: fallback to seed %d: %s", layer_name, epoch, chosen, why)
    return SelectionReason(strategy.name, chosen, 0.0, {}, 1.0, why, True, tuple(cooling[1:]))
