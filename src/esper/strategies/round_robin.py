"""Round robin: every seed in its turn; a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy, others


@final
@dataclass(frozen=True)
class RoundRobin(SelectionStrategy):
    """Take the seed chosen least often; among equals the lowest. Scores are minus those counts.

    Example:
        >>> RoundRobin().decide([7, 4], {}, SelectionContext(), Draws(0, "fc1", 0))[0]
        4
    """

    when: ClassVar[str] = "every seed is to be tried equally often"
    name: ClassVar[str] = "round_robin"
    learns: ClassVar[bool] = False

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        scores = {
            seed: -float(record.total_activations) if record else 0.0
            for seed in viable
            for record in (metrics.get(seed),)
        }
        chosen = min(viable, key=lambda seed: (-scores[seed], seed))
        return chosen, SelectionReason(
            "round_robin",
            chosen,
            scores[chosen],
            scores,
            1.0,
            partial(_why, round(-scores[chosen])),
            False,
            others(viable, chosen),
        )


def _why(times: int) -> str:
    return f"its turn: chosen {times} time{'' if times == 1 else 's'}, and no other less often"
