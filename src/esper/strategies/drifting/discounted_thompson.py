"""Discounted Thompson sampling: posteriors in which older rewards count less."""

from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.strategies.drifting.forgetful import ForgetfulThompson, Posterior
from esper.strategies.drifting.forgetting import Discounted, Forgetting
from esper.strategies.scoring import require_number


@final
@dataclass(frozen=True)
class DiscountedThompson(ForgetfulThompson):
    """Draw from every seed's discounted posterior and take the highest draw.

    Each outcome of the layer weighs ``discount`` times as much as the next. ``n`` is the sum of a
    seed's weights and ``z`` its discounted mean, in standard deviations of the rewards about their
    seeds' means: a seed that is left alone falls back to the prior and is drawn widely again. A
    choice whose outcome has not come counts as a trial.

    Args:
        discount: Weight of an outcome relative to the layer's next, in (0, 1].
        posterior: ``"gaussian"``: Normal with mean ``z * n / (n + prior_count)`` and standard
            deviation ``1 / sqrt(n + prior_count)``; or ``"beta"``: ``n * Phi(z)`` successes and the
            rest failures, after ``prior_count`` of each.
        prior_count: Average outcomes assumed beforehand, > 0.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Raj & Kalyani (2017), Taming Non-stationary Bandits: A Bayesian Approach, algorithm 1 (Beta;
        Gaussian likewise).

    Example:
        Discount 0.5, rewards 1 and 4 of seed 0, then 9 of seed 1: ``n`` 0.75 and 1, means 3 and 9,
        noise 3.228 (as for ``discounted_ucb``), so z is -/+ 0.929; means ``-0.929 * 0.75 / 1.75``
        and ``0.929 / 2``, deviations ``1 / sqrt(1.75)`` and ``1 / sqrt(2)``.

        >>> strategy = DiscountedThompson(discount=0.5)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> found = strategy.posteriors([0, 1], {}, learned)
        >>> [[round(value, 3) for value in own] for own in found.values()]
        [[-0.398, 0.756], [0.465, 0.707]]
    """

    when: ClassVar[str] = "as discounted_ucb, and choices should be drawn"
    name: ClassVar[str] = "discounted_thompson"
    memory: ClassVar[type[Forgetting]] = Discounted
    discount: float = 0.995
    posterior: Posterior = "gaussian"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        require_number("discounted_thompson.discount", self.discount, above=0, at_most=1)
        self.check_posterior()

    @override
    def begin(self, layer_name: str) -> Discounted:
        return Discounted(self.discount)
