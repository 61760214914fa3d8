"""Sliding-window Thompson sampling: posteriors from the layer's latest outcomes alone."""

from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.strategies.drifting.forgetful import ForgetfulThompson, Posterior
from esper.strategies.drifting.forgetting import Forgetting, Windowed
from esper.strategies.learned import require_whole


@final
@dataclass(frozen=True)
class SlidingThompson(ForgetfulThompson):
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

    when: ClassVar[str] = "as sliding_ucb, and choices should be drawn"
    name: ClassVar[str] = "sliding_thompson"
    memory: ClassVar[type[Forgetting]] = Windowed
    window: int = 300
    posterior: Posterior = "gaussian"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        require_whole("sliding_thompson.window", self.window, 2)
        self.check_posterior()

    @override
    def begin(self, layer_name: str) -> Windowed:
        return Windowed(self.window)
