"""IMED over pooled posterior means: `auto`, the default, and `hierarchical`, without restarts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import final

import numpy as np
from typing_extensions import override

from esper.contracts.audition import DRAWN, Arm, Worths
from esper.strategies.base import (
    Choice,
    Draws,
    Layers,
    Metrics,
    Seeds,
    SelectionContext,
    SelectionStrategy,
    blueprint_of,
)
from esper.strategies.pooled.evidence import (
    evidence_reason,
    imed_scores,
    is_young,
    known_elsewhere,
    posterior_means,
)
from esper.strategies.pooled.knowledge import PooledKnowledge, pairs_of
from esper.strategies.pooled.pooling import kind_of
from esper.strategies.pooled.worths import NOISE, Pair, RelativeWorths, lead_of
from esper.strategies.posteriors import BestDraw
from esper.strategies.scoring import draw_best, pick_best

_YOUNG = 0.3
"""Factor on ``exploration`` in a young layer whose kinds other layers share: they explore too."""

_HEARD = 0.03
"""The same where seeds audition: beside the best one those are heard that are not known well enough
(`Worths.cohort`), and to try one of them alone costs a graft."""

_FLOOR = 100
"""Choices of a layer of which each of its viable seeds has one at least, once worths decide."""

_STARVED = f"chosen less than once in {_FLOOR} times, which is the least"

_LEAST = 1e-6
"""Lower limit of a variance."""


@dataclass(frozen=True)
class PooledIMED(SelectionStrategy, ABC):
    """Choice by `imed_scores` of `posterior_means`."""

    least_share = 1 / _FLOOR

    exploration: float = 1.0
    horizon: float = 250.0

    def __post_init__(self) -> None:
        self.require("exploration", above=0)
        self.require("horizon", at_least=1)

    @abstractmethod
    @override
    def begin(self, layer_name: str) -> PooledKnowledge: ...

    @override
    def knows(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> Seeds:
        known = self.knowledge(metrics, PooledKnowledge, context)
        if (known.worths.taught or _promised(viable, context)) and is_young(viable, metrics):
            return viable
        return known_elsewhere(known.rewards, viable, metrics, context)

    @override
    def worths(self, layers: Layers) -> Worths:
        arms, pairs, starved, taught = list[Arm](), list[Pair](), list[Arm](), RelativeWorths()
        depths, leads, choices = dict[str, float](), dict[Pair, float](), 0
        for name, (viable, metrics, context) in layers.items():
            taught = self.knowledge(metrics, PooledKnowledge, context).worths
            arms += [(name, seed) for seed in viable]
            choices += sum([one.total_activations for one in metrics.values()])
            starved += [(name, seed) for seed in _starved(viable, metrics)]
            pairs += pairs_of(name, viable, _kinds(viable, metrics, context))
            depths |= _depth(name, context)
            leads |= _leads(name, viable, metrics, context)
        means, covariance = taught.posterior(pairs, depths, leads)
        rows = tuple([tuple(row) for row in covariance.tolist()])
        return Worths(
            tuple(arms), tuple(means.tolist()), rows, tuple(starved), choices, noise=NOISE
        )

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        known = self.knowledge(metrics, PooledKnowledge, context)
        if known.worths.taught or _promised(viable, context):
            return self._by_worth(known.worths, viable, metrics, context, rng)
        learned = known.rewards
        noise = learned.noise()
        posterior = posterior_means(learned, viable, metrics, context)
        means, trials, _ = posterior
        young = learned.pool.shares and is_young(viable, metrics)
        exploration = self.exploration * (_YOUNG if young else 1.0)
        found = imed_scores(means, trials, noise, exploration, self.horizon)
        scores = dict(zip(viable, found, strict=True))
        chosen, chances = draw_best(scores, rng)
        at, since = viable.index(chosen), learned.since if learned.restarts else -1
        seen = at, posterior, learned.outcomes(chosen), noise, since, context.layer_type
        return self.chosen(chosen, scores, chances, partial(evidence_reason, *seen))

    def _by_worth(
        self,
        worths: RelativeWorths,
        viable: Seeds,
        metrics: Metrics,
        context: SelectionContext,
        rng: Draws,
    ) -> Choice:
        """Choice by relative worths; a seed counts for as many outcomes as would know it so well.

        What the seeds of a layer share does not matter, so variances are those about their mean.
        """
        if starved := _starved(viable, metrics):
            scores = {seed: float(seed in starved) for seed in viable}
            chosen, chances = draw_best(scores, rng)
            return self.chosen(chosen, scores, chances, _STARVED)
        name = next((str(getattr(one, "layer_name", "")) for one in metrics.values()), "")
        pairs = pairs_of(name, viable, _kinds(viable, metrics, context))
        leads = _leads(name, viable, metrics, context)
        means, covariance = worths.posterior(pairs, _depth(name, context), leads)
        about = np.eye(len(viable)) - 1 / len(viable)
        variances = np.diag(about @ covariance @ about) if len(viable) > 1 else [NOISE]
        if worths.short:
            spreads = [DRAWN * sqrt(max(float(variance), _LEAST)) for variance in variances]
            drawn_from = zip(means.tolist(), spreads, strict=True)
            return self._drawn(dict(zip(viable, drawn_from, strict=True)), rng)
        trials = [NOISE / max(float(variance), _LEAST) for variance in variances]
        exploration = self.exploration * (_HEARD if is_young(viable, metrics) else 1.0)
        found = imed_scores(means.tolist(), trials, sqrt(NOISE), exploration, self.horizon)
        scores = dict(zip(viable, found, strict=True))
        chosen, chances = draw_best(scores, rng)
        at = viable.index(chosen)
        mean, sd = float(means[at]), sqrt(max(float(covariance[at, at]), 0.0))
        return self.chosen(chosen, scores, chances, partial(_worth_in_words, mean, sd, len(viable)))

    def _drawn(self, posteriors: Mapping[int, tuple[float, float]], rng: Draws) -> Choice:
        """Choice of the highest draw: the highest mean would have one kind taken for ever."""
        scores = {seed: rng.normal(mean, spread) for seed, (mean, spread) in posteriors.items()}
        chosen, _ = pick_best(scores, rng)
        chances = BestDraw("gaussian", tuple(posteriors.items()))
        seen = *posteriors[chosen], len(scores)
        return self.chosen(chosen, scores, chances, partial(_draw_in_words, *seen))


def _kinds(viable: Seeds, metrics: Metrics, context: SelectionContext) -> dict[int, str]:
    return {
        seed: kind_of(context.layer_type, blueprint_of(metrics, context, seed)) for seed in viable
    }


def _depth(name: str, context: SelectionContext) -> dict[str, float]:
    """Relative depth of a layer, if it is known."""
    depth = None if context.health is None else context.health.depth
    return {} if depth is None else {name: depth}


def _starved(viable: Seeds, metrics: Metrics) -> Seeds:
    """Seeds that had less than a hundredth of the layer's choices; auditions count as choices."""
    tries = {seed: metrics[seed].total_activations if seed in metrics else 0 for seed in viable}
    least = sum([one.total_activations for one in metrics.values()]) // _FLOOR
    return [seed for seed, count in tries.items() if count < least]


