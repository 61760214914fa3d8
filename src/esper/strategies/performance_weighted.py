"""Performance-weighted: draws by a softmax of recent rewards (Boltzmann exploration)."""

from dataclasses import dataclass
from functools import partial
from math import exp
from typing import final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.scoring import count_in_words, draw_from, outcomes_of, standardise


@final
@dataclass(frozen=True)
class PerformanceWeighted(SelectionStrategy):
    """Draw a seed with probability ``(1 - floor) * softmax(z / temperature) + floor / K``.

    ``z`` is the standardised, exponentially weighted mean of the seed's rewards (its decay is
    ``performance.decay_factor``), shrunk by ``n / (n + 1)`` while ``n`` outcomes are few; 0 for a
    seed without any. The floor keeps every seed alive, however bad it looked.

    Args:
        temperature: In standard deviations, > 0; the smaller, the greedier.
        floor: Share of the choices that is spread evenly, in [0, 1].

    Source:
        Sutton & Barto (2018), Reinforcement Learning, section 2.8 (softmax) and 2.5 (recency).

    Example:
        Rewards 1 and 3, once each: spread ``sqrt(2)``, so z is -/+ 0.7071, halved; at temperature
        0.7071 the weights are ``e ** -0.5`` and ``e ** 0.5``, so the second is drawn with
        probability ``1 / (1 + 1 / e)`` = 0.731, and with a floor of 0.1, 0.708.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> strategy = PerformanceWeighted(temperature=0.5**0.5, floor=0.1)
        >>> _, chances = strategy.chances([0, 1], metrics)
        >>> round(chances[0], 3), round(chances[1], 3)
        (0.292, 0.708)
    """

    name = "performance_weighted"
    when = "choices should be in proportion to what seeds earned of late"
    temperature: float = 0.2
    floor: float = 0.05

    def __post_init__(self) -> None:
        self.require("temperature", above=0)
        self.require("floor", at_least=0, at_most=1)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        scores, chances = self.chances(sorted(viable), metrics)
        chosen = draw_from(chances, rng)
        known = chances[chosen], scores[chosen], outcomes_of(metrics, chosen)
        return self.chosen(chosen, scores, chances, partial(_why, *known))

    def chances(self, viable: Seeds, metrics: Metrics) -> tuple[dict[int, float], dict[int, float]]:
        """Shrunk recent rewards, in standard deviations, and the probability of each seed."""
        centre, scale, _ = standardise(metrics)
        scores = dict.fromkeys(viable, 0.0)
        for seed in viable:
            if count := outcomes_of(metrics, seed):
                scores[seed] = (metrics[seed].recent - centre) / scale * (count / (count + 1))
        highest = max(scores.values())
        weights = {
            seed: exp((score - highest) / self.temperature) for seed, score in scores.items()
        }
        share = (1 - self.floor) / sum(weights.values())
        even = self.floor / len(weights)
        return scores, {seed: share * weight + even for seed, weight in weights.items()}


def _why(chance: float, score: float, count: int) -> str:
    return (
        f"drawn with probability {chance:.2f}; recent rewards {score:+.2f} sd from the layer's "
        f"mean, {count_in_words(count)}"
    )
