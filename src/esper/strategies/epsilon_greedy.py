"""Epsilon-greedy: the best mean reward, or with probability epsilon any seed."""

from dataclasses import dataclass
from functools import partial
from typing import final

from typing_extensions import override

from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.scoring import TIE, count_in_words, outcomes_of, standardise


@final
@dataclass(frozen=True)
class EpsilonGreedy(SelectionStrategy):
    """Any viable seed with probability ``epsilon * decay_rate ** t``, else the best mean reward.

    ``t`` counts the choices that the layer has seen. Equal best means are drawn.

    Args:
        epsilon: Probability of exploring at the first choice, in [0, 1].
        decay_rate: Factor on it at each choice, in (0, 1].

    Source:
        Sutton & Barto (2018), Reinforcement Learning, section 2.4.

    Example:
        Two seeds, means 1 and 3, epsilon 0.1 at the first choice: the better one is chosen with
        probability ``0.9 + 0.1 / 2``.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0]), 1: Seed(1, "fc1", rewards=[3.0])}
        >>> chosen, reason = EpsilonGreedy().decide(
        ...     [0, 1], metrics, SelectionContext(), Draws(0, "fc1", 1))
        >>> chosen, round(reason.propensity, 3)
        (1, 0.95)
    """

    name = "epsilon_greedy"
    when = "a simple baseline that learns and tries everything for ever"
    epsilon: float = 0.1
    decay_rate: float = 0.995

    def __post_init__(self) -> None:
        self.require("epsilon", at_least=0, at_most=1)
        self.require("decay_rate", above=0, at_most=1)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        centre, scale, _ = standardise(metrics)
        scores = dict.fromkeys(viable, 0.0)
        for seed in viable:
            if outcomes_of(metrics, seed):
                scores[seed] = (metrics[seed].mean - centre) / scale
        choices = sum([record.total_activations for record in metrics.values()])
        epsilon = self.epsilon * self.decay_rate**choices
        least = max(scores.values()) - TIE
        best = sorted([seed for seed, score in scores.items() if score >= least])
        exploring = epsilon > 0 and rng.uniform() < epsilon
        pool = sorted(viable) if exploring else best
        chosen = pool[rng.index(len(pool))] if len(pool) > 1 else pool[0]
        chances = dict.fromkeys(viable, epsilon / len(viable))
        for seed in best:
            chances[seed] += (1 - epsilon) / len(best)
        known = scores[chosen], outcomes_of(metrics, chosen)
        return self.chosen(chosen, scores, chances, partial(_why, exploring, *known, epsilon))


def _why(exploring: bool, score: float, count: int, epsilon: float) -> str:
    why = "exploring" if exploring else "best mean reward so far"
    return f"{why}: {score:+.2f} sd, {count_in_words(count)}; epsilon {epsilon:.3f}"
