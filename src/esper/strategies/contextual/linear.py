"""What linear strategies share: regressions are asked about each seed, the best is taken."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.propensities import Chance
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy
from esper.strategies.contextual.knowledge import (
    MODELS,
    LinearKnowledge,
    Model,
    known_of,
)
from esper.strategies.contextual.predictions import Prediction
from esper.strategies.scoring import others, pick_best, require_number


class Linear(SelectionStrategy, ABC):
    """Chooses by what regressions on features expect of each seed here.

    Attributes:
        ridge: What the coefficients are known by beforehand, in outcomes; at least 1e-6.
        model: ``"disjoint"`` or ``"shared"``.
    """

    ridge: float
    model: Model

    @abstractmethod
    def score(
        self, expected: Prediction, rng: Draws
    ) -> tuple[Mapping[int, float], Chance | None, Callable[[int], Callable[[], str]]]:
        """Score every seed; the highest is chosen.

        Returns:
            The scores; how likely each seed was, or ``None`` if only ties are drawn; and what makes
            the sentence, given the place of the chosen one in ``expected.seeds``.
        """

    @override
    def begin(self, layer_name: str) -> LinearKnowledge:
        return LinearKnowledge(layer_name, self.model, self.ridge)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        known = known_of(metrics, context, self.model, self.ridge)
        expected = known.predict(viable, metrics, context)
        scores, chance, why = self.score(expected, rng)
        chosen, share = pick_best(scores, rng)
        return chosen, SelectionReason(
            self.name,
            chosen,
            scores[chosen],
            scores,
            share if chance is None else chance,
            why(expected.seeds.index(chosen)),
            False,
            others(viable, chosen),
            expected.features[chosen],
        )

    def check_regression(self) -> None:
        """Refuse a ridge or a model that is none.

        Raises:
            ConfigError: naming it.
        """
        require_number(f"{self.name}.ridge", self.ridge, at_least=1e-6)
        if self.model not in MODELS:
            raise ConfigError(unknown_name(f"{self.name}.model", self.model, MODELS))
