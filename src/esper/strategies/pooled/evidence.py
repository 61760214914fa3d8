"""IMED index of posterior means: evidence against a seed, plus the logarithm of its trials.

The index of a seed, in nats; the smallest is the next to be tried:

    I = gap^2 / (2 s^2 (1/n + 1/n*)) + c * phi(n)

``gap`` is the distance of its mean from the best one, ``s`` the standard deviation of a reward
about its seed's mean, ``n`` its trials, ``n*`` those of the best. The first term is the evidence
against the seed: the logarithm of how unlikely the gap would be if both were alike. The second is
``ln n``, and rises more slowly beyond a horizon, after which further knowledge cannot pay off.

Honda & Takemura (2015), Non-Asymptotic Analysis of a New Bandit Algorithm for Semi-Bounded Rewards,
JMLR 16, algorithm 1 (IMED: ``n * K + ln n``); Lai (1987), Adaptive Treatment Allocation and the
Multi-Armed Bandit Problem, Annals of Statistics 15, section 2 (bounds that depend on the horizon).
"""

from collections.abc import Sequence
from math import inf, isfinite, log
from typing import NamedTuple, final

from esper.strategies.base import Metrics, Seeds, SelectionContext, blueprint_of
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.pooling import Prior, kind_of
from esper.strategies.scoring import count_in_words, pending_of

_SLOW = 0.05
"""Slope of ``phi`` beyond the horizon, relative to that of ``ln``."""

_OWN = 1.0
"""Weight of the layer's average as a prior, in outcomes, where other layers give none."""

_FRESH = 10
"""Outcomes per seed after a restart in which the sentence mentions it."""

_PATIENCE, _LATEST = 20, 100
"""Outcomes of a layer, per viable seed, after which it is no longer young; choices of a layer by
which each seed has had its first try."""


@final
class PosteriorMeans(NamedTuple):
    """Posterior means of the viable seeds, in their order.

    Attributes:
        means: Posterior mean reward of each.
        trials: Outcomes that it is worth, and choices whose outcome has not come.
        priors: Prior of each from other layers; empty if there are none.
    """

    means: list[float]
    trials: list[float]
    priors: list[Prior | None]


def imed_scores(
    means: Sequence[float],
    trials: Sequence[float],
    scale: float,
    exploration: float,
    horizon: float,
) -> list[float]:
    """Negative index of every seed, so that the highest is chosen as with other strategies.

    Args:
        means: Mean reward of each seed; that of a seed without trials does not matter.
        trials: Outcomes that each mean is worth, >= 0; without, the score is inf.
        scale: Standard deviation of a reward about its seed's mean; inf if rewards do not differ.
        exploration: ``c``, > 0.
        horizon: Trials beyond which ``phi`` is nearly flat, >= 1.

    Example:
        Means 0.3 and 0.1, 12 and 3 outcomes, a standard deviation of 0.2: indices ``ln 12`` and
        ``1 / (2 (1/3 + 1/12)) + ln 3``. The second seed is not ruled out; four more outcomes of
        the first one would not rule it out either.

        >>> [round(score, 3) for score in imed_scores([0.3, 0.1], [12.0, 3.0], 0.2, 1.0, 250.0)]
        [-2.485, -2.299]

        Ten times as many trials add 2.303 to the second term, beyond the horizon a twentieth.

        >>> found = imed_scores([0.0] * 4, [10.0, 100.0, 250.0, 2500.0], 0.2, 1.0, 250.0)
        >>> round(found[0] - found[1], 3), round(found[2] - found[3], 3)
        (2.303, 0.115)
    """
    if 0.0 in trials:
        scores = [inf] * len(trials)
        if tried := [at for at, count in enumerate(trials) if count]:
            own = [means[at] for at in tried], [trials[at] for at in tried]
            for at, score in zip(
                tried, imed_scores(*own, scale, exploration, horizon), strict=True
            ):
                scores[at] = score
        return scores
    top = max(means)
    spread = 1 / trials[means.index(top)]
    unit = 2**0.5 * scale
    spent = [log(count) for count in trials]
    if max(trials) > horizon:
        knee = log(horizon)
        spent = [value if value <= knee else knee + _SLOW * (value - knee) for value in spent]
    return [
        -((gap := (top - mean) / unit) * gap / (1 / count + spread) + exploration * known)
        for mean, count, known in zip(means, trials, spent, strict=True)
    ]


