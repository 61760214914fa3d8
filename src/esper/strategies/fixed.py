"""Fixed: always the same seed; ``seed_idx=0`` is what Esper is there to replace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy, others


@final
@dataclass(frozen=True)
class Fixed(SelectionStrategy):
    """Take one seed whenever it is viable, otherwise the lowest that is; scores are 1 and 0.

    Args:
        seed_idx: That seed, >= 0.

    Raises:
        ConfigError: if ``seed_idx`` is not a whole number >= 0.

    Example:
        >>> chosen, reason = Fixed().decide([2, 1], {}, SelectionContext(), Draws(0, "fc1", 0))
        >>> chosen, reason.reason
        (1, 'seed 0 is not viable; the lowest viable seed instead')
    """

    when: ClassVar[str] = "one seed is known to be right, or is the control"
    name: ClassVar[str] = "fixed"
    learns: ClassVar[bool] = False
    seed_idx: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.seed_idx, int) and not isinstance(self.seed_idx, bool)
        if not whole or self.seed_idx < 0:
            raise ConfigError(
                f"fixed.seed_idx is {self.seed_idx!r}; it must be a whole number >= 0"
            )

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        chosen, why = self.seed_idx, f"always seed {self.seed_idx}"
        if chosen not in viable:
            chosen = min(viable)
            why = f"seed {self.seed_idx} is not viable; the lowest viable seed instead"
        scores = {seed: float(seed == chosen) for seed in viable}
        return chosen, SelectionReason(
            "fixed", chosen, 1.0, scores, 1.0, why, False, others(viable, chosen)
        )
