"""Neural-linear Thompson sampling: Bayesian regression on features that a network learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import numpy as np
import torch
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.records.layer import LayerKnowledge
from esper.strategies.base import Choice, Draws, Metrics, Seeds, SelectionContext, SelectionStrategy
from esper.strategies.contextual.features import WIDTH, Features, code, identity, of_seeds
from esper.strategies.contextual.joint_draws import draw_together, factor_of
from esper.strategies.contextual.knowledge import ContextualKnowledge, trials_without_outcome
from esper.strategies.contextual.predictions import after_trials
from esper.strategies.contextual.ridge import Array, Ridges
from esper.strategies.scoring import count_in_words, outcomes_of, pick_best

# Shapes: B outcomes, K seeds, X inputs, H hidden units, P features of the last layer.

_CODE = 32
"""Signs that encode a blueprint, or a seed without one."""

_INPUTS = WIDTH + _CODE

_EVERY = 64
"""Outcomes from one training to the next."""

_STEPS = 60
_BATCH = 64
_DECAY = 1e-4
_FIRST, _SECOND = 0.9, 0.999

_LEARNT_WEIGHT = 2.0
"""Length of the learnt features, so that they matter as much as the code and the constant."""


@final
@dataclass(frozen=True)
class Neural(SelectionStrategy):
    """Bayesian linear regression on features that a network of two hidden layers learns.

    The network reads the features of the layer and the kernel, and signs that stand for the
    blueprint. Its last hidden layer, those signs and a constant are what rewards are regressed on,
    so a seed's variance is never smaller than its own outcomes warrant. A draw from the posterior
    decides, as in `lin_ts`. The regression learns from every outcome; the network is trained at
    every 64th, on the last ``memory`` outcomes, and the regression is then fitted again to them.

    Everything is computed in double precision on the CPU, with separate generators.

    Args:
        v: Spread of the draws, in posterior standard deviations, > 0.
        ridge: Precision of the coefficients beforehand, in outcomes; at least 1e-6.
        hidden: Units of each hidden layer, 1 to 256.
        memory: Outcomes that are remembered, 64 to 100,000.
        learning_rate: Of Adam, > 0.
        network_seed: Of initial weights and batches; a whole number >= 0.

    Source:
        Riquelme, Tucker & Snoek (2018), Deep Bayesian Bandits Showdown, section 3, "Neural Linear".

    Example:
        Before the first training the network is a random one, and the signs tell seeds apart.

        >>> from esper.contracts.performance import SeedPerformanceMetrics as Seed
        >>> metrics = {0: Seed(0, "fc1", rewards=[1.0] * 9), 1: Seed(1, "fc1", rewards=[3.0] * 9)}
        >>> _, reason = Neural().decide([0, 1], metrics, SelectionContext(), Draws(0, "fc1", 18))
        >>> reason.propensities[1] > 0.95
        True
    """

    name = "neural"
    when = "as lin_ts, with thousands of outcomes and effects that bend"
    v: float = 1.0
    ridge: float = 1.0
    hidden: int = 24
    memory: int = 1024
    learning_rate: float = 0.01
    network_seed: int = 0

    def __post_init__(self) -> None:
        self.require("v", above=0)
        self.require("ridge", at_least=1e-6)
        self.require("learning_rate", above=0)
        self.require("hidden", at_least=1, at_most=256, whole=True)
        self.require("memory", at_least=_EVERY, at_most=100_000, whole=True)
        self.require("network_seed", at_least=0, at_most=2**62, whole=True)

    @override
    def begin(self, layer_name: str) -> "NeuralKnowledge":
        return NeuralKnowledge(layer_name, self)

    @override
    def decide(
        self, viable: Seeds, metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> Choice:
        learned, seeds = self.knowledge(metrics, NeuralKnowledge, context), sorted(viable)
        seen = of_seeds(context, seeds)
        names = learned.names(seeds, metrics, context)
        means_K, covariance_KK = learned.pool.over(names, list(seen.values()))
        trials = [trials_without_outcome(metrics, seed) for seed in seeds]
        factor_KK = self.v * factor_of(after_trials(covariance_KK, trials))
        scores, chances = draw_together(seeds, means_K.tolist(), factor_KK, rng)
        chosen, _ = pick_best(scores, rng)
        at = seeds.index(chosen)
        sd = sqrt(float(np.square(factor_KK[at]).sum()))
        why = (
            f"highest draw, {scores[chosen]:.2f} sd, of {len(scores)}: {means_K[at]:+.2f} expected "
            f"here, give or take {sd:.2f}; {count_in_words(outcomes_of(metrics, chosen))} here, "
            f"network trained {learned.pool.trainings} times"
        )
        return self.chosen(chosen, scores, chances, why, seen[chosen])


@final
class NeuralKnowledge(ContextualKnowledge):
    """Network and regression that the layers of a history share."""

    __slots__ = ("pool",)

    def __init__(self, layer_name: str, settings: Neural) -> None:
        self.layer_name = layer_name
        self.pool = Pool(settings)

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, NeuralKnowledge):
            self.pool = other.pool

    @override
    def take(self, seed_idx: int, blueprint: str, seen: Features, reward: float) -> None:
        self.pool.take(identity(self.layer_name, seed_idx, blueprint), seen, reward)

    @override
    def forget(self, seed_idx: int) -> None:
        pass  # outcomes of a blueprint stay valid

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool.load_state_dict(state)


Outcome = tuple[str, Features, float]
"""Name of the seed or blueprint, features, and reward."""


@final
class Pool:
    """Network, regression, and the outcomes that they are fitted to.

    Attributes:
        trainings: Number of trainings of the network.
    """

    def __init__(self, settings: Neural) -> None:
        self.settings = settings
        self.trainings = 0
        self._weights = _first_weights(settings.hidden, settings.network_seed)
        self._ridges = self._new_regression()
        self._outcomes: list[Outcome] = []
        self._count = 0

    def take(self, name: str, seen: Features, reward: float) -> None:
        """Add one outcome; every 64th trains the network."""
        self._outcomes.append((name, seen, reward))
        self._count += 1
        if self._count % _EVERY:
            self._ridges.learn(0, self._last_layer(_inputs([name], [seen]))[0], reward)
            return
        del self._outcomes[: -self.settings.memory]
        names, contexts, rewards = zip(*self._outcomes, strict=True)
        x_BX = _inputs(names, contexts)
        self._weights = _trained(
            self._weights, x_BX, np.array(rewards), self.settings, self.trainings
        )
        self.trainings += 1
        self._ridges = self._new_regression()
        for phi_P, value in zip(self._last_layer(x_BX), rewards, strict=True):
            self._ridges.learn(0, phi_P, value)

    def over(self, names: Sequence[str], seen: Sequence[Features]) -> tuple[Array, Array]:
        """Means and covariances of standardised rewards."""
        return self._ridges.over(0, self._last_layer(_inputs(names, seen)))

    def state_dict(self) -> dict[str, Any]:
        """Complete state, as JSON data."""
        return {
            "hidden": self.settings.hidden,
            "trainings": self.trainings,
            "count": self._count,
            "weights": [values.tolist() for values in self._weights],
            "regression": self._ridges.state_dict(),
            "outcomes": [[name, list(seen), reward] for name, seen, reward in self._outcomes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, bit for bit.

        Raises:
            ConfigError: if the state is of a network of another size.
        """
        if state.get("hidden") != self.settings.hidden:
            raise ConfigError(
                f"the state is of a network with {state.get('hidden')!r} hidden units, this one "
                f"has {self.settings.hidden}; resume with the settings that the run began with"
            )
        self._ridges.load_state_dict(state["regression"])
        self._weights = tuple(np.array(values) for values in state["weights"])
        self._outcomes = [(name, tuple(seen), reward) for name, seen, reward in state["outcomes"]]
        self.trainings, self._count = state["trainings"], state["count"]

    def _new_regression(self) -> Ridges:
        made = Ridges(1 + _CODE + self.settings.hidden, self.settings.ridge)
        made.add()
        return made

    def _last_layer(self, x_BX: Array) -> Array:
        in_XH, in_H, mid_HH, mid_H, _ = self._weights
        h_BH = np.tanh(np.tanh(x_BX @ in_XH + in_H) @ mid_HH + mid_H)
        h_BH *= _LEARNT_WEIGHT / sqrt(self.settings.hidden)
        return np.concatenate([np.ones((len(x_BX), 1)), x_BX[:, WIDTH:], h_BH], axis=1)


