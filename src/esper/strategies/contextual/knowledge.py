"""Regressions of rewards on features, which the layers of a history share.

``disjoint``: one regression for each blueprint, over all layers of a history; a seed without a
blueprint has one of its own in its layer. ``shared``: one for everything, on the features, and on a
sketch of (seed or blueprint) x (features), so that their effects may differ by blueprint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, final, get_args

import numpy as np
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision
from esper.records.layer import LayerKnowledge
from esper.strategies.base import Metrics, Seeds, SelectionContext, blueprint_of
from esper.strategies.contextual.features import (
    WIDTH,
    Features,
    code,
    identity,
    of_decision,
    of_seeds,
)
from esper.strategies.contextual.predictions import Prediction, Support, after_trials
from esper.strategies.contextual.ridge import Array, Ridges
from esper.strategies.scoring import outcomes_of

Model = Literal["shared", "disjoint"]
MODELS = tuple(sorted(get_args(Model)))

_SKETCH = 48
"""Numbers that encode (blueprint) x (features) in the shared regression."""


class ContextualKnowledge(LayerKnowledge, ABC):
    """Knowledge of one layer that learns from features.

    Attributes:
        layer_name: The layer; empty for metrics that no tracker made.
    """

    __slots__ = ("layer_name",)
    layer_name: str

    @abstractmethod
    def take(self, seed_idx: int, blueprint: str, seen: Features, reward: float) -> None:
        """Add an outcome of a seed under ``blueprint`` that was chosen by features ``seen``."""

    def names(self, seeds: Seeds, metrics: Metrics, context: SelectionContext) -> list[str]:
        """Names under which the seeds are learnt, by `identity`."""
        blueprints = [blueprint_of(metrics, context, seed) for seed in seeds]
        return [identity(self.layer_name, *one) for one in zip(seeds, blueprints, strict=True)]

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        blueprint = "" if decision is None else decision.blueprint
        self.take(seed_idx, blueprint, of_decision(decision), reward)

    @override
    def learn_unlogged(
        self, seed_idx: int, reward: float, blueprint: str, context: SelectionContext
    ) -> None:
        self.take(seed_idx, blueprint, of_seeds(context, [seed_idx])[seed_idx], reward)


@final
class Pool:
    """Regressions that the layers of one history share.

    Attributes:
        model: ``"shared"`` or ``"disjoint"``.
        ridges: One regression, or one for each of ``rows``.
        rows: Blueprint to its regression; empty if all share one.
    """

    def __init__(self, model: Model, ridge: float) -> None:
        self.model: Model = model
        shared = model == "shared"
        self.ridges = Ridges(WIDTH + _SKETCH if shared else WIDTH, ridge)
        self.rows: dict[str, int] = {}
        if shared:
            self.ridges.add()


@final
class LinearKnowledge(ContextualKnowledge):
    """Shared pool, and regressions of the layer's seeds that have no blueprint.

    Args:
        layer_name: The layer.
        model: ``"shared"`` or ``"disjoint"``.
        ridge: As of `Ridges`.
    """

    __slots__ = ("_alone", "_rows", "pool")

    def __init__(self, layer_name: str, model: Model, ridge: float) -> None:
        self.layer_name = layer_name
        self.pool = Pool(model, ridge)
        self._alone: Ridges | None = None
        self._rows: dict[int, int] = {}

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, LinearKnowledge):
            self.pool = other.pool

    @override
    def take(self, seed_idx: int, blueprint: str, seen: Features, reward: float) -> None:
        pool = self.pool
        if pool.model == "shared":
            name = identity(self.layer_name, seed_idx, blueprint)
            pool.ridges.learn(0, _with_sketch([name], [seen])[0], reward)
        elif blueprint:
            if blueprint not in pool.rows:
                pool.rows[blueprint] = pool.ridges.add()
            pool.ridges.learn(pool.rows[blueprint], np.array(seen), reward)
        else:
            if self._alone is None:
                self._alone = Ridges(WIDTH, pool.ridges.ridge)
            if seed_idx not in self._rows:
                self._rows[seed_idx] = self._alone.add()
            self._alone.learn(self._rows[seed_idx], np.array(seen), reward)

    @override
    def forget(self, seed_idx: int) -> None:
        # Outcomes of a blueprint stay valid; those of a seed without one do not.
        if self._alone is not None and seed_idx in self._rows:
            self._alone.reset(self._rows[seed_idx])

    def predict(self, viable: Seeds, metrics: Metrics, context: SelectionContext) -> Prediction:
        """Prediction for each of ``viable`` in ``context``."""
        seeds, ridges = sorted(viable), self.pool.ridges
        seen = of_seeds(context, seeds)
        trials = [trials_without_outcome(metrics, seed) for seed in seeds]
        if self.pool.model == "shared":
            names = self.names(seeds, metrics, context)
            means_K, covariance_KK = ridges.over(0, _with_sketch(names, list(seen.values())))
            covariance_KK = after_trials(covariance_KK, trials)
            variances, total = covariance_KK.diagonal().tolist(), ridges.outcomes
            support = [(outcomes_of(metrics, seed), "", total) for seed in seeds]
            means = means_K.tolist()
            return Prediction(seeds, means, variances, covariance_KK, seen, support, total)
        blueprints = [blueprint_of(metrics, context, seed) for seed in seeds]
        arms = [self.pool.rows.get(name, -1) if name else -1 for name in blueprints]
        if min(arms) >= 0:
            means, variances = _predict(ridges, arms, list(seen.values()))
            support = [
                (ridges.counts[arm], name, -1) for arm, name in zip(arms, blueprints, strict=True)
            ]
            total = ridges.outcomes
        else:
            means, variances, support, total = self._predict_mixed(seeds, blueprints, seen)
        if any(trials):
            rows = zip(variances, trials, strict=True)
            variances = [variance / (1 + more * variance) for variance, more in rows]
        return Prediction(seeds, means, variances, None, seen, support, total)

    def _predict_mixed(
        self, seeds: list[int], blueprints: list[str], seen: dict[int, Features]
    ) -> tuple[list[float], list[float], list[Support], int]:
        """Means, variances, support and total, where some seeds have no regression in the pool."""
        units: Ridges | None = None
        means, variances, support = [], [], list[Support]()
        for seed, name in zip(seeds, blueprints, strict=True):
            ridges = self.pool.ridges if name else self._alone
            arm = self.pool.rows.get(name) if name else self._rows.get(seed)
            if ridges is None or arm is None:
                variance = sum([value * value for value in seen[seed]]) / self.pool.ridges.ridge
                mean, known = 0.0, 0
            else:
                (mean,), (variance,) = _predict(ridges, [arm], [seen[seed]])
                known = ridges.counts[arm]
                units = units or ridges
                if ridges is not units:
                    mean, variance = _in_units_of(units, ridges, mean, variance)
            means.append(mean)
            variances.append(variance)
            support.append((known, name, -1))
        return means, variances, support, units.outcomes if units else 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.pool.model,
            "pool": self.pool.ridges.state_dict(),
            "blueprints": dict(self.pool.rows),
            "alone": None if self._alone is None else self._alone.state_dict(),
            "seeds": list(self._rows.items()),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("model") != self.pool.model:
            raise ConfigError(
                f"the state is of model {state.get('model')!r}, not of {self.pool.model!r}; resume "
                "with the settings that the run began with"
            )
        pool, ridge = Pool(self.pool.model, self.pool.ridges.ridge), self.pool.ridges.ridge
        pool.ridges.load_state_dict(state["pool"])
        alone = None if state["alone"] is None else Ridges(WIDTH, ridge)
        if alone is not None:
            alone.load_state_dict(state["alone"])
        self.pool.ridges, self.pool.rows = pool.ridges, dict(state["blueprints"])
        self._alone, self._rows = alone, dict(state["seeds"])


def trials_without_outcome(metrics: Metrics, seed_idx: int) -> int:
    """Choices without an outcome that count as trials, so that parallel choices spread."""
    record = metrics.get(seed_idx)
    if record is None:
        return 0
    return record.pending if record.outcomes else max(record.pending, record.total_activations)


def _predict(
    ridges: Ridges, arms: list[int], seen: list[Features]
) -> tuple[list[float], list[float]]:
    first = seen[0]
    for x in seen:
        if x is not first:
            return ridges.each(arms, np.array(seen))
    means, variances = ridges.at(np.array(first))
    return [means[arm] for arm in arms], [variances[arm] for arm in arms]


def _in_units_of(
    units: Ridges, ridges: Ridges, mean: float, variance: float
) -> tuple[float, float]:
    factor = ridges.scale / units.scale
    if not 0 < factor < float("inf"):  # the rewards of one of them do not differ
        return 0.0, variance
    shift = (ridges.centre - units.centre) / units.scale
    return mean * factor + shift, variance * factor**2


def _with_sketch(names: Sequence[str], seen: Sequence[Features]) -> Array:
    x_KW = np.array(seen)
    sketch_KS = [_sketch(name) @ x_W for name, x_W in zip(names, x_KW, strict=True)]
    return np.concatenate([x_KW, np.array(sketch_KS)], axis=1)


@lru_cache(maxsize=1024)
def _sketch(name: str) -> Array:
    """Random signs: products of two such sketches are, on average, those of the features alone."""
    signs = code(name, _SKETCH * WIDTH)
    sketch_SW: Array = np.array(signs).reshape(_SKETCH, WIDTH) * WIDTH**0.5
    return sketch_SW
