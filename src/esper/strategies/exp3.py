"""Exp3 for adversarial rewards: exponential weights on estimated losses (Exp3-IX, Exp3.S)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import erfc, exp, log, sqrt
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.reason import SelectionReason
from esper.contracts.selection import Decision
from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.learned import Learned
from esper.strategies.scoring import count_in_words, draw_from

_LIMIT = 3.0
"""Distance from the mean, in standard deviations, at which a reward is clipped."""

_WARM = 8
_CERTAIN = 1 - 1e-9


@final
class Losses(Learned):
    """Estimated loss of every seed, relative to the strategy's own.

    A row holds the seed, its outcomes, and its loss: the sum of estimated losses of the rounds in
    which it could have been chosen, minus the strategy's loss in them. A seed that could not be
    chosen is thereby taken to have lost as much as the strategy did, so neither a cooldown nor a
    late beginning makes it look better or worse.

    Args:
        rate: Factor on the learning rate ``sqrt(ln(K) / (K * t))``, > 0.
        sharing: Share of all weight that is spread evenly at each outcome, in [0, 0.5].
    """

    __slots__ = ("rate", "sharing")
    width: ClassVar[int] = 3

    def __init__(self, rate: float, sharing: float) -> None:
        super().__init__()
        self.rate = rate
        self.sharing = sharing

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        start = self.place(seed_idx)
        loss = self._loss(reward)
        self.cells[start + 1] += 1
        if decision is None or decision.reason.propensity > _CERTAIN:
            # Without a propensity there is no importance weight: one vote, against the average.
            self.cells[start + 2] += loss - 0.5
        else:
            self._weigh(start, loss, decision.reason)
        if self.sharing:
            self._share()

    def learning_rate(self) -> float:
        """``rate * sqrt(ln(K) / (K * t))``; ``t`` stops where weight would have been shared out."""
        seeds = max(len(self.rows()), 2)
        rounds: float = max(self.outcomes, 1)
        if self.sharing:
            rounds = min(rounds, 1 / self.sharing)
        return self.rate * sqrt(log(seeds) / (seeds * rounds))

    def losses(self) -> dict[int, float]:
        """Relative estimated loss of every seed that has one; less is better."""
        cells = self.cells
        return {int(cells[start]): cells[start + 2] for start in self.rows()}

    def count_of(self, seed_idx: int) -> int:
        """Outcomes of a seed."""
        start = self.row(seed_idx)
        return int(self.cells[start + 1]) if start else 0

    def _loss(self, reward: float) -> float:
        """Share of the layer's rewards that would have been better, by ``Phi``; in [0, 1]."""
        spread, centre = self.spread(), self.centre
        cut = reward
        if self.outcomes >= _WARM and spread < float("inf"):
            cut = min(max(reward, centre - _LIMIT * spread), centre + _LIMIT * spread)
        self.add_reward(cut)
        return 0.5 * erfc((reward - self.centre) / self.spread() / sqrt(2))

    def _weigh(self, start: int, loss: float, reason: SelectionReason) -> None:
        chance = reason.propensity
        bias = self.learning_rate() / 2
        estimate = loss / (chance + bias)
        own = chance * estimate
        self.cells[start + 2] += estimate - own
        for seed, share in reason.propensities.items():
            if share > 0 and seed != reason.seed_idx:
                self.cells[self.place(seed) + 2] -= own

    def _share(self) -> None:
        eta, starts = self.learning_rate(), self.rows()
        least = min([self.cells[start + 2] for start in starts])
        weights = [exp(-eta * (self.cells[start + 2] - least)) for start in starts]
        even = self.sharing * sum(weights) / len(weights)
        for start, weight in zip(starts, weights, strict=True):
            self.cells[start + 2] = least - log((1 - self.sharing) * weight + even) / eta