def _inputs(names: Sequence[str], seen: Sequence[Features]) -> Array:
    return np.array([(*row, *code(name, _CODE)) for name, row in zip(names, seen, strict=True)])


def _first_weights(hidden: int, seed: int) -> tuple[Array, ...]:
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((_INPUTS, hidden)) * 0.7,
        generator.standard_normal(hidden) * 0.1,
        generator.standard_normal((hidden, hidden)) / sqrt(hidden),
        generator.standard_normal(hidden) * 0.1,
        np.zeros(1 + _CODE + hidden),
    )


def _trained(
    weights: Sequence[Array], x_BX: Array, rewards_B: Array, settings: Neural, number: int
) -> tuple[Array, ...]:
    """Weights after 60 steps of Adam on standardised rewards, beginning with ``weights``."""
    spread = float(rewards_B.std())
    if spread <= 1e-12 * float(np.abs(rewards_B).max()):
        return tuple(weights)
    # Independent of the caller's mode and default device. Adam is written out, because torch.optim
    # takes seconds to import.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        generator = torch.Generator().manual_seed(settings.network_seed * 1_000_003 + number)
        params = [torch.tensor(values) for values in weights]
        moments = [(torch.zeros_like(values), torch.zeros_like(values)) for values in params]
        x, y = torch.tensor(x_BX), torch.tensor((rewards_B - rewards_B.mean()) / spread)
        for step in range(1, _STEPS + 1):
            batch = torch.randint(len(x), (_BATCH,), generator=generator)
            leaves = [values.detach().requires_grad_() for values in params]
            error = ((_guess(leaves, x[batch]) - y[batch]) ** 2).mean()
            rate = settings.learning_rate / (1 - _FIRST**step)
            for values, (first, second), slope in zip(
                params, moments, torch.autograd.grad(error, leaves), strict=True
            ):
                pull = slope + _DECAY * values
                first.mul_(_FIRST).add_(pull, alpha=1 - _FIRST)
                second.mul_(_SECOND).addcmul_(pull, pull, value=1 - _SECOND)
                size = (second / (1 - _SECOND**step)).sqrt_().add_(1e-8)
                values.addcdiv_(first, size, value=-rate)
        return tuple(values.numpy() for values in params)


def _guess(weights: Sequence[torch.Tensor], x_BX: torch.Tensor) -> torch.Tensor:
    in_XH, in_H, mid_HH, mid_H, out_P = weights
    h_BH = torch.tanh(torch.tanh(x_BX @ in_XH + in_H) @ mid_HH + mid_H)
    learnt_B = h_BH @ out_P[1 + _CODE :] * (_LEARNT_WEIGHT / sqrt(len(mid_H)))
    return out_P[0] + x_BX[:, WIDTH:] @ out_P[1 : 1 + _CODE] + learnt_B
