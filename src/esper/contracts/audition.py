"""Audition: what seeds that trained side by side earned, and what seeds are expected to earn."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import erfc, exp, pi, sqrt
from typing import Literal

Arm = tuple[str, int]
"""Layer and seed."""

Mode = Literal["auto", "always", "never"]
"""When seeds audition: where the strategy is not sure, at every graft, at none."""

FADING = 0.85
"""Worth of a layer's seeds after one kernel there, relative to what it was."""

PRICE = 0.2
"""Expected gain, relative to what an average seed earns, for which a rival auditions: an epoch of a
kernel in the shadow costs about 0.65 epochs of the host, a graft with an epoch there and one of
blending about three."""

DRAWN = 0.5
"""Part of their standard deviations with which worths are drawn: with the whole of it, of fifty
arms forty choices would try nearly all, and with none of it one kind would be taken for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Counterfactual of a seed's kernel at the end of its training in the shadow, and its cohort's.

    Attributes:
        point: Id of the audition, unique within a store.
        gain: Held-out loss without the kernel less that with it; > 0 means that it helps.
        stderr: Paired standard error of ``gain``.
        mean: Mean gain of the cohort, this seed included.
        noise: Mean standard error of the cohort's gains.
        cohort: Number of seeds that were measured.
    """

    point: str
    gain: float
    stderr: float
    mean: float
    noise: float
    cohort: int

    @property
    def relative(self) -> float:
        """Gain less the cohort's mean."""
        return self.gain - self.mean


@dataclass(frozen=True, slots=True)
class Worths:
    """What seeds are expected to earn, relative to an average seed of the run at that moment.

    Attributes:
        arms: Layer and seed of each, n of them.
        means: Posterior mean of each.
        covariance: Posterior covariance, (n, n).
        starved: Those that had less than their least share of the choices.
        choices: Choices of these layers so far, all runs of the history together.
        noise: Variance of what an audition says of one worth.
    """

    arms: tuple[Arm, ...]
    means: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    starved: tuple[Arm, ...] = ()
    choices: int = 0
    noise: float = 0.0

    @property
    def best(self) -> int:
        """Place of the highest mean."""
        return max(range(len(self.arms)), key=self.means.__getitem__)

    def sd(self, at: int) -> float:
        """Standard deviation of the worth at a place."""
        return sqrt(max(self.covariance[at][at], 0.0))

    def scaled(self, factors: Mapping[str, float]) -> "Worths":
        """Worths times a factor for each layer, >= 0; 1 where none is given."""
        by = [factors.get(layer, 1.0) for layer, _ in self.arms]
        rows = zip(by, self.covariance, strict=True)
        return Worths(
            self.arms,
            tuple([mean * factor for mean, factor in zip(self.means, by, strict=True)]),
            tuple([tuple([a * b * c for b, c in zip(by, row, strict=True)]) for a, row in rows]),
            self.starved,
            self.choices,
            self.noise,
        )

    def cohort(self, price: float = PRICE) -> list[Arm]:
        """Arms that should train side by side before one is chosen; empty if one is clearly best.

        The one whose mean is the highest, and every rival that is starved, or expected to beat it
        by more than an audition costs. Of the variance ``v`` of their difference an audition of
        both, with noise ``n`` each, resolves ``d² = v² / (v + 2 n)``. The expected gain is
        ``d (phi(z) - z (1 - Phi(z)))`` for a rival that is ``z`` times ``d`` behind.

        Args:
            price: That cost, relative to what an average seed earns.

        Source:
            Gupta & Miescke (1996), Bayesian look ahead one-stage sampling allocations for selection
            of the best population, Journal of Statistical Planning and Inference 54; Frazier,
            Powell & Dayanik (2009), The knowledge-gradient policy for correlated normal beliefs,
            INFORMS Journal on Computing 21, section 2.

        Example:
            The second is expected to gain 0.27, being 0.3 standard deviations behind; the
            third nothing.

            >>> arms = (("fc1", 0), ("fc1", 1), ("fc2", 0))
            >>> covariance = ((0.36, 0.0, 0.0), (0.0, 0.64, 0.0), (0.0, 0.0, 0.01))
            >>> Worths(arms, (1.0, 0.7, 0.1), covariance).cohort()
            [('fc1', 0), ('fc1', 1)]
        """
        if not self.arms:
            return []
        best = self.arms[self.best]
        rivals = [
            arm
            for at, arm in enumerate(self.arms)
            if self._gain(at) > price or (arm in self.starved and arm != best)
        ]
        return [best, *rivals] if rivals else []

    def _gain(self, at: int) -> float:
        best = self.best
        variance = self.covariance[at][at] + self.covariance[best][best]
        variance -= 2 * self.covariance[at][best]
        if at == best or variance <= 0:
            return 0.0
        spread = variance / sqrt(variance + 2 * self.noise)
        behind = (self.means[best] - self.means[at]) / spread
        density = exp(-behind * behind / 2) / sqrt(2 * pi)
        return spread * (density - behind * erfc(behind / sqrt(2)) / 2)


NO_WORTHS = Worths((), (), ())