@final
@dataclass(frozen=True)
class Exp3(SelectionStrategy):
    """Draw a seed with probability proportional to ``exp(-eta * L)``.

    ``L`` is the seed's estimated loss. An outcome of loss ``l`` that was drawn with probability
    ``p`` adds ``l / (p + eta / 2)``, the half ``eta`` being the implicit exploration that keeps the
    estimate from exploding; ``p`` is the propensity *of the decision that the outcome comes back
    with*, so it may come late and in any order. ``eta = rate * sqrt(ln(K) / (K * t))`` after ``t``
    outcomes of ``K`` seeds. A loss is the share of usual rewards that would have been better,
    ``Phi(-z)``, by the running mean and deviation of the layer's rewards, extremes cut.

    Seeds that could not be chosen when a decision was made are taken to have lost what the strategy
    lost. An outcome without a propensity (no decision, or one of probability 1) counts plainly,
    ``l - 1/2``.

    With ``sharing``, that share of all weight is spread evenly at each outcome, so that a seed that
    was bad can come back soon (Exp3.S); ``t`` then counts no further than ``1 / sharing``.

    Args:
        rate: Factor on the learning rate, > 0; the theorem's is 1.
        sharing: In [0, 0.5]; 0 for Exp3-IX, about one over the outcomes between changes for Exp3.S.

    Source:
        Neu (2015), Explore No More, algorithm 1 and theorem 1 (Exp3-IX); Auer, Cesa-Bianchi, Freund
        & Schapire (2002), The Nonstochastic Multiarmed Bandit Problem, section 8 (Exp3.S); Freund,
        Schapire, Singer & Warmuth (1997), Using and Combining Predictors That Specialize (seeds
        that could not be chosen).

    Example:
        Two seeds that were equally likely; the first reward has nothing to be compared with and
        loses 1/2, the second is lower: z is ``-1 / sqrt(2)`` and the loss ``Phi(0.707) = 0.760``.
        At ``t = 1``, eta is ``sqrt(ln(2) / 2) = 0.589``, at 2, 0.416. Seed 0: ``0.5 / (0.5 + 0.294)
        = 0.629``, of which the strategy lost half, 0.315; seed 1 likewise ``0.760 / (0.5 + 0.208) =
        1.073`` and 0.537. Relative losses ``0.315 - 0.537`` and ``0.537 - 0.315``.

        >>> learned = Exp3(rate=1.0).begin("fc1")
        >>> for seed, reward in ((0, 0.3), (1, 0.1)):
        ...     reason = SelectionReason("exp3", seed, 0.5, {}, {0: 0.5, 1: 0.5}, "drawn",
        ...                              alternatives_considered=(1 - seed,))
        ...     learned.learn(seed, reward, Decision(
        ...         decision_id=f"a/fc1/{seed}", layer_name="fc1", seed_idx=seed, blueprint="",
        ...         epoch=0, reason=reason, random_key=(0, "fc1", seed)))
        >>> {seed: round(loss, 3) for seed, loss in learned.losses().items()}
        {0: -0.222, 1: 0.222}
        >>> chances = Exp3(rate=1.0).chances([0, 1], learned)  # 1 / (1 + exp(-0.416 * 0.444))
        >>> round(chances[0], 3)
        0.546
    """

    name = "exp3"
    when = "rewards may turn against the choice, or follow no law at all"
    rate: float = 2.0
    sharing: float = 0.0

    def __post_init__(self) -> None:
        self.require("rate", above=0)
        self.require("sharing", at_least=0, at_most=0.5)

    @override
    def begin(self, layer_name: str) -> Losses:
        return Losses(self.rate, self.sharing)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        learned = self.knowledge(metrics, Losses)
        chances = self.chances(sorted(viable), learned)
        chosen = draw_from(chances, rng)
        drawn = chances[chosen], tuple(chances.values()), learned.count_of(chosen)
        return self.chosen(chosen, chances, chances, partial(_why, *drawn))

    def chances(self, viable: Seeds, learned: Losses) -> Mapping[int, float]:
        """Probability of each of ``viable``."""
        eta, losses = learned.learning_rate(), learned.losses()
        found = {seed: losses.get(seed, 0.0) for seed in viable}
        least = min(found.values())
        weights = {seed: exp(-eta * (loss - least)) for seed, loss in found.items()}
        total = sum(weights.values())
        return {seed: weight / total for seed, weight in weights.items()}


def _why(drawn: float, chances: Sequence[float], count: int) -> str:
    ahead = sum([chance > drawn for chance in chances])
    if len(chances) == 1:
        place = "the only viable seed"
    elif not ahead:
        place = f"the likeliest of {len(chances)} by what was lost so far"
    else:
        place = f"{ahead} of {len(chances)} likelier by what was lost so far"
    return f"drawn with probability {drawn:.2f}, {place}; {count_in_words(count)}"
