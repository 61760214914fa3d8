"""Random: every viable seed alike; the baseline that learning has to beat."""

from typing import final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy


@final
class Uniform(SelectionStrategy):
    """Draw any viable seed with the same probability; scores are that probability.

    Example:
        >>> Uniform().decide([4, 7], {}, SelectionContext(), Draws(0, "fc1", 0))[1].propensity
        0.5
    """

    name = "random"
    when = "a baseline, or logs from which any strategy can be replayed"
    learns = False

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        chances = dict.fromkeys(viable, 1 / len(viable))
        chosen = sorted(viable)[rng.index(len(viable))]
        return self.chosen(chosen, chances, chances, f"drawn at random from {len(viable)}")
