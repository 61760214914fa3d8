"""A small network that learns what matters in a context, and a regression that knows its doubts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import numpy as np
import torch
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.records.layer import LayerKnowledge
from esper.strategies.base import Metrics, SelectionStrategy, rewards_of
from esper.strategies.contextual.features import (
    WIDTH,
    Features,
    code,
    identity,
    of_decision,
    of_seeds,
)
from esper.strategies.contextual.joint_draws import draw_together, factor_of
from esper.strategies.contextual.knowledge import blueprint_of, unheard
from esper.strategies.contextual.predictions import after_trials
from esper.strategies.contextual.ridge import Array, Ridges
from esper.strategies.scoring import others, pick_best, require_number, tried

# Shapes: B outcomes, K seeds, X inputs, H hidden units, P features of the last layer.

_CODE = 32
"""Signs that a blueprint, or a seed without one, is told by."""

_INPUTS = WIDTH + _CODE

_EVERY = 64
"""Outcomes from one training to the next."""

_STEPS = 60
_BATCH = 64
_DECAY = 1e-4
_FIRST, _SECOND = 0.9, 0.999

_LEARNT_WEIGHT = 2.0
"""Length of the learnt features: a priori they matter as much as the code and the constant."""


@final
@dataclass(frozen=True)
class Neural(SelectionStrategy):
    """Bayesian linear regression on features that a network of two hidden layers learns.

    The network reads the features of the layer and the kernel, and signs that stand for the
    blueprint. Its last hidden layer, those signs and a constant are what rewards are regressed on,
    so doubt about a seed is never smaller than its own outcomes warrant. A draw from the posterior
    decides, as in `lin_ts`. The regression learns from every outcome; the network is trained at
    every 64th, on the last ``memory`` outcomes, and the regression is then made anew from them.

    Everything is computed in double precision on the CPU, with generators of its own.

    Args:
        v: Spread of the draws, in posterior standard deviations, > 0.
        ridge: What the coefficients are known by beforehand, in outcomes; at least 1e-6.
        hidden: Units of each hidden layer, 1 to 256.
        memory: Outcomes that are remembered, 64 to 100,000.
        learning_rate: Of Adam, > 0.
        network_seed: Of first weights and batches; a whole number >= 0.

    Raises:
        ConfigError: if a setting is out of range.

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

    when: ClassVar[str] = "as lin_ts, with thousands of outcomes and effects that bend"
    name: ClassVar[str] = "neural"
    v: float = 1.0
    ridge: float = 1.0
    hidden: int = 24
    memory: int = 1024
    learning_rate: float = 0.01
    network_seed: int = 0

    def __post_init__(self) -> None:
        require_number("neural.v", self.v, above=0)
        require_number("neural.ridge", self.ridge, at_least=1e-6)
        require_number("neural.learning_rate", self.learning_rate, above=0)
        _require_whole("neural.hidden", self.hidden, 1, 256)
        _require_whole("neural.memory", self.memory, _EVERY, 100_000)
        _require_whole("neural.network_seed", self.network_seed, 0, 2**62)

    @override
    def begin(self, layer_name: str) -> "NeuralKnowledge":
        return NeuralKnowledge(layer_name, self)

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        known = self._known(metrics, context)
        seeds = sorted(viable)
        seen = of_seeds(context, seeds)
        names = [known.name_of(seed, blueprint_of(metrics, context, seed)) for seed in seeds]
        means_K, covariance_KK = known.pool.over(names, list(seen.values()))
        trials = [unheard(metrics, seed) for seed in seeds]
        factor_KK = self.v * factor_of(after_trials(covariance_KK, trials))
        scores, chance = draw_together(seeds, means_K.tolist(), factor_KK, rng)
        chosen, _ = pick_best(scores, rng)
        at = seeds.index(chosen)
        doubt = sqrt(float(np.square(factor_KK[at]).sum()))
        record = metrics.get(chosen)
        return chosen, SelectionReason(
            "neural",
            chosen,
            scores[chosen],
            scores,
            chance,
            f"highest draw, {scores[chosen]:.2f} sd, of {len(scores)}: {means_K[at]:+.2f} expected "
            f"here, give or take {doubt:.2f}; {tried(record.count if record else 0)} here, "
            f"network trained {known.pool.trainings} times",
            False,
            others(viable, chosen),
            seen[chosen],
        )

    def _known(self, metrics: Metrics, context: SelectionContext) -> "NeuralKnowledge":
        found = getattr(metrics, "knowledge", None)
        if isinstance(found, NeuralKnowledge):
            return found
        made = NeuralKnowledge("", self)
        for seed in sorted(metrics):
            name = made.name_of(seed, blueprint_of(metrics, context, seed))
            seen = of_seeds(context, [seed])[seed]
            for reward in rewards_of(metrics[seed]):
                made.pool.take(name, seen, reward)
        return made


@final
class NeuralKnowledge(LayerKnowledge):
    """One layer's view of the network that the layers of a history share."""

    __slots__ = ("layer_name", "pool")

    def __init__(self, layer_name: str, settings: Neural) -> None:
        self.layer_name = layer_name
        self.pool = Pool(settings)

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, NeuralKnowledge):
            self.pool = other.pool

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        blueprint = "" if decision is None else decision.blueprint
        nothing = of_seeds(SelectionContext(), [0])[0]
        seen = nothing if decision is None else of_decision(decision)
        self.pool.take(self.name_of(seed_idx, blueprint), seen, reward)

    @override
    def forget(self, seed_idx: int) -> None:
        # What was learnt of a blueprint is true of it still.
        pass

    def name_of(self, seed_idx: int, blueprint: str) -> str:
        """What the network knows the seed by."""
        return identity(self.layer_name, seed_idx, blueprint)

    @override
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt as JSON data, the pool included."""
        return self.pool.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked; the layers that share the pool do so too.

        Raises:
            ConfigError: if the state is of a network of another size.
        """
        self.pool.load_state_dict(state)


Outcome = tuple[str, Features, float]
"""Whom it concerns, what was seen, the reward."""


@final
class Pool:
    """Network, regression, and the outcomes that they are made from.

    Attributes:
        trainings: How often the network was trained.
    """

    def __init__(self, settings: Neural) -> None:
        self.settings = settings
        self.trainings = 0
        self._weights = _first_weights(settings.hidden, settings.network_seed)
        self._ridges = self._new_regression()
        self._outcomes: list[Outcome] = []
        self._count = 0

    def take(self, name: str, seen: Features, reward: float) -> None:
        """Take in one outcome."""
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
        """All of it as JSON data."""
        return {
            "hidden": self.settings.hidden,
            "trainings": self.trainings,
            "count": self._count,
            "weights": [values.tolist() for values in self._weights],
            "regression": self._ridges.state_dict(),
            "outcomes": [[name, list(seen), reward] for name, seen, reward in self._outcomes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked, bit for bit.

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
    """The weights after some steps of Adam on standardised rewards, from where they were."""
    spread = float(rewards_B.std())
    if spread <= 1e-12 * float(np.abs(rewards_B).max()):
        return tuple(weights)
    # Whatever the caller's mode and default device are. Adam is spelt out, because torch.optim
    # takes seconds to import what this does not need.
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


def _require_whole(setting: str, value: object, least: int, most: int) -> None:
    require_number(setting, value, at_least=least, at_most=most)
    if not isinstance(value, int):
        raise ConfigError(f"{setting} is {value!r}; it must be a whole number")