def _promised(viable: Seeds, context: SelectionContext) -> bool:
    return any(context.promise_of(seed) is not None for seed in viable)


def _leads(
    name: str, viable: Seeds, metrics: Metrics, context: SelectionContext
) -> dict[Pair, float]:
    pairs = pairs_of(name, viable, _kinds(viable, metrics, context))
    promises = zip(pairs, map(context.promise_of, viable), strict=True)
    return {pair: lead_of(promise) for pair, promise in promises if promise is not None}


def _worth_in_words(mean: float, sd: float, viable: int) -> str:
    among = f", of {viable} viable seeds" if viable > 1 else ""
    return f"worth {mean:.2f} ± {sd:.2f} times what an average seed earns now{among}"


def _draw_in_words(mean: float, spread: float, viable: int) -> str:
    return f"highest draw of {viable} viable seeds, from {mean:.2f} ± {spread:.2f}"


@final
@dataclass(frozen=True)
class Auto(PooledIMED):
    """Take the seed with the least evidence against it, relative to what was spent on it.

    The index of a seed is ``gap^2 / (2 s^2 (1/n + 1/n*)) + exploration * phi(n)``, the smallest is
    chosen: ``gap`` is the distance of its posterior mean from the best of the viable ones, ``s``
    the noise of rewards, ``n`` its outcomes, the outcomes that its prior is worth, and the choices
    whose outcome has not come; ``n*`` those of the best. The score is the negative index, in nats.

    A seed's mean is shrunk to that of its kind (layer type and blueprint) in the other layers and
    runs of the history, and needs no first try where they know it; until its layer has 20 outcomes
    for each viable seed, when all are tried, so none starves. Where no other layer has its kind,
    the layer's average counts as one outcome. Means, outcomes and noise are those since the rewards
    last changed (`Beliefs`).

    Once any run of the history has auditioned seeds, the worths that auditions taught
    (`RelativeWorths`) take the place of means: ``n`` is then the number of outcomes that would know
    a seed's worth as well, beside the others of its layer. Where a gradient pass has said what
    kernels promise (`SelectionContext.promises`), worths begin there, with or without a history,
    and need no first tries. A seed that had less than a hundredth of its layer's choices is chosen
    first, or auditions beside the best. Where runs are so short that outcomes alone taught them,
    the seed is drawn from its worth: normal, with ``DRAWN`` times its standard deviation beside the
    others of the layer.

    A factor on all rewards changes no choice; nor does a shift, unless all rewards shrink together
    (`Beliefs`) or seeds have auditioned: both compare with a reward of 0.

    Args:
        exploration: Factor on ``phi``, > 0: the evidence that is needed against a seed.
        horizon: Outcomes of a seed up to which ``phi`` is the logarithm, >= 1; beyond, it is
            nearly flat.

    Source:
        Honda & Takemura (2015), JMLR 16, algorithm 1 (IMED); Lai (1987), Annals of Statistics 15
        (the horizon); Morris (1983), JASA 78, section 1 (shrinkage); Liu, Lee & Shroff (2018),
        AAAI, algorithms 1 and 2 (restarts); the constants and what they cost are in
        docs/decisions/0016.

    Example:
        Seed 0 earned 1 and 3, seed 1 earned 1 and 2. Within seeds the squares are ``2 + 1/2``, of
        all four about their mean 2.75, so ``s^2 = (2.5 + 2.75 / 3) / 3 = 1.139``. The average of
        the two means, 1.75, counts as a third outcome of each: they are 1.917 and 1.583, a third
        apart. Of both, ``ln 3 = 1.099``; against seed 1 ``(1/9) / (2 * 1.139 * 2/3) = 0.073``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1, 3]), 1: Seed(1, "fc1", rewards=[1, 2])}
        >>> draws = Draws(0, "fc1", 4)
        >>> chosen, reason = Auto().decide([0, 1], metrics, SelectionContext(), draws)
        >>> chosen, {seed: round(score, 3) for seed, score in reason.scores.items()}
        (0, {0: -1.099, 1: -1.172})
        >>> reason.reason
        'best mean by 0.3 sd over 2 outcomes'
    """

    name = "auto"
    when = "nothing is known beforehand, steady or not; dozens of choices a layer"

    @override
    def begin(self, layer_name: str) -> PooledKnowledge:
        return PooledKnowledge()


