"""SeedSelector: which seed of a layer to activate; reserves it, and says why."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from operator import index
from typing import Any, final

from esper.contracts.errors import ConfigError, NoViableSeedError, SelectionError
from esper.contracts.selection import (
    MOST_SEEDS,
    Decision,
    SelectionConstraints,
    SelectionContext,
    SelectionReason,
    decision_data,
    decision_from,
)
from esper.records.draws import Draws
from esper.records.layer import LayerMetrics
from esper.records.seed import SeedRecord
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.occupancy import Occupancy, at_rest, refusal, sift
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.strategies.base import SelectionStrategy
from esper.strategies.scoring import others

__all__ = [
    "SeedSelector",
    "SelectionConstraints",
    "SelectionContext",
    "SelectionReason",
    "SelectionStrategy",
]

logger = logging.getLogger(__name__)

_NOTHING_KNOWN = SelectionContext()

_NO_SEEDS: list[int] = []

_CHECKED: dict[bytes, list[int]] = {}
"""Lists of seeds that were found to be in order, sorted."""

_SMALL, _REMEMBERED = 256, 1024


@final
class SeedSelector:
    """Chooses seeds by a strategy, within constraints.

    What all strategies share lives here: every viable seed is tried once before the strategy is
    asked, but for those that it has evidence on already; a seed that was chosen is reserved until
    `release`, or until its first outcome; once committed it is busy until `free`. Safe to use from
    several threads and asyncio tasks.

    Args:
        strategy: Who decides among seeds that have been tried; or an A/B test of several.
        tracker: What is known of the seeds; by default a new one without a store.
        seed: Seed of all randomness; a choice draws from it, the layer's name and the number of
            the choice in that layer.
        constraints: Cooldown and concurrency; ``None`` for neither.

    Example:
        >>> from esper.strategies import STRATEGIES
        >>> selector = SeedSelector(STRATEGIES.create("round_robin"))
        >>> seed_idx, reason = selector.select_seed_now("fc1", [0, 1], SelectionContext())
        >>> reason.score, reason.propensity, reason.reason
        (inf, 0.5, 'untried, like 2 of 2 viable seeds; drawn')
    """

    def __init__(
        self,
        strategy: SelectionStrategy | Assignment,
        *,
        tracker: PerformanceTracker | None = None,
        seed: int = 0,
        constraints: SelectionConstraints | None = None,
    ) -> None:
        if not isinstance(strategy, SelectionStrategy | Assignment):
            raise ConfigError(
                f"strategy is {strategy!r}; give an object, as STRATEGIES.create('ucb') makes it"
            )
        if tracker is not None and not isinstance(tracker, PerformanceTracker):
            raise ConfigError(f"tracker is {tracker!r}; give a PerformanceTracker, or none")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number")
        self.strategy = strategy
        self.performance_tracker = PerformanceTracker() if tracker is None else tracker
        if isinstance(strategy, Assignment):
            self.performance_tracker.declare(strategy.declaration())
            learns = strategy.learns
        else:
            learns = type(strategy).begin is not SelectionStrategy.begin
        if learns:
            self.performance_tracker.follow(strategy.begin)
        self.seed = seed
        self.constraints = constraints
        self._layers: dict[str, _Slots] = {}

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
        decision = self._choose(layer_name, available_seeds, context)
        self.performance_tracker.flush_soon()
        return decision

    def commit(self, layer_name: str, seed_idx: int) -> None:
        """The kernel is loaded: the seed is busy until `free`.

        Raises:
            SelectionError: if the seed is not reserved.
        """
        with self.performance_tracker.lock:
            slots = self._reserved(layer_name, seed_idx, "commit")
            slots.busy.add(seed_idx)
            del slots.reserved[seed_idx]

    def release(self, layer_name: str, seed_idx: int) -> None:
        """The choice came to nothing: the seed may be chosen again at once.

        Raises:
            SelectionError: if the seed is not reserved.
        """
        with self.performance_tracker.lock:
            slots = self._reserved(layer_name, seed_idx, "release")
            decision, _ = slots.reserved.pop(seed_idx)
            slots.active.discard(seed_idx)
            self.performance_tracker.withdraw(decision)

    def free(self, layer_name: str, seed_idx: int, epoch: int) -> None:
        """The life cycle of a committed seed ended at ``epoch``; its cooldown begins.

        Raises:
            SelectionError: if the seed is not busy.
        """
        with self.performance_tracker.lock:
            slots = self._layers.get(layer_name)
            if slots is None or seed_idx not in slots.busy:
                raise SelectionError(
                    f"seed {seed_idx} of layer {layer_name!r} is not busy and cannot be freed; "
                    "commit() it first, or release() a seed that is only reserved"
                )
            slots.busy.discard(seed_idx)
            slots.active.discard(seed_idx)
            slots.freed[seed_idx] = epoch

    def state_dict(self) -> dict[str, Any]:
        """Reservations, busy seeds and cooldowns as JSON data; what was learnt is the tracker's."""
        self.performance_tracker.flush()  # what a checkpoint reserves must be in the log
        with self.performance_tracker.lock:
            return {
                "strategy": self.strategy.state_dict(),
                "layers": {
                    name: {
                        "reserved": [decision_data(held[0]) for held in slots.reserved.values()],
                        "busy": sorted(slots.busy),
                        "freed": {str(seed): epoch for seed, epoch in slots.freed.items()},
                    }
                    for name, slots in self._layers.items()
                },
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, over a tracker that knows as much."""
        with self.performance_tracker.lock:
            self.strategy.load_state_dict(state["strategy"])
            self._layers = {}
            for name, layer in state["layers"].items():
                slots = self._layers[name] = _Slots()
                slots.busy.update(layer["busy"])
                slots.freed.update({int(seed): epoch for seed, epoch in layer["freed"].items()})
                for data in layer["reserved"]:
                    decision = decision_from(data)
                    record = self.performance_tracker.record_of(decision)
                    slots.reserved[decision.seed_idx] = (decision, record)
                slots.active.update(slots.busy, slots.reserved)

    def _choose(
        self, layer_name: str, available_seeds: Sequence[int], context: SelectionContext
    ) -> Decision:
        seeds = checked_seeds(layer_name, available_seeds)
        tracker, epoch = self.performance_tracker, context.current_epoch
        with tracker.lock:
            slots = self._layers.get(layer_name) or _Slots()
            if slots.reserved:
                slots.settle()
            viable, cooling = list(seeds), _NO_SEEDS
            if not at_rest(slots.active, slots.freed, epoch, self.constraints):
                viable, cooling = sift(seeds, slots.active, slots.freed, epoch, self.constraints)
            fallback = not viable
            if fallback and not (
                cooling and self.constraints and self.constraints.fallback_to_zero
            ):
                occupancy = Occupancy(slots.reserved.keys(), slots.busy, slots.freed)
                raise NoViableSeedError(
                    refusal(layer_name, seeds, occupancy, epoch, self.constraints)
                )
            for seed, blueprint in context.blueprints.items():
                tracker.bind(layer_name, seed, blueprint)
            layer = tracker.layer(layer_name)
            metrics: Mapping[int, SeedRecord] = layer.seeds if layer else {}
            number = layer.choices if layer else 0
            decision_id = tracker.decision_id(layer_name, number)
            assigned, strategy = None, self.strategy
            if isinstance(strategy, Assignment):
                test = strategy
                assigned, strategy = test.turn(decision_id, layer_name)
                metrics = test.seen_by(assigned.arm, metrics)
            if fallback:
                seed_idx, reason = _fall_back(strategy, layer_name, cooling, slots.freed, epoch)
            else:
                rng = Draws(self.seed, layer_name, number)
                seed_idx, reason = first_try(
                    strategy, viable, metrics, rng, context
                ) or strategy.decide(viable, metrics, context, rng)
                if seed_idx not in viable:
                    raise SelectionError(
                        f"strategy {strategy.name!r} chose seed {seed_idx!r}, which is not among "
                        f"the viable ones, {viable}; that is a mistake in the strategy"
                    )
                if tracker.journal is not None and not reason.knows_propensities:
                    # Now, because the log wants them and the choice changes the metrics.
                    chances = strategy.propensities(viable, metrics, context)
                    reason = reason.with_(propensity=chances)
            known = metrics.get(seed_idx)
            decision = Decision(
                decision_id=decision_id,
                layer_name=layer_name,
                seed_idx=seed_idx,
                blueprint=known.blueprint if known else "",
                epoch=epoch,
                reason=reason,
                random_key=(self.seed, layer_name, number),
                layer_type=context.layer_type,
                ab=assigned,
            )
            record = tracker.record_decision(decision)
            self._layers[layer_name] = slots
            slots.reserved[seed_idx] = (decision, record)
            slots.active.add(seed_idx)
        return decision

    def _reserved(self, layer_name: str, seed_idx: int, what: str) -> "_Slots":
        slots = self._layers.get(layer_name)
        if slots is not None:
            slots.settle()
            if seed_idx in slots.reserved:
                return slots
        busy = slots is not None and seed_idx in slots.busy
        raise SelectionError(
            f"seed {seed_idx} of layer {layer_name!r} is {'busy' if busy else 'not reserved'}, so "
            f"{what}() has nothing to do; a reservation is made by choosing the seed and ends "
            "with commit(), release() or the seed's first outcome"
        )


def first_try(
    strategy: SelectionStrategy,
    viable: list[int],
    metrics: Mapping[int, SeedRecord],
    rng: Draws,
    context: SelectionContext = _NOTHING_KNOWN,
) -> tuple[int, SelectionReason] | None:
    """One of the seeds never tried, all alike; ``None`` if there is none, and ``strategy`` decides.

    A seed on which the strategy has evidence from elsewhere is left to the strategy.
    """
    if _all_tried(viable, metrics):
        return None
    untried = [
        seed
        for seed in viable
        if (record := metrics.get(seed)) is None
        or not (record.outcomes or record.total_activations)
    ]
    if untried and (known := strategy.knows(viable, metrics, context)):
        untried = [seed for seed in untried if seed not in known]
    if not untried:
        return None
    chosen = untried[rng.index(len(untried))]
    return chosen, SelectionReason(
        strategy.name,
        chosen,
        inf,
        dict.fromkeys(untried, inf),
        dict.fromkeys(untried, 1 / len(untried)),
        partial(_untried, len(untried), len(viable)),
        False,
        others(viable, chosen),
    )


def _all_tried(viable: list[int], metrics: Mapping[int, SeedRecord]) -> bool:
    """Whether that can be told at a glance; if not, each seed must be looked at."""
    if not isinstance(metrics, LayerMetrics):
        return False
    standing = metrics.sums
    return standing.tried == len(metrics) and (
        viable == standing.seeds or all(map(metrics.__contains__, viable))
    )


def _untried(untried: int, viable: int) -> str:
    if untried == 1:
        return f"untried, the last of {viable} viable seeds" if viable > 1 else "untried"
    return f"untried, like {untried} of {viable} viable seeds; drawn"


def _fall_back(
    strategy: SelectionStrategy,
    layer_name: str,
    cooling: list[int],
    freed: Mapping[int, int],
    epoch: int,
) -> tuple[int, SelectionReason]:
    chosen = cooling[0]
    rested = epoch - freed[chosen]
    why = f"every seed that is free cools down; the lowest, after {rested} epochs of rest"
    logger.warning("layer %s, epoch %d: fallback to seed %d: %s", layer_name, epoch, chosen, why)
    return chosen, SelectionReason(
        strategy.name, chosen, 0.0, {}, 1.0, why, True, others(cooling, chosen)
    )


@final
class _Slots:
    """The seeds of one layer that are not simply dormant."""

    __slots__ = ("active", "busy", "freed", "reserved")

    def __init__(self) -> None:
        self.reserved: dict[int, tuple[Decision, SeedRecord]] = {}
        self.busy: set[int] = set()
        self.freed: dict[int, int] = {}
        self.active: set[int] = set()

    def settle(self) -> None:
        """End the reservations whose outcome has come; the cooldown runs from the choice."""
        for seed, (decision, record) in list(self.reserved.items()):
            if decision.decision_id not in record.open:
                del self.reserved[seed]
                self.active.discard(seed)
                self.freed[seed] = decision.epoch


def checked_seeds(layer_name: str, available: Sequence[int]) -> list[int]:
    """The seeds that may be chosen, sorted; the list may be shared and must not be changed.

    Raises:
        SelectionError: if there is none, or one is repeated, out of range or no whole number.
    """
    if not isinstance(layer_name, str):
        raise SelectionError(f"layer {layer_name!r}: a layer is named by a string")
    try:
        # Most layers are asked for the same few seeds; `bytes` takes small indices only.
        if type(available) is list and (known := _CHECKED.get(bytes(available))):
            return known
    except (TypeError, ValueError):
        pass
    try:
        seeds = sorted(map(index, available))
    except TypeError as error:
        raise SelectionError(
            f"layer {layer_name!r}: available seeds are {available!r}; give a list of seed indices"
        ) from error
    if not seeds:
        raise SelectionError(
            f"layer {layer_name!r}: no seed is available to choose from; ask again when one is "
            "dormant"
        )
    if seeds[0] < 0 or seeds[-1] >= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise SelectionError(
            f"layer {layer_name!r}: available seeds are {seeds}; each must be >= 0 and stand there "
            f"once, and be below {MOST_SEEDS:,}"
        )
    if type(available) is list and seeds[-1] < _SMALL and len(_CHECKED) < _REMEMBERED:
        _CHECKED[bytes(available)] = seeds
    return seeds
