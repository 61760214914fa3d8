"""Partial pooling: a layer begins with what its blueprints did in layers like it."""

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
class Hierarchical(SelectionStrategy):
    """Choose as `auto` does, among posterior means to which all layers contribute; no restarts.

    A seed's kind is the type of its layer and its blueprint. The mean reward of a kind in a layer
    is normal about the kind's mean, with a variance that is estimated from how much the layers
    differ. So a seed's mean is shrunk towards the mean of its kind in other layers, and less the
    more outcomes it has; its weight in the index is its outcomes and what the others are worth.

    The history is everything in the scope of the store: other layers, and other runs. A seed whose
    kind has an outcome in it needs no first try until its layer has 20 outcomes for each viable
    seed; then all are tried, so none starves. A seed without a blueprint is learnt alone.

    Neither a shift of all rewards nor a factor on them changes a choice.

    Args:
        exploration: Factor on the logarithm in the index, > 0.
        horizon: Outcomes up to which it is a logarithm, >= 1; beyond, it is nearly flat.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Morris (1983), Parametric Empirical Bayes Inference, JASA 78, section 1 (shrinkage with an
        estimated variance between groups); James & Stein (1961); Hedges (1983), A Random Effects
        Model for Effect Sizes, Psychological Bulletin 93 (the variance by the method of moments).
        The index is that of `auto`.

    Example:
        A blueprint earned 1.0 in layer fc1, four times. In layer fc2, where it was never tried, it
        has a mean of 1.0 that is worth ``1 / (0.25 + (0.25 + 1/4)) = 1.333`` outcomes.

        >>> one, two = Hierarchical().begin("fc1"), Hierarchical().begin("fc2")
        >>> two.join(one)
        >>> for _ in range(4):
        ...     one.take(0, "Linear/glu", 1.0)
        >>> [round(number, 3) for number in two.prior(5, "Linear/glu")]  # mean, weight, layers
        [1.0, 1.333, 1]
    """

    when: ClassVar[str] = "many layers share blueprints, and each has few choices of its own"
    name: ClassVar[str] = "hierarchical"
    exploration: float = 1.0
    horizon: float = 250.0

    def __post_init__(self) -> None:
        require_number("hierarchical.exploration", self.exploration, above=0)
        require_number("hierarchical.horizon", self.horizon, at_least=1)

    @override
    def begin(self, layer_name: str) -> Beliefs:
        return Beliefs(restarts=False)

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