@final
@dataclass(frozen=True)
class Hierarchical(PooledIMED):
    """Choose as `auto` does, among posterior means to which all layers contribute; no restarts.

    The mean reward of a kind in a layer is normal about the kind's mean, with a variance that is
    estimated from how much the layers differ. So a seed's mean is shrunk towards the mean of its
    kind in other layers, and less the more outcomes it has. The history is everything in the scope
    of the store: other layers, and other runs. A seed without a blueprint is learnt alone.

    Args:
        exploration: As for `Auto`.
        horizon: As for `Auto`.

    Source:
        Morris (1983), Parametric Empirical Bayes Inference, JASA 78, section 1 (shrinkage with an
        estimated variance between groups); James & Stein (1961); Hedges (1983), A Random Effects
        Model for Effect Sizes, Psychological Bulletin 93 (the variance by the method of moments).
        The index is that of `auto`.

    Example:
        A blueprint earned 1.0 in layer fc1, four times. In layer fc2, where it was never tried, it
        has a mean of 1.0 that is worth ``1 / (0.25 + (0.25 + 1/4)) = 1.333`` outcomes.

        >>> one, two = (Hierarchical().begin(name).rewards for name in ("fc1", "fc2"))
        >>> two.join(one)
        >>> for _ in range(4):
        ...     one.take(0, "Linear/glu", 1.0)
        >>> [round(number, 3) for number in two.prior(5, "Linear/glu")]  # mean, weight, layers
        [1.0, 1.333, 1]
    """

    name = "hierarchical"
    when = "many layers share blueprints, and each has few choices of its own"

    @override
    def begin(self, layer_name: str) -> PooledKnowledge:
        return PooledKnowledge(restarts=False)
