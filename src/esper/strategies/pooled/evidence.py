"""How `auto` and `hierarchical` choose: by the evidence against each seed's posterior mean."""

from collections.abc import Collection, Sequence
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import NamedTuple, final

from esper.contracts.errors import SelectionError
from esper.contracts.performance import SeedStatistics
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy, rewards_of
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.imed import merits, shared
from esper.strategies.pooled.pooling import Prior, kind_of
from esper.strategies.scoring import others, pick_best, tried

_OWN = 1.0
"""Outcomes that the average seed of the layer is worth where no other layer says anything."""

_FRESH = 10
"""Outcomes per seed after a restart in which it is worth a word."""

_PATIENCE = 20
"""Outcomes of a layer, per viable seed, after which each is tried for its own sake."""


_PENDING = attrgetter("pending")


@final
class Posterior(NamedTuple):
    """What is believed of the viable seeds, in their order.

    Attributes:
        means: Posterior mean reward of each.
        trials: Outcomes that it is worth, and choices whose outcome has not come.
        priors: What other layers say of each; empty if they say nothing of any.
    """

    means: list[float]
    trials: list[float]
    priors: list[Prior | None]


def decide_by_evidence(
    strategy: SelectionStrategy,
    index: tuple[float, float],
    asked: tuple[Sequence[int], Metrics, SelectionContext],
    rng: Draws,
) -> tuple[int, SelectionReason]:
    """Choose the seed with the least evidence against it, relative to what was spent on it.

    Args:
        strategy: Who is asked; its `begin` makes `Beliefs`.
        index: ``exploration`` and ``horizon`` of `merits`.
        asked: Viable seeds, metrics and context, as `decide` gets them.
        rng: The only randomness.
    """
    viable, metrics, context = asked
    learned = beliefs_of(strategy, metrics, context)
    noise = learned.noise()
    posterior = posterior_of(learned, viable, metrics, context)
    values = merits(posterior.means, posterior.trials, noise, *index)
    scores = dict(zip(viable, values, strict=True))
    chosen, share = pick_best(scores, rng)
    at = values.index(scores[chosen]) if share == 1 else list(viable).index(chosen)
    return chosen, SelectionReason(
        strategy.name,
        chosen,
        values[at],
        scores,
        share if share == 1 else shared(scores, share),
        partial(
            _sentence,
            at,
            posterior,
            learned.outcomes(chosen),
            noise,
            learned.since if learned.restarts else -1,
            context.layer_type,
        ),
        False,
        others(viable, chosen),
    )


def beliefs_of(strategy: SelectionStrategy, metrics: Metrics, context: SelectionContext) -> Beliefs:
    """What was learnt; of hand-made metrics, what their windows hold."""
    found = getattr(metrics, "knowledge", None)
    if found is None:
        found = strategy.begin("")
        if isinstance(found, Beliefs):
            for seed in sorted(metrics):
                for reward in rewards_of(metrics[seed]):
                    found.take(seed, _kind(seed, metrics, context), reward)
    if not isinstance(found, Beliefs):
        raise SelectionError(
            f"the layer's knowledge is a {type(found).__name__}, which strategy {strategy.name!r} "
            "did not begin; give metrics to the strategy that learnt them"
        )
    return found


def posterior_of(
    learned: Beliefs, viable: Sequence[int], metrics: Metrics, context: SelectionContext
) -> Posterior:
    """Each seed's mean, shrunk to what other layers say of its kind, or to the layer's average."""
    priors = list[Prior | None]()
    if learned.pool.shares:
        priors = [learned.prior(seed, _kind(seed, metrics, context)) for seed in viable]
    elif (columns := learned.columns(viable)) and not any(map(_PENDING, metrics.values())):
        return _alone(*columns)
    rows = learned.rows()
    average = _average([row[0] for row in rows.values()])
    records = [metrics.get(seed) for seed in viable]
    waiting = [record.pending if record else 0 for record in records]
    means, trials = [], []
    for at, seed in enumerate(viable):
        row, prior = rows.get(seed), priors[at] if priors else None
        centre, weight = (prior.mean, prior.weight) if prior else (average, _OWN)
        if row is not None:
            mean, known, _ = row
            known += weight
            means.append(mean + (centre - mean) * weight / known)
            trials.append(known + waiting[at])
            continue
        # Chosen, but nothing heard of it: less promising at each try; average if nobody knows it.
        waiting[at] = max(waiting[at], _lost(records[at]))
        if prior is None and not waiting[at]:
            weight = 0.0
        means.append(centre)
        trials.append(weight + waiting[at])
    return Posterior(means, trials, priors)


def _alone(means: Sequence[float], counts: Sequence[float]) -> Posterior:
    """The same for a layer that knows only itself, but all of itself: most choices, and faster."""
    average, trials = _average(means), [count + _OWN for count in counts]
    shrunk = [
        mean + (average - mean) * _OWN / count for mean, count in zip(means, trials, strict=True)
    ]
    return Posterior(shrunk, trials, [])


def _lost(record: SeedStatistics | None) -> int:
    return record.total_activations - record.outcomes if record else 0


def known_kinds(
    strategy: SelectionStrategy,
    viable: Sequence[int],
    metrics: Metrics,
    context: SelectionContext,
) -> Collection[int]:
    """The viable seeds whose kind other layers know; none once the layer could know for itself."""
    learned = beliefs_of(strategy, metrics, context)
    if not learned.pool.shares:
        return ()
    if sum([seed.outcomes for seed in metrics.values()]) >= _PATIENCE * len(viable):
        return ()
    return [seed for seed in viable if learned.prior(seed, _kind(seed, metrics, context))]


def _kind(seed_idx: int, metrics: Metrics, context: SelectionContext) -> str:
    blueprint = context.blueprints.get(seed_idx)
    if blueprint is None:
        blueprint = getattr(metrics.get(seed_idx), "blueprint", "")
    return kind_of(context.layer_type, blueprint)


def _average(means: Sequence[float]) -> float:
    if not means:
        return 0.0
    # Deviations from one of the means: equal rewards then differ by exactly nothing.
    first = means[0]
    return first + sum([mean - first for mean in means]) / len(means)


def _sentence(
    at: int,
    posterior: Posterior,
    outcomes: int,
    noise: float,
    since: int,
    layer_type: str,
) -> str:
    prior = posterior.priors[at] if posterior.priors else None
    if not outcomes and prior is None:
        return "not ruled out: no outcome yet"
    rivals = [
        mean
        for place, mean in enumerate(posterior.means)
        if place != at and posterior.trials[place]
    ]
    ahead = (posterior.means[at] - max(rivals)) / noise if rivals else 0.0
    if not rivals:
        lead = "the only one with a mean"
    elif ahead < 0:
        lead = f"not ruled out: {-ahead:.1f} sd behind"
    else:
        lead = f"best mean by {ahead:.1f} sd" if isfinite(noise) else "as good as any"
    lead += _basis(outcomes, prior, layer_type)
    if not 0 <= since < _FRESH * len(posterior.means):
        return lead
    ago = f", {tried(since)} ago" if since else ""
    return f"{lead}; restarted after a change{ago}"


def _basis(outcomes: int, prior: Prior | None, layer_type: str) -> str:
    here = f" over {tried(outcomes)}" if outcomes else " (untried here"
    if prior is None:
        return here
    kind = f"{layer_type} layer" if layer_type else "layer"
    pooled = f"pooled from {prior.layers} other {kind}{'s' if prior.layers > 1 else ''}"
    return f"{here} here, {pooled}" if outcomes else f"{here}, {pooled})"
