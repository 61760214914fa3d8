"""Thompson sampling: one draw from each seed's posterior, the highest is taken."""

from dataclasses import dataclass
from functools import partial
from typing import final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.posteriors import (
    POSTERIORS,
    BestDraw,
    Parameters,
    Posterior,
    beta_posterior,
    draw,
    gaussian_posterior,
    nig_posterior,
)
from esper.strategies.reasons import draw_reason
from esper.strategies.scoring import outcomes_of, pick_best, standardise


@final
@dataclass(frozen=True)
class Thompson(SelectionStrategy):
    """Draw from every seed's posterior and take the highest draw.

    ``beta``: a mean reward of ``z`` standard deviations above the mean of the layer's seeds over
    ``n`` outcomes counts as ``n * p`` successes and ``n * (1 - p)`` failures, ``p = Phi(z)``; the
    posterior is Beta(``prior_alpha`` + successes, ``prior_beta`` + failures).

    ``gaussian``: Normal with mean ``z * n / (n + prior_count)`` and standard deviation
    ``1 / sqrt(n + prior_count)``: the noise is the layer's, known.

    ``nig``: Normal-inverse-gamma: every seed has noise of its own, unknown, so a mean is Student-t
    (`nig_posterior` has the formula).

    A choice whose outcome has not come counts as one more outcome of the seed's own mean. Neither a
    shift of all rewards nor a factor on them changes a choice.

    Args:
        prior_alpha: Successes assumed beforehand by ``beta``, > 0.
        prior_beta: Failures assumed beforehand by ``beta``, > 0.
        posterior: ``"beta"``, ``"gaussian"`` or ``"nig"``.
        prior_count: Average outcomes assumed beforehand by ``gaussian`` and ``nig``, > 0.
        prior_shape: Weight of the layer's noise in a seed's own, in half outcomes, > 0; for
            ``nig``.

    Source:
        Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, algorithm 2 (Beta);
        Agrawal & Goyal (2013), Further Optimal Regret Bounds, algorithm 2 (Gaussian); Murphy
        (2007), Conjugate Bayesian Analysis of the Gaussian Distribution, section 6 (nig).

    Example:
        Rewards 1 and 3, once each: spread ``sqrt(2)``, z is -/+ 0.7071, p is 0.2398 and 0.7602; the
        posteriors are Beta(1.24, 1.76) and Beta(1.76, 1.24).

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> [(round(a, 2), round(b, 2)) for a, b in Thompson().posteriors([0, 1], metrics).values()]
        [(1.24, 1.76), (1.76, 1.24)]

        By ``nig`` with a prior of 1 and 2: kappa 2, a 2.5, ``b = 2 + 0.5 / 4``; Student-t with 5
        degrees of freedom at -/+ 0.354, scale ``sqrt(2.125 / 5) = 0.652``.

        >>> nig = Thompson(posterior="nig").posteriors([0, 1], metrics)
        >>> [round(value, 3) for value in nig[1]]
        [0.354, 0.652, 5.0]
    """

    name = "thompson"
    when = "choices should be drawn: parallel trainers, logs to be replayed"
    prior_alpha: float = 1.0
    prior_beta: float = 1.0
    posterior: Posterior = "beta"
    prior_count: float = 1.0
    prior_shape: float = 2.0

    def __post_init__(self) -> None:
        for setting in ("prior_alpha", "prior_beta", "prior_count", "prior_shape"):
            self.require(setting, above=0)
        self.require_one_of("posterior", POSTERIORS)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        posteriors = self.posteriors(sorted(viable), metrics)
        if self.posterior == "gaussian":
            rows = zip(posteriors.items(), rng.normals(len(posteriors)), strict=True)
            scores = {seed: mean + sd * one for (seed, (mean, sd)), one in rows}
        else:
            scores = {seed: draw(self.posterior, own, rng) for seed, own in posteriors.items()}
        chosen, _ = pick_best(scores, rng)
        drawn = posteriors[chosen], scores[chosen], len(scores), outcomes_of(metrics, chosen)
        chances = BestDraw(self.posterior, tuple(posteriors.items()))
        return self.chosen(chosen, scores, chances, partial(draw_reason, self.posterior, *drawn))

    def posteriors(self, viable: Seeds, metrics: Metrics) -> dict[int, Parameters]:
        """Parameters of each seed's posterior, in standard deviations of the layer."""
        centre, scale, _ = standardise(metrics)
        found = {}
        for seed in viable:
            record = metrics.get(seed)
            count = record.count if record else 0
            trials = count + record.pending if record else 0
            z = (record.mean - centre) / scale if record and count else 0.0
            if self.posterior == "gaussian":
                found[seed] = gaussian_posterior(z, trials, self.prior_count)
            elif self.posterior == "beta":
                found[seed] = beta_posterior(z, trials, (self.prior_alpha, self.prior_beta))
            else:
                # A pending choice adds a mean, and as much noise as the seed has shown so far.
                m2 = record.m2 / scale / scale if record else 0.0
                squares = m2 * trials / count if count else 0.0
                found[seed] = nig_posterior(z, trials, squares, self.prior_count, self.prior_shape)
        return found
