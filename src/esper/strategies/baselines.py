"""Baselines that do not learn: every seed in its turn, always the same seed, or the biggest."""

from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy


@final
class RoundRobin(SelectionStrategy):
    """Take the seed chosen least often; among equals the lowest. Scores are minus those counts.

    Example:
        >>> RoundRobin().decide([7, 4], {}, SelectionContext(), Draws(0, "fc1", 0))[0]
        4
    """

    name = "round_robin"
    when = "every seed is to be tried equally often"
    learns = False

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        scores = {
            seed: -float(metrics[seed].total_activations) if seed in metrics else 0.0
            for seed in viable
        }
        chosen = min(viable, key=lambda seed: (-scores[seed], seed))
        return self.chosen(chosen, scores, 1.0, partial(_its_turn, round(-scores[chosen])))


@final
@dataclass(frozen=True)
class Fixed(SelectionStrategy):
    """Take one seed whenever it is viable, otherwise the lowest that is; scores are 1 and 0.

    ``seed_idx=0`` is what the design calls hard-coded, and Esper is there to replace.

    Args:
        seed_idx: That seed, >= 0.

    Example:
        >>> chosen, reason = Fixed().decide([2, 1], {}, SelectionContext(), Draws(0, "fc1", 0))
        >>> chosen, reason.reason
        (1, 'seed 0 is not viable; the lowest viable seed instead')
    """

    name = "fixed"
    when = "one seed is known to be right, or is the control"
    learns = False
    seed_idx: int = 0

    def __post_init__(self) -> None:
        self.require("seed_idx", at_least=0, whole=True)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        chosen, why = self.seed_idx, f"always seed {self.seed_idx}"
        if chosen not in viable:
            chosen = min(viable)
            why = f"seed {self.seed_idx} is not viable; the lowest viable seed instead"
        return self.chosen(chosen, {seed: float(seed == chosen) for seed in viable}, 1.0, why)


@final
class AlwaysBiggest(SelectionStrategy):
    """Take the seed whose kernel has most parameters; scores are those parameters.

    Among equals the lowest. A seed of unknown size counts as 0; where no size is known, the lowest
    seed is taken, and the reason says so.

    Example:
        >>> sizes = SelectionContext(parameters={0: 32, 1: 243, 2: 37})
        >>> chosen, reason = AlwaysBiggest().decide([2, 1, 0], {}, sizes, Draws(0, "fc1", 0))
        >>> chosen, reason.reason
        (1, 'the biggest kernel, 243 parameters')
    """

    name = "always_biggest"
    when = "the control for reports in which kernels of a layer differ in size"
    learns = False

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        sizes = {seed: size for seed, size in context.parameters.items() if isfinite(size)}
        scores = {seed: float(sizes.get(seed, 0)) for seed in viable}
        chosen = min(viable, key=lambda seed: (-scores[seed], seed))
        why = f"the biggest kernel, {scores[chosen]:,.0f} parameters"
        if not any(seed in sizes for seed in viable):
            why = "no kernel's size is known; the lowest viable seed instead"
        return self.chosen(chosen, scores, 1.0, why)


def _its_turn(times: int) -> str:
    return f"its turn: chosen {times} time{'' if times == 1 else 's'}, and no other less often"
