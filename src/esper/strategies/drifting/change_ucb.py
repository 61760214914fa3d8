"""UCB that starts afresh when rewards change: an upper bound from what came since."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from typing import ClassVar, Literal, final

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy
from esper.strategies.drifting.changes import Changing, Cusum, Likelihood
from esper.strategies.learned import (
    draw_best,
    learned_as,
    standing,
    upper_bounds,
    waiting,
)
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import others, require_number

_DETECTORS = ("cusum", "glr")
_RESTARTS = ("arm", "layer")


@final
@dataclass(frozen=True)
class ChangeUCB(SelectionStrategy):
    """Score a seed by ``z + sqrt(c * ln(sum of n) / n)`` over its outcomes since the last change.

    ``z`` is their mean in standard deviations of the rewards about their seeds' means. Each outcome
    of a seed is held against what the seed earned since its last change; if the odds for a change
    are large enough, the seed starts afresh with what came after it, and so, if ``restart`` is
    ``"layer"``, do the others, which keep their means but no more than 4 outcomes' worth of
    confidence. With probability ``explore`` any viable seed is taken, so that the change of one
    that looked bad is noticed. A choice whose outcome has not come counts as a trial.

    Args:
        exploration_constant: ``c``, > 0, inside the root.
        detector: ``"cusum"`` gathers evidence for a shift of ``change_size``; ``"glr"`` compares
            all ways to split the seed's record in two, and needs no size.
        change_size: Smallest shift that ``"cusum"`` looks for, in standard deviations, > 0.
        false_alarm: Chance that an outcome of a seed that did not change raises an alarm, in
            (0, 0.5]; roughly, for rewards that are about normal.
        restart: ``"arm"`` or ``"layer"``: what starts afresh.
        explore: Probability that any viable seed is taken, in [0, 1].

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Liu, Lee & Shroff (2018), A Change-Detection Based Framework for Piecewise-Stationary
        Multi-Armed Bandits, algorithms 1 and 2 (cusum); Besson, Kaufmann, Maillard & Seznec (2022),
        Efficient Change-Point Detection for Tackling Piecewise-Stationary Bandits, algorithm 1
        (glr; local and global restarts; here with normal rewards and a bounded record).

    Example:
        Rewards 1 and 3 of seed 0, then 5 of seed 1: ``n`` 2 and 1, means 2 and 5, centre 3.5. The
        one surprise is 2, squared and halved 2; total variance 4; noise ``sqrt((2 + 4) / 2)`` =
        1.732. Scores ``-1.5 / 1.732 + sqrt(ln(3) / 2)`` and ``1.5 / 1.732 + sqrt(ln(3))``.

        >>> strategy = ChangeUCB()
        >>> learned = strategy.begin("fc1")
        >>> for seed, reward in ((0, 1.0), (0, 3.0), (1, 5.0)):
        ...     learned.learn(seed, reward, None)
        >>> [round(score, 3) for score in strategy.scores([0, 1], {}, learned).values()]
        [-0.125, 1.914]

        `Cusum` and `Likelihood` have examples of a change.
    """

    when: ClassVar[str] = "rewards are steady for long, then jump"
    name: ClassVar[str] = "change_ucb"
    exploration_constant: float = 1.0
    detector: Literal["cusum", "glr"] = "cusum"
    change_size: float = 0.7
    false_alarm: float = 3e-6
    restart: Literal["arm", "layer"] = "layer"
    explore: float = 0.01

    def __post_init__(self) -> None:
        require_number("change_ucb.exploration_constant", self.exploration_constant, above=0)
        require_number("change_ucb.change_size", self.change_size, above=0)
        require_number("change_ucb.false_alarm", self.false_alarm, above=0, at_most=0.5)
        require_number("change_ucb.explore", self.explore, at_least=0, at_most=1)
        if self.detector not in _DETECTORS:
            raise ConfigError(unknown_name("change_ucb.detector", self.detector, _DETECTORS))
        if self.restart not in _RESTARTS:
            raise ConfigError(unknown_name("change_ucb.restart", self.restart, _RESTARTS))

    @override
    def begin(self, layer_name: str) -> Changing:
        layer = self.restart == "layer"
        if self.detector == "glr":
            return Likelihood(false_alarm=self.false_alarm, layer=layer)
        return Cusum(size=self.change_size, false_alarm=self.false_alarm, layer=layer)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = learned_as(Changing, self.knowledge(metrics))  # type: ignore[type-abstract]
        standings, width = self._standings(viable, metrics, learned)
        scores = upper_bounds(standings, width)
        exploring = self.explore > 0 and rng.uniform() < self.explore
        chosen, best = draw_best(scores, rng)
        if exploring:
            chosen = sorted(viable)[rng.index(len(viable))]
        even = self.explore / len(viable)
        why: str | Callable[[], str] = (
            f"taken to see whether it changed, {learned.evidence(chosen)}"
            if exploring
            else partial(bound_reason, chosen, standings, scores, learned.evidence(chosen))
        )
        return chosen, SelectionReason(
            "change_ucb",
            chosen,
            scores[chosen],
            scores,
            {seed: even + (1 - self.explore) * share for seed, share in best.items()},
            why,
            False,
            others(viable, chosen),
        )

    def scores(
        self, viable: Sequence[int], metrics: Metrics, learned: Changing
    ) -> dict[int, float]:
        """Upper bounds in standard deviations; inf where untried."""
        return upper_bounds(*self._standings(viable, metrics, learned))

    def _standings(
        self, viable: Sequence[int], metrics: Metrics, learned: Changing
    ) -> tuple[dict[int, tuple[float, float]], float]:
        known = learned.means()
        total = sum([count for count, _ in known.values()]) + waiting(metrics)
        width = self.exploration_constant * log(max(total, 1.0))
        return standing(viable, metrics, known, learned.noise()), width