def posterior_means(
    learned: Beliefs, viable: Seeds, metrics: Metrics, context: SelectionContext
) -> PosteriorMeans:
    """Mean of each seed, shrunk to its prior from other layers, or to the layer's average."""
    priors = list[Prior | None]()
    if learned.pool.shares:
        priors = [_prior(learned, seed, metrics, context) for seed in viable]
    elif (columns := learned.columns(viable)) and not any(pending_of(metrics)):
        return _without_priors(*columns)
    rows = learned.rows()
    average = _average([row[0] for row in rows.values()])
    means, trials = [], []
    for at, seed in enumerate(viable):
        record, prior = metrics.get(seed), priors[at] if priors else None
        pending = record.pending if record else 0
        centre, weight = (prior.mean, prior.weight) if prior else (average, _OWN)
        if seed in rows:
            mean, known, _ = rows[seed]
            known += weight
            means.append(mean + (centre - mean) * weight / known)
        else:
            # Chosen, but without an outcome: less promising at each try. Never chosen, and no
            # prior: no trials.
            if record:
                pending = max(pending, record.total_activations - record.outcomes)
            known = weight if prior or pending else 0.0
            means.append(centre)
        trials.append(known + pending)
    return PosteriorMeans(means, trials, priors)


def known_elsewhere(
    learned: Beliefs, viable: Seeds, metrics: Metrics, context: SelectionContext
) -> Seeds:
    """Viable seeds that have a prior; empty once their layer is no longer young."""
    if not learned.pool.shares or not is_young(viable, metrics):
        return ()
    return [seed for seed in viable if _prior(learned, seed, metrics, context)]


def is_young(viable: Seeds, metrics: Metrics) -> bool:
    """True while a layer has fewer than 20 outcomes for each seed, and can try all by the 100th."""
    seen = sum([seed.outcomes for seed in metrics.values()])
    return seen < min(_PATIENCE * len(viable), _LATEST - len(viable))


def evidence_reason(
    at: int, posterior: PosteriorMeans, outcomes: int, noise: float, since: int, layer_type: str
) -> str:
    """Sentence on the chosen seed: its lead, the outcomes behind it, the last restart.

    Args:
        at: Place of the seed among the viable ones.
        posterior: Posterior means of all.
        outcomes: Outcomes of the seed itself.
        noise: Standard deviation of rewards about their seeds' means.
        since: Outcomes of the layer since the last restart; -1 without one.
        layer_type: As in the context.
    """
    prior = posterior.priors[at] if posterior.priors else None
    if not outcomes and prior is None:
        return "not ruled out: no outcome yet"
    rows = enumerate(zip(posterior.means, posterior.trials, strict=True))
    rivals = [mean for place, (mean, trials) in rows if place != at and trials]
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
    ago = f", {count_in_words(since)} ago" if since else ""
    return f"{lead}; restarted after a change{ago}"


def _without_priors(means: Sequence[float], counts: Sequence[float]) -> PosteriorMeans:
    """Posterior means of a layer all of whose seeds have outcomes: most choices, and faster."""
    average, trials = _average(means), [count + _OWN for count in counts]
    rows = zip(means, trials, strict=True)
    return PosteriorMeans([mean + (average - mean) * _OWN / n for mean, n in rows], trials, [])


def _prior(
    learned: Beliefs, seed_idx: int, metrics: Metrics, context: SelectionContext
) -> Prior | None:
    blueprint = blueprint_of(metrics, context, seed_idx)
    return learned.prior(seed_idx, kind_of(context.layer_type, blueprint))


def _average(means: Sequence[float]) -> float:
    if not means:
        return 0.0
    # Deviations from one of the means: equal rewards then differ by exactly nothing.
    first = means[0]
    return first + sum([mean - first for mean in means]) / len(means)


def _basis(outcomes: int, prior: Prior | None, layer_type: str) -> str:
    here = f" over {count_in_words(outcomes)}" if outcomes else " (untried here"
    if prior is None:
        return here
    kind = f"{layer_type} layer" if layer_type else "layer"
    pooled = f"pooled from {prior.layers} other {kind}{'s' if prior.layers > 1 else ''}"
    return f"{here} here, {pooled}" if outcomes else f"{here}, {pooled})"
