"""What a strategy thinks of a layer's seeds now: for a person to look at, before any choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.interval import mean_interval
from esper.records.layer import LayerMetrics
from esper.records.seed import SeedRecord
from esper.services.tamiyo.assignment import Assignment
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.strategies.base import SelectionStrategy
from esper.strategies.first_try import first_try


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeedOutlook:
    """One seed, as its strategy would see it at the next choice in the layer.

    Attributes:
        strategy: Whose turn it is; in an A/B test the arms take turns.
        score: In the strategy's own units; ``None`` for a seed that it would try before any other.
        mean: Mean reward of the window, in the reward's own units; ``None`` without an outcome.
        interval: 95 % t interval of ``mean``; ``None`` with fewer than two outcomes.
        count: Outcomes inside the window.
        outcomes: Outcomes ever, failures included.
        pending: Choices whose outcome has not come.
        propensity: Probability of being chosen next, in [0, 1], were every seed of the layer free.
        propensity_error: Largest absolute error of ``propensity``; 0 where it is exact.
    """

    strategy: str
    score: float | None
    mean: float | None
    interval: tuple[float, float] | None
    count: int
    outcomes: int
    pending: int
    propensity: float
    propensity_error: float


def outlook(
    chooser: SelectionStrategy | Assignment,
    tracker: PerformanceTracker,
    layer_name: str,
    seeds: Sequence[int],
    context: SelectionContext,
    *,
    seed: int = 0,
) -> dict[int, SeedOutlook]:
    """Ask as the selector would ask for the layer's next choice, but choose and change nothing.

    Args:
        chooser: As it was given to the ``SeedSelector`` over this tracker.
        tracker: What is known.
        layer_name: The layer.
        seeds: All its seeds, at least one.
        context: As for a choice.
        seed: The selector's, for strategies whose scores are drawn.
    """
    with tracker.lock:
        layer = tracker.layer(layer_name)
        metrics: Mapping[int, SeedRecord] = layer.seeds if layer else LayerMetrics(None)
        number = layer.choices if layer else 0
        strategy, seen = _turn(
            chooser, tracker.events.decision_id(layer_name, number), layer_name, metrics
        )
        rng = Draws(seed, layer_name, number)
        _, thought = strategy.decide(seeds, seen, context, rng)
        first = first_try(strategy, list(seeds), seen, Draws(seed, layer_name, number), context)
        if first is not None:
            chances, error = first[1].propensities, 0.0
        elif thought.knows_propensities:
            chances, error = thought.propensities, thought.propensity_error
        else:
            tried = strategy.propensities(seeds, seen, context)
            chances, error = tried.by_seed, tried.error
        untried = first[1].scores if first else {}
        found = {}
        for seed_idx in seeds:
            record = metrics.get(seed_idx) or SeedRecord(layer_name, seed_idx, "")
            score = None if seed_idx in untried else thought.scores.get(seed_idx)
            found[seed_idx] = SeedOutlook(
                strategy=strategy.name,
                score=score if score is not None and isfinite(score) else None,
                mean=record.mean if record.count else None,
                interval=mean_interval(record),
                count=record.count,
                outcomes=record.outcomes,
                pending=record.pending,
                propensity=chances.get(seed_idx, 0.0),
                propensity_error=error,
            )
        return found


def _turn(
    chooser: SelectionStrategy | Assignment,
    decision_id: str,
    layer_name: str,
    metrics: Mapping[int, SeedRecord],
) -> tuple[SelectionStrategy, Mapping[int, SeedRecord]]:
    if not isinstance(chooser, Assignment):
        return chooser, metrics
    assigned, strategy = chooser.turn(decision_id, layer_name)
    return strategy, chooser.seen_by(assigned.arm, metrics)
