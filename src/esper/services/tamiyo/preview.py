"""Preview of a layer's next choice: score and probability of every seed, without choosing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.records.interval import mean_interval
from esper.records.layer import LayerMetrics
from esper.records.seed import SeedRecord
from esper.services.tamiyo.assignment import Chooser, strategy_in_turn
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.strategies.first_try import first_try


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPreview:
    """Record, score and probability of one seed at the next choice in its layer.

    Attributes:
        strategy: Strategy that would choose; in an A/B test, that of the arm whose turn it is.
        score: In the strategy's own units; ``None`` for a seed that it would try before any other.
        mean: Mean reward of the window, in the reward's own units; ``None`` without an outcome.
        interval: 95 % t interval of ``mean``; ``None`` with fewer than two outcomes.
        count: Outcomes inside the window.
        outcomes: Outcomes ever, failures included.
        pending: Choices whose outcome has not come.
        choices: Choices ever, auditions included.
        least_share: Share of its layer's choices that the strategy gives it at least, in [0, 1].
        worth: What it is expected to earn, in units of what an average seed of the run earns at
            that moment, whatever has grown; ``None`` if the strategy does not know.
        worth_sd: Standard deviation of ``worth``.
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
    choices: int
    least_share: float
    worth: float | None
    worth_sd: float | None
    propensity: float
    propensity_error: float


def preview(
    chooser: Chooser,
    tracker: PerformanceTracker,
    layer_name: str,
    seeds: Sequence[int],
    context: SelectionContext,
    *,
    seed: int = 0,
) -> dict[int, SeedPreview]:
    """Preview the layer's next choice as the selector would make it; nothing is changed.

    Args:
        chooser: As it was given to the ``SeedSelector`` over this tracker.
        tracker: Outcomes so far.
        layer_name: The layer.
        seeds: All its seeds, at least one.
        context: As for a choice.
        seed: Run seed of the selector, for strategies whose scores are drawn.
    """
    with tracker.lock:
        layer = tracker.layer(layer_name)
        metrics: Mapping[int, SeedRecord] = layer.seeds if layer else LayerMetrics(None)
        number = layer.choices if layer else 0
        decision_id = tracker.events.decision_id(layer_name, number)
        strategy, seen, _ = strategy_in_turn(chooser, decision_id, layer_name, metrics)
        _, reason = strategy.decide(seeds, seen, context, Draws(seed, layer_name, number))
        first = first_try(strategy, list(seeds), seen, Draws(seed, layer_name, number), context)
        if first is not None:
            chances, error = first[1].propensities, 0.0
        elif reason.knows_propensities:
            chances, error = reason.propensities, reason.propensity_error
        else:
            estimated = strategy.propensities(seeds, seen, context)
            chances, error = estimated.by_seed, estimated.error
        untried = first[1].scores if first else {}
        worths = strategy.worths({layer_name: (list(seeds), seen, context)})
        places = {seed: at for at, (_, seed) in enumerate(worths.arms)}
        found = {}
        for seed_idx in seeds:
            record = metrics.get(seed_idx) or SeedRecord(layer_name, seed_idx, "")
            at = places.get(seed_idx)
            score = None if seed_idx in untried else reason.scores.get(seed_idx)
            found[seed_idx] = SeedPreview(
                strategy=strategy.name,
                score=score if score is not None and isfinite(score) else None,
                mean=record.mean if record.count else None,
                interval=mean_interval(record),
                count=record.count,
                outcomes=record.outcomes,
                pending=record.pending,
                choices=record.total_activations,
                least_share=strategy.least_share,
                worth=None if at is None else worths.means[at],
                worth_sd=None if at is None else worths.sd(at),
                propensity=chances.get(seed_idx, 0.0),
                propensity_error=error,
            )
        return found
