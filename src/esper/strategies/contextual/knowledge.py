"""What linear contextual strategies learn: regressions of rewards on features.

``disjoint``: one regression for each blueprint, over all layers of a history; a seed without a
blueprint has one of its own in its layer. ``shared``: one for everything, on the features, and on a
sketch of (seed or blueprint) x (features), by which what suits one need not suit another.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, final

import numpy as np
from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext
from esper.records.layer import LayerKnowledge
from esper.strategies.base import Metrics, rewards_of
from esper.strategies.contextual.features import (
    WIDTH,
    Features,
    code,
    identity,
    of_decision,
    of_seeds,
)
from esper.strategies.contextual.predictions import Prediction, after_trials
from esper.strategies.contextual.ridge import Array, Ridges

Model = Literal["shared", "disjoint"]
MODELS = ("disjoint", "shared")

_SKETCH = 48
"""Numbers that (blueprint) x (features) are told by in the shared regression."""


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
class LinearKnowledge(LayerKnowledge):
    """One layer's view of the pool, and regressions of its seeds that have no blueprint.

    Args:
        layer_name: The layer.
        model: ``"shared"`` or ``"disjoint"``.
        ridge: As of `Ridges`.
    """

    __slots__ = ("_alone", "_rows", "layer_name", "pool")

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
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        if decision is None:
            self.take(seed_idx, "", of_seeds(SelectionContext(), [0])[0], reward)
        else:
            self.take(seed_idx, decision.blueprint, of_decision(decision), reward)

    def take(self, seed_idx: int, blueprint: str, seen: Features, reward: float) -> None:
        """Take in one outcome of a seed under ``blueprint``, chosen when ``seen`` was the case."""
        if self.pool.model == "shared":
            name = identity(self.layer_name, seed_idx, blueprint)
            self.pool.ridges.learn(0, _together([name], [seen])[0], reward)
        else:
            ridges, arm = self._regression(seed_idx, blueprint)
            ridges.learn(arm, np.array(seen), reward)

    @override
    def forget(self, seed_idx: int) -> None:
        # What was learnt of a blueprint is true of it still; what a bare seed earned is not.
        if self._alone is not None and seed_idx in self._rows:
            self._alone.reset(self._rows[seed_idx])

    def predict(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext
    ) -> Prediction:
        """What is expected of each of ``viable`` now; changes nothing."""
        seeds = sorted(viable)
        blueprints = [blueprint_of(metrics, context, seed) for seed in seeds]
        seen = of_seeds(context, seeds)
        trials = [unheard(metrics, seed) for seed in seeds]
        if self.pool.model == "shared":
            return self._predict_shared(seeds, blueprints, seen, trials, metrics)
        return self._predict_disjoint(seeds, blueprints, seen, trials)

    def _predict_shared(
        self,
        seeds: list[int],
        blueprints: list[str],
        seen: dict[int, Features],
        trials: list[int],
        metrics: Metrics,
    ) -> Prediction:
        names = [
            identity(self.layer_name, seed, blueprint)
            for seed, blueprint in zip(seeds, blueprints, strict=True)
        ]
        x_KD = _together(names, list(seen.values()))
        means_K, covariance_KK = self.pool.ridges.over(0, x_KD)
        covariance_KK = after_trials(covariance_KK, trials)
        total = self.pool.ridges.outcomes
        counts = [metrics[seed].count if seed in metrics else 0 for seed in seeds]
        return Prediction(
            seeds,
            means_K.tolist(),
            covariance_KK.diagonal().tolist(),
            covariance_KK,
            seen,
            [(count, "", total) for count in counts],
            total,
        )

    def _predict_disjoint(
        self,
        seeds: list[int],
        blueprints: list[str],
        seen: dict[int, Features],
        trials: list[int],
    ) -> Prediction:
        pool = self.pool
        arms = [pool.rows.get(name, -1) if name else -1 for name in blueprints]
        if min(arms) >= 0:
            means, variances = _asked(pool.ridges, arms, list(seen.values()))
            behind = [
                (pool.ridges.counts[arm], name, -1)
                for arm, name in zip(arms, blueprints, strict=True)
            ]
            yardstick: Ridges | None = pool.ridges
        else:
            yardstick, means, variances, behind = self._ask_both(seeds, blueprints, seen)
        if any(trials):
            variances = [
                variance / (1 + waiting * variance)
                for variance, waiting in zip(variances, trials, strict=True)
            ]
        total = yardstick.outcomes if yardstick else 0
        return Prediction(seeds, means, variances, None, seen, behind, total)

    def _ask_both(
        self, seeds: list[int], blueprints: list[str], seen: dict[int, Features]
    ) -> tuple[Ridges | None, list[float], list[float], list[tuple[int, str, int]]]:
        # Seeds with a blueprint, seeds without one, and seeds of which nothing is known.
        yardstick: Ridges | None = None
        means, variances, behind = [], [], []
        for seed, name in zip(seeds, blueprints, strict=True):
            ridges = self.pool.ridges if name else self._alone
            arm = self.pool.rows.get(name) if name else self._rows.get(seed)
            if ridges is None or arm is None:
                ahead = sum([value * value for value in seen[seed]]) / self.pool.ridges.ridge
                mean, variance, known = 0.0, ahead, 0
            else:
                (mean,), (variance,) = _asked(ridges, [arm], [seen[seed]])
                known = ridges.counts[arm]
                yardstick = yardstick or ridges
                if ridges is not yardstick:
                    mean, variance = _in_units_of(yardstick, ridges, mean, variance)
            means.append(mean)
            variances.append(variance)
            behind.append((known, name, -1))
        return yardstick, means, variances, behind

    def _regression(self, seed_idx: int, blueprint: str) -> tuple[Ridges, int]:
        if blueprint:
            pool = self.pool
            if blueprint not in pool.rows:
                pool.rows[blueprint] = pool.ridges.add()
            return pool.ridges, pool.rows[blueprint]
        if self._alone is None:
            self._alone = Ridges(WIDTH, self.pool.ridges.ridge)
        if seed_idx not in self._rows:
            self._rows[seed_idx] = self._alone.add()
        return self._alone, self._rows[seed_idx]

    @override
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt as JSON data, the pool included."""
        return {
            "model": self.pool.model,
            "pool": self.pool.ridges.state_dict(),
            "blueprints": dict(self.pool.rows),
            "alone": None if self._alone is None else self._alone.state_dict(),
            "seeds": list(self._rows.items()),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked; the layers that share the pool do so too.

        Raises:
            ConfigError: if the state is of another model.
        """
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


def known_of(
    metrics: Metrics, context: SelectionContext, model: Model, ridge: float
) -> LinearKnowledge:
    """What was learnt; of hand-made metrics, their rewards, as if earned in ``context``."""
    found = getattr(metrics, "knowledge", None)
    if isinstance(found, LinearKnowledge):
        return found
    made = LinearKnowledge("", model, ridge)
    for seed in sorted(metrics):
        blueprint, seen = blueprint_of(metrics, context, seed), of_seeds(context, [seed])[seed]
        for reward in rewards_of(metrics[seed]):
            made.take(seed, blueprint, seen, reward)
    return made


def _asked(
    ridges: Ridges, arms: list[int], seen: list[Features]
) -> tuple[list[float], list[float]]:
    """What regressions predict, each at a point of its own."""
    first = seen[0]
    for x in seen:
        if x is not first:
            return ridges.each(arms, np.array(seen))
    means, variances = ridges.at(np.array(first))
    return [means[arm] for arm in arms], [variances[arm] for arm in arms]


def _in_units_of(
    yardstick: Ridges, ridges: Ridges, mean: float, variance: float
) -> tuple[float, float]:
    """A prediction in the units of ``yardstick`` that was made in those of ``ridges``."""
    factor = ridges.scale / yardstick.scale
    if not 0 < factor < float("inf"):  # one of them knows of no spread
        return 0.0, variance
    return mean * factor + (
        ridges.centre - yardstick.centre
    ) / yardstick.scale, variance * factor**2


def _together(names: Sequence[str], seen: Sequence[Features]) -> Array:
    x_KW = np.array(seen)
    sketch_KS = [_sketch(name) @ x_W for name, x_W in zip(names, x_KW, strict=True)]
    return np.concatenate([x_KW, np.array(sketch_KS)], axis=1)


@lru_cache(maxsize=1024)
def _sketch(name: str) -> Array:
    """Random signs: products of two such sketches are, on average, those of the features alone."""
    signs = code(name, _SKETCH * WIDTH)
    sketch_SW: Array = np.array(signs).reshape(_SKETCH, WIDTH) * WIDTH**0.5
    return sketch_SW


def blueprint_of(metrics: Metrics, context: SelectionContext, seed_idx: int) -> str:
    """What the seed stands for; empty if that is not known."""
    blueprint: str = getattr(metrics.get(seed_idx), "blueprint", "")
    return context.blueprints.get(seed_idx, blueprint)


def unheard(metrics: Metrics, seed_idx: int) -> int:
    """Choices without an outcome that count as trials, so that parallel choices spread."""
    record = metrics.get(seed_idx)
    if record is None:
        return 0
    waiting: int = record.pending
    return waiting if record.outcomes else max(waiting, record.total_activations)
