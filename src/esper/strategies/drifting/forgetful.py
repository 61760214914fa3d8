"""UCB and Thompson sampling with discounted or sliding-window means, for rewards that drift."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final, get_args

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.drifting.forgetting import Discounted, Forgetting, Windowed
from esper.strategies.posteriors import (
    BestDraw,
    Parameters,
    beta_posterior,
    draw,
    gaussian_posterior,
)
from esper.strategies.reasons import bound_reason, draw_reason
from esper.strategies.scoring import draw_best, pick_best

Posterior = Literal["beta", "gaussian"]


class ForgetfulUCB(SelectionStrategy, ABC):
    """Upper confidence bound on the means of a `Forgetting` memory.

    Attributes:
        memory: Class of the knowledge that `begin` makes.
        exploration_constant: ``c``, > 0, inside the root.
    """

    memory: ClassVar[type[Forgetting]]
    exploration_constant: float

    @abstractmethod
    @override
    def begin(self, layer_name: str) -> Forgetting: ...

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        learned = self.knowledge(metrics, self.memory)
        means, scores = learned.upper_bounds(viable, metrics, self.exploration_constant)
        chosen, chances = draw_best(scores, rng)
        why = partial(bound_reason, chosen, means, scores, learned.evidence(chosen))
        return self.chosen(chosen, scores, chances, why)


class ForgetfulThompson(SelectionStrategy, ABC):
    """Thompson sampling with the means of a `Forgetting` memory.

    ``gaussian``: Normal with mean ``z * n / (n + prior_count)`` and standard deviation
    ``1 / sqrt(n + prior_count)``. ``beta``: ``n * Phi(z)`` successes and the rest failures, after
    ``prior_count`` of each.

    Attributes:
        memory: Class of the knowledge that `begin` makes.
        posterior: ``"gaussian"`` or ``"beta"``.
        prior_count: Average outcomes assumed beforehand, > 0.
    """

    memory: ClassVar[type[Forgetting]]
    posterior: Posterior
    prior_count: float

    @abstractmethod
    @override
    def begin(self, layer_name: str) -> Forgetting: ...

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        learned = self.knowledge(metrics, self.memory)
        posteriors = self.posteriors(sorted(viable), metrics, learned)
        scores = {seed: draw(self.posterior, own, rng) for seed, own in posteriors.items()}
        chosen, _ = pick_best(scores, rng)
        drawn = posteriors[chosen], scores[chosen], len(scores), learned.evidence(chosen)
        chances = BestDraw(self.posterior, tuple(posteriors.items()))
        return self.chosen(chosen, scores, chances, partial(draw_reason, self.posterior, *drawn))

    def posteriors(
        self, viable: Seeds, metrics: Metrics, learned: Forgetting
    ) -> dict[int, Parameters]:
        """Parameters of each seed's posterior, in standard deviations of the noise."""
        found, prior = learned.means_and_trials(viable, metrics), self.prior_count
        if self.posterior == "gaussian":
            return {seed: gaussian_posterior(*own, prior) for seed, own in found.items()}
        return {seed: beta_posterior(*own, (prior, prior)) for seed, own in found.items()}

    def require_posterior(self) -> None:
        """Refuse a posterior or a prior that is out of range."""
        self.require("prior_count", above=0)
        self.require_one_of("posterior", get_args(Posterior))


@final
@dataclass(frozen=True)
class DiscountedUCB(ForgetfulUCB):
    """Score a seed by ``z + sqrt(c * ln(sum of N) / N)``, ``N`` and the mean being discounted.

    Each outcome of the layer weighs ``discount`` times as much as the next, so that ``N`` of a seed
    left alone shrinks and its bound grows until it is tried again. ``z`` is the discounted mean in
    standard deviations of the rewards about their seeds' means. A choice whose outcome has not come
    counts as a trial.

    Args:
        exploration_constant: ``c``, > 0, inside the root.
        discount: Weight of an outcome relative to the layer's next, in (0, 1]; about
            ``1 / (1 - discount)`` outcomes count, and at 1 all that ever were.

    Source:
        Garivier & Moulines (2011), On Upper-Confidence Bound Policies for Switching Bandit
        Problems, algorithm 1.

    Example:
        Discount 0.5, rewards 1 and 4 of seed 0, then 9 of seed 1: ``N`` 0.75 and 1, means 3 and 9,
        centre 6. The one surprise is 3, squared and halved 4.5; total variance 49 / 3; noise
        ``sqrt((4.5 + 49 / 3) / 2) = 3.23``. Scores ``-3 / 3.23 + sqrt(0.5 * ln(1.75) / 0.75)`` and
        ``3 / 3.23 + sqrt(0.5 * ln(1.75))``.

        >>> learned = DiscountedUCB(discount=0.5).begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> means, bounds = learned.upper_bounds([0, 1], {}, 0.5)
        >>> [round(bound, 3) for bound in bounds.values()]
        [-0.319, 1.458]
    """

    name = "discounted_ucb"
    when = "rewards drift all the time, and about how fast is known"
    memory = Discounted
    exploration_constant: float = 0.5
    discount: float = 0.995

    def __post_init__(self) -> None:
        self.require("exploration_constant", above=0)
        self.require("discount", above=0, at_most=1)

    @override
    def begin(self, layer_name: str) -> Discounted:
        return Discounted(self.discount)


