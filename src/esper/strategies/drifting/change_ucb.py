"""UCB with change detection: an upper bound from the outcomes since the last change."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.drifting.changes import Changing, Cusum, Likelihood
from esper.strategies.reasons import bound_reason
from esper.strategies.scoring import draw_best


@final
@dataclass(frozen=True)
class ChangeUCB(SelectionStrategy):
    """Score a seed by ``z + sqrt(c * ln(sum of n) / n)`` over its outcomes since the last change.

    ``z`` is their mean in standard deviations of the rewards about their seeds' means. Each outcome
    of a seed is held against what the seed earned since its last change; if the odds for a change
    are large enough, the seed restarts with the outcomes after it, and so, if ``restart`` is
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
        restart: ``"arm"`` or ``"layer"``: the seed alone restarts, or all of its layer.
        explore: Probability that any viable seed is taken, in [0, 1].

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
        >>> means, bounds = learned.upper_bounds([0, 1], {}, strategy.exploration_constant)
        >>> [round(bound, 3) for bound in bounds.values()]
        [-0.125, 1.914]

        `Cusum` and `Likelihood` have examples of a change.
    """

    name = "change_ucb"
    when = "rewards are steady for long, then jump"
    exploration_constant: float = 1.0
    detector: Literal["cusum", "glr"] = "cusum"
    change_size: float = 0.7
    false_alarm: float = 3e-6
    restart: Literal["arm", "layer"] = "layer"
    explore: float = 0.01

    def __post_init__(self) -> None:
        self.require("exploration_constant", above=0)
        self.require("change_size", above=0)
        self.require("false_alarm", above=0, at_most=0.5)
        self.require("explore", at_least=0, at_most=1)
        self.require_one_of("detector", ("cusum", "glr"))
        self.require_one_of("restart", ("arm", "layer"))

    @override
    def begin(self, layer_name: str) -> Changing:
        layer = self.restart == "layer"
        if self.detector == "glr":
            return Likelihood(false_alarm=self.false_alarm, layer=layer)
        return Cusum(size=self.change_size, false_alarm=self.false_alarm, layer=layer)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        learned = self.knowledge(metrics, Changing)  # type: ignore[type-abstract]
        means, scores = learned.upper_bounds(viable, metrics, self.exploration_constant)
        exploring = self.explore > 0 and rng.uniform() < self.explore
        chosen, best = draw_best(scores, rng)
        even = self.explore / len(viable)
        chances = {seed: even + (1 - self.explore) * share for seed, share in best.items()}
        if exploring:
            chosen = sorted(viable)[rng.index(len(viable))]
        evidence = learned.evidence(chosen)
        why: str | Callable[[], str] = partial(bound_reason, chosen, means, scores, evidence)
        if exploring:
            why = f"taken to see whether it changed, {evidence}"
        return self.chosen(chosen, scores, chances, why)
