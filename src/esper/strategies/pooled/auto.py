"""What to take by default: the strategy that does best over all kinds of rewards."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy
from esper.strategies.pooled.beliefs import Beliefs
from esper.strategies.pooled.evidence import decide_by_evidence, known_kinds
from esper.strategies.scoring import require_number


@final
@dataclass(frozen=True)
class Auto(SelectionStrategy):
    """Take the seed with the least evidence against it, relative to what was spent on it.

    The index of a seed is ``gap^2 / (2 s^2 (1/n + 1/n*)) + exploration * phi(n)``, the smallest is
    chosen (`_imed` has the terms): ``gap`` is the distance of its posterior mean from the best of
    the viable ones, ``s`` the noise of rewards, ``n`` its outcomes, what its prior is worth, and
    the choices whose outcome has not come; ``n*`` those of the best. The score is the negative
    index, in nats.

    A seed's mean is shrunk to that of its kind (layer type and blueprint) in the other layers and
    runs of the history (`_pooling`), and needs no first try where they know it; until its layer has
    20 outcomes for each viable seed, when all are tried, so none starves. Where nobody knows its
    kind, the layer's average counts as one outcome. Means, outcomes and noise are those since the
    rewards last changed (`_beliefs`), so what held once is not believed for ever.

    Neither a shift of all rewards nor a factor on them changes a choice.

    Args:
        exploration: Factor on ``phi``, > 0: how much evidence a seed needs against it.
        horizon: Outcomes of a seed up to which ``phi`` is the logarithm, >= 1; beyond, it is
            nearly flat.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Honda & Takemura (2015), JMLR 16, algorithm 1 (IMED); Lai (1987), Annals of Statistics 15
        (the horizon); Morris (1983), JASA 78, section 1 (shrinkage); Liu, Lee & Shroff (2018),
        AAAI, algorithms 1 and 2 (restarts); the constants and what they cost are in
        docs/decisions/0016.

    Example:
        Seed 0 earned 1 and 3, seed 1 earned 1 and 2. Within seeds the squares are ``2 + 1/2``, of
        all four about their mean 2.75, so ``s^2 = (2.5 + 2.75 / 3) / 3 = 1.139``. The average of
        the two means, 1.75, counts as a third outcome of each: they are 1.917 and 1.583, a third
        apart. Of both, ``ln 3 = 1.099``; against seed 1 ``(1/9) / (2 * 1.139 * 2/3) = 0.073``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1, 3]), 1: Seed(1, "fc1", rewards=[1, 2])}
        >>> chosen, reason = Auto().decide(
        ...     [0, 1], metrics, SelectionContext(), Draws(0, "fc1", 4)
        ... )
        >>> chosen, {seed: round(score, 3) for seed, score in reason.scores.items()}
        (0, {0: -1.099, 1: -1.172})
        >>> reason.reason
        'best mean by 0.3 sd over 2 outcomes'
    """

    when: ClassVar[str] = "nothing is known beforehand, steady or not; dozens of choices a layer"
    name: ClassVar[str] = "auto"
    exploration: float = 1.0
    horizon: float = 250.0

    def __post_init__(self) -> None:
        require_number("auto.exploration", self.exploration, above=0)
        require_number("auto.horizon", self.horizon, at_least=1)

    @override
    def begin(self, layer_name: str) -> Beliefs:
        return Beliefs()

    @override
    def knows(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext
    ) -> Collection[int]:
        return known_kinds(self, viable, metrics, context)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        index = self.exploration, self.horizon
        return decide_by_evidence(self, index, (viable, metrics, context), rng)
