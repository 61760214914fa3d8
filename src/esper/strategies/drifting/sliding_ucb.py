"""Sliding-window UCB: an upper bound from the layer's latest outcomes alone."""

from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.strategies.drifting.forgetful import ForgetfulUCB
from esper.strategies.drifting.forgetting import Forgetting, Windowed
from esper.strategies.learned import require_whole
from esper.strategies.scoring import require_number


@final
@dataclass(frozen=True)
class SlidingUCB(ForgetfulUCB):
    """Score a seed by ``z + sqrt(c * ln(min(t, window)) / n)`` over the layer's latest outcomes.

    ``n`` and the mean are those of the seed's outcomes among the last ``window`` of the layer,
    ``t`` the outcomes ever. ``z`` is in standard deviations of the rewards about their seeds'
    means. A seed without an outcome in the window is tried next. A choice whose outcome has not
    come counts as a trial.

    Args:
        exploration_constant: ``c``, > 0, inside the root.
        window: Outcomes of the layer that count, a whole number >= 2; several times the number of
            seeds. Each takes 16 bytes.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Garivier & Moulines (2011), On Upper-Confidence Bound Policies for Switching Bandit
        Problems, algorithm 2.

    Example:
        A window of three, rewards 1, 4 and 6 of seed 0, then 9 of seed 1: 1 has left the window,
        so ``n`` is 2 and 1, the means 5 and 9, centre 7. Surprises: 4 after 1, ``9 / 2``; 6 after
        1 and 4, ``12.25 * 2 / 3``; total variance ``34 / 3``; noise
        ``sqrt((4.5 + 8.167 + 11.333) / 3) = 2.828``. Scores ``-0.707 + sqrt(0.5 * ln(3) / 2)`` and
        ``0.707 + sqrt(0.5 * ln(3))``.

        >>> strategy = SlidingUCB(exploration_constant=0.5, window=3)
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (0, 6.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> [round(score, 3) for score in strategy.scores([0, 1], {}, learned).values()]
        [-0.183, 1.448]
    """

    when: ClassVar[str] = "what is older than a window should not count at all"
    name: ClassVar[str] = "sliding_ucb"
    memory: ClassVar[type[Forgetting]] = Windowed
    exploration_constant: float = 0.7
    window: int = 300

    def __post_init__(self) -> None:
        require_number("sliding_ucb.exploration_constant", self.exploration_constant, above=0)
        require_whole("sliding_ucb.window", self.window, 2)

    @override
    def begin(self, layer_name: str) -> Windowed:
        return Windowed(self.window)
