"""Why a choice over arrays was made, in the words of the strategy where it is the strategy's."""

from collections.abc import Sequence
from math import inf

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.seed_selector import first_try
from esper.services.tamiyo.strategies._base import Metrics, SelectionStrategy, others, tried

_TURNS = 100
"""Draws, per seed, in which the seed comes up that a tie was settled by."""


def reason_of(
    strategy: SelectionStrategy,
    chosen: int,
    scores: Sequence[float],
    metrics: Metrics,
    context: SelectionContext,
) -> SelectionReason:
    """The reason of one layer's choice.

    Args:
        strategy: Who decided.
        chosen: The seed.
        scores: What every seed was chosen by; ``-inf`` if it was not viable.
        metrics: What was known then.
        context: What else was.
    """
    viable = [seed for seed, score in enumerate(scores) if score > -inf]
    for number in range(_TURNS * len(viable)):
        rng = Draws(0, "explain", number)
        found, reason = first_try(strategy, viable, metrics, rng, context) or strategy.decide(  # type: ignore[arg-type]  # reads what SeedStatistics have
            viable, metrics, context, rng
        )
        chances = {chance for chance in reason.propensities.values() if chance}
        if len(chances) > 1:  # not only ties were drawn, so this is another choice than ours
            break
        if found == chosen:
            return reason
    return _of_draw(strategy, chosen, {seed: scores[seed] for seed in viable}, metrics, context)


def _of_draw(
    strategy: SelectionStrategy,
    chosen: int,
    drawn: dict[int, float],
    metrics: Metrics,
    context: SelectionContext,
) -> SelectionReason:
    viable = sorted(drawn)
    one, two = (
        strategy.decide(viable, metrics, context, Draws(0, "explain", number))[1]
        for number in range(2)
    )
    # Where a score is itself a draw, ours is what counted; where it is not, it is what it is.
    fixed = one.scores == two.scores
    scores = dict(one.scores) if fixed else drawn
    chances = strategy.propensities(viable, metrics, context)
    record = metrics.get(chosen)
    known = tried(record.count if record else 0)
    how = f"drawn with probability {chances.of(chosen):.2f}" if fixed else "highest draw"
    return SelectionReason(
        strategy.name,
        chosen,
        scores[chosen],
        scores,
        chances,
        f"{how}: {scores[chosen]:.2f} sd, of {len(viable)}; {known}",
        False,
        others(viable, chosen),
    )
