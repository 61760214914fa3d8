"""Sliding-window Thompson sampling: posteriors from the layer's latest outcomes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.services.tamiyo.randomness import Draws
from esper.services.tamiyo.strategies._base import (
    Metrics,
    SelectionStrategy,
    others,
    pick_best,
    require_number,
)
from esper.services.tamiyo.strategies._forgetting import Windowed
from esper.services.tamiyo.strategies._learned import learned_as, require_whole, standing
from esper.services.tamiyo.strategies._posteriors import (
    BestDraw,
    Parameters,
    beta_posterior,
    draw,
    gaussian_posterior,
)
from esper.services.tamiyo.strategies._reasons import draw_reason

_POSTERIORS = ("beta", "gaussian")


@final
@dataclass(frozen=True)
class SlidingThompson(SelectionStrategy):
    """Draw from every seed's posterior over the layer's last outcomes; take the highest draw.

    ``n`` counts the seed's outcomes among the last ``window`` of the layer, ``z`` is their mean in
    standard deviations of the rewards about their seeds' means. A seed without any there is drawn
    from the prior. A choice whose outcome has not come counts as a trial.

    Args:
        window: Outcomes of the layer that count, a whole number >= 2; several times the number of
            seeds. Each takes 16 bytes.
        posterior: ``"gaussian"``: Normal with mean ``z * n / (n + prior_count)`` and standard
            deviation ``1 / sqrt(n + prior_count)``; or ``"beta"``: ``n * Phi(z)`` successes and the
            rest failures, after ``prior_count`` of each.
        prior_count: Average outcomes assumed beforehand, > 0.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Trovo, Paladino, Restelli & Gatti (2020), Sliding-Window Thompson Sampling for
        Non-Stationary Settings, JAIR 68, algorithm 1 (Beta; Gaussian likewise).

    Example:
        A window of three, rewards 1, 4 and 6 of seed 0, then 9 of seed 1: means 5 and 9, noise
        2.828 (as for ``sliding_ucb``), z -/+ 0.707, ``n`` 2 and 1; posterior means
        ``-0.707 * 2 / 3`` and ``0.707 / 2``, deviations ``1 / sqrt(3)`` and ``1 / sqrt(2)``.

        >>> strategy = SlidingThompson(window=3)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (0, 6.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> found = strategy.posteriors([0, 1], {}, learned)
        >>> [[round(value, 3) for value in own] for own in found.values()]
        [[-0.471, 0.577], [0.354, 0.707]]
    """

    name: ClassVar[str] = "sliding_thompson"
    window: int = 300
    posterior: Literal["beta", "gaussian"] = "gaussian"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        require_whole("sliding_thompson.window", self.window, 2)
        require_number("sliding_thompson.prior_count", self.prior_count, above=0)
        if self.posterior not in _POSTERIORS:
            raise ConfigError(
                unknown_name("sliding_thompson.posterior", self.posterior, _POSTERIORS)
            )

    @override
    def begin(self, layer_name: str) -> Windowed:
        return Windowed(self.window)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = learned_as(Windowed, self.knowledge(metrics))
        posteriors = self.posteriors(sorted(viable), metrics, learned)
        scores = {
            seed: draw(self.posterior, parameters, rng) for seed, parameters in posteriors.items()
        }
        chosen, _ = pick_best(scores, rng)
        return chosen, SelectionReason(
            "sliding_thompson",
            chosen,
            scores[chosen],
            scores,
            BestDraw(self.posterior, tuple(posteriors.items())),
            partial(
                draw_reason,
                self.posterior,
                posteriors[chosen],
                scores[chosen],
                len(scores),
                learned.evidence(chosen),
            ),
            False,
            others(viable, chosen),
        )

    def posteriors(
        self, viable: Sequence[int], metrics: Metrics, learned: Windowed
    ) -> dict[int, Parameters]:
        """The parameters of each seed's posterior."""
        standings = standing(viable, metrics, learned.means(), learned.noise())
        if self.posterior == "gaussian":
            return {
                seed: gaussian_posterior(z, trials, self.prior_count)
                for seed, (z, trials) in standings.items()
            }
        prior = (self.prior_count, self.prior_count)
        return {seed: beta_posterior(z, trials, prior) for seed, (z, trials) in standings.items()}