@final
@dataclass(frozen=True)
class SlidingUCB(ForgetfulUCB):
    """Score a seed by ``z + sqrt(c * ln(min(t, window)) / n)`` over the layer's latest outcomes.

    ``n`` and the mean are those of the seed's outcomes among the last ``window`` of the layer,
    ``t`` the outcomes ever, ``z`` as for `DiscountedUCB`. A seed without an outcome in the window
    is tried next. A choice whose outcome has not come counts as a trial.

    Args:
        exploration_constant: ``c``, > 0, inside the root.
        window: Outcomes of the layer that count, a whole number >= 2; several times the number of
            seeds. Each takes 16 bytes.

    Source:
        Garivier & Moulines (2011), On Upper-Confidence Bound Policies for Switching Bandit
        Problems, algorithm 2.

    Example:
        A window of three, rewards 1, 4 and 6 of seed 0, then 9 of seed 1: 1 has left the window,
        so ``n`` is 2 and 1, the means 5 and 9, centre 7. Surprises: 4 after 1, ``9 / 2``; 6 after
        1 and 4, ``12.25 * 2 / 3``; total variance ``34 / 3``; noise
        ``sqrt((4.5 + 8.167 + 11.333) / 3) = 2.828``. Scores ``-0.707 + sqrt(0.5 * ln(3) / 2)`` and
        ``0.707 + sqrt(0.5 * ln(3))``.

        >>> learned = SlidingUCB(window=3).begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (0, 6.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> means, bounds = learned.upper_bounds([0, 1], {}, 0.5)
        >>> [round(bound, 3) for bound in bounds.values()]
        [-0.183, 1.448]
    """

    name = "sliding_ucb"
    when = "what is older than a window should not count at all"
    memory = Windowed
    exploration_constant: float = 0.7
    window: int = 300

    def __post_init__(self) -> None:
        self.require("exploration_constant", above=0)
        self.require("window", at_least=2, whole=True)

    @override
    def begin(self, layer_name: str) -> Windowed:
        return Windowed(self.window)


@final
@dataclass(frozen=True)
class DiscountedThompson(ForgetfulThompson):
    """Draw from every seed's discounted posterior and take the highest draw.

    ``n`` is the sum of a seed's weights and ``z`` its discounted mean, as for `DiscountedUCB`: a
    seed that is left alone falls back to the prior and is drawn widely again. A choice whose
    outcome has not come counts as a trial.

    Args:
        discount: Weight of an outcome relative to the layer's next, in (0, 1].
        posterior: ``"gaussian"`` or ``"beta"``, as for `ForgetfulThompson`.
        prior_count: Average outcomes assumed beforehand, > 0.

    Source:
        Raj & Kalyani (2017), Taming Non-stationary Bandits: A Bayesian Approach, algorithm 1 (Beta;
        Gaussian likewise).

    Example:
        The outcomes of `DiscountedUCB`: ``n`` 0.75 and 1, z -/+ ``3 / 3.23 = 0.929``; means
        ``-0.929 * 0.75 / 1.75`` and ``0.929 / 2``, deviations ``1 / sqrt(1.75)`` and
        ``1 / sqrt(2)``.

        >>> strategy = DiscountedThompson(discount=0.5)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> found = strategy.posteriors([0, 1], {}, learned)
        >>> [[round(value, 3) for value in own] for own in found.values()]
        [[-0.398, 0.756], [0.465, 0.707]]
    """

    name = "discounted_thompson"
    when = "as discounted_ucb, and choices should be drawn"
    memory = Discounted
    discount: float = 0.995
    posterior: Posterior = "gaussian"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        self.require("discount", above=0, at_most=1)
        self.require_posterior()

    @override
    def begin(self, layer_name: str) -> Discounted:
        return Discounted(self.discount)


@final
@dataclass(frozen=True)
class SlidingThompson(ForgetfulThompson):
    """Draw from every seed's posterior over the layer's last outcomes; take the highest draw.

    ``n`` counts the seed's outcomes among the last ``window`` of the layer, ``z`` is their mean, as
    for `SlidingUCB`. A seed without any there is drawn from the prior. A choice whose outcome has
    not come counts as a trial.

    Args:
        window: Outcomes of the layer that count, a whole number >= 2; several times the number of
            seeds. Each takes 16 bytes.
        posterior: ``"gaussian"`` or ``"beta"``, as for `ForgetfulThompson`.
        prior_count: Average outcomes assumed beforehand, > 0.

    Source:
        Trovo, Paladino, Restelli & Gatti (2020), Sliding-Window Thompson Sampling for
        Non-Stationary Settings, JAIR 68, algorithm 1 (Beta; Gaussian likewise).

    Example:
        The outcomes of `SlidingUCB`: z -/+ 0.707, ``n`` 2 and 1; posterior means
        ``-0.707 * 2 / 3`` and ``0.707 / 2``, deviations ``1 / sqrt(3)`` and ``1 / sqrt(2)``.

        >>> strategy = SlidingThompson(window=3)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (0, 6.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> found = strategy.posteriors([0, 1], {}, learned)
        >>> [[round(value, 3) for value in own] for own in found.values()]
        [[-0.471, 0.577], [0.354, 0.707]]
    """

    name = "sliding_thompson"
    when = "as sliding_ucb, and choices should be drawn"
    memory = Windowed
    window: int = 300
    posterior: Posterior = "gaussian"
    prior_count: float = 1.0

    def __post_init__(self) -> None:
        self.require("window", at_least=2, whole=True)
        self.require_posterior()

    @override
    def begin(self, layer_name: str) -> Windowed:
        return Windowed(self.window)
