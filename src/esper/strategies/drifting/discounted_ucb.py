"""Discounted UCB: an upper bound from rewards of which older ones count less."""

from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.strategies.drifting.forgetful import ForgetfulUCB
from esper.strategies.drifting.forgetting import Discounted, Forgetting
from esper.strategies.scoring import require_number


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

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Garivier & Moulines (2011), On Upper-Confidence Bound Policies for Switching Bandit
        Problems, algorithm 1.

    Example:
        Discount 0.5, rewards 1 and 4 of seed 0, then 9 of seed 1: ``N`` 0.75 and 1, means 3 and 9,
        centre 6. The one surprise is 3, squared and halved 4.5; total variance 49 / 3; noise
        ``sqrt((4.5 + 49 / 3) / 2) = 3.23``. Scores ``-3 / 3.23 + sqrt(0.5 * ln(1.75) / 0.75)`` and
        ``3 / 3.23 + sqrt(0.5 * ln(1.75))``.

        >>> strategy = DiscountedUCB(exploration_constant=0.5, discount=0.5)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> [round(score, 3) for score in strategy.scores([0, 1], {}, learned).values()]
        [-0.319, 1.458]
    """

    when: ClassVar[str] = "rewards drift all the time, and about how fast is known"
    name: ClassVar[str] = "discounted_ucb"
    memory: ClassVar[type[Forgetting]] = Discounted
    exploration_constant: float = 0.5
    discount: float = 0.995

    def __post_init__(self) -> None:
        require_number("discounted_ucb.exploration_constant", self.exploration_constant, above=0)
        require_number("discounted_ucb.discount", self.discount, above=0, at_most=1)

    @override
    def begin(self, layer_name: str) -> Discounted:
        return Discounted(self.discount)
