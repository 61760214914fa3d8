"""Random: any viable seed, all alike; the baseline that a strategy must beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy, others


@final
@dataclass(frozen=True)
class Uniform(SelectionStrategy):
    """Draw any viable seed with the same probability; scores are that probability.

    Example:
        >>> Uniform().decide([4, 7], {}, SelectionContext(), Draws(0, "fc1", 0))[1].propensity
        0.5
    """

    when: ClassVar[str] = "a baseline, or logs from which any strategy can be replayed"
    name: ClassVar[str] = "random"
    learns: ClassVar[bool] = False

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        chance = 1 / len(viable)
        chances = dict.fromkeys(viable, chance)
        chosen = sorted(viable)[rng.index(len(viable))]
        return chosen, SelectionReason(
            "random",
            chosen,
            chance,
            chances,
            chances,
            f"drawn at random from {len(viable)}",
            False,
            others(viable, chosen),
        )
