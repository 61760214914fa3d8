"""What layers share: a blueprint does in one layer about what it does in others like it."""

from collections.abc import Mapping
from math import inf, isfinite, sqrt
from typing import Any, Final, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision
from esper.services.tamiyo.history import LayerKnowledge
from esper.services.tamiyo.strategies._pooling import (
    LEAST,
    MEMORY,
    NOTHING,
    RATIO,
    Cell,
    Kind,
    Standing,
    between,
)

_GROWTH: Final = 1.25
"""After so many times as many outcomes the variance between layers is estimated anew."""

_ROUNDING: Final = 1e-12
"""A spread below this share of the rewards' size is rounding, not information."""


@final
class Pool:
    """The kinds of a history, the noise, and how far layers are apart.

    Attributes:
        kinds: By layer type and blueprint.
        ratio: Variance of a kind's mean between layers, in noise variances.
    """

    __slots__ = ("_numbers", "kinds", "ratio")

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.ratio = RATIO
        self._numbers = dict.fromkeys(
            ("origin", "outcomes", "centre", "total", "surprises", "m2", "next"), 0.0
        )

    def relative(self, reward: float) -> float:
        """The reward less the first one of all: equal rewards then differ by exactly nothing."""
        numbers = self._numbers
        if not numbers["outcomes"]:
            numbers["origin"] = reward
        return reward - numbers["origin"]

    def noise(self) -> float:
        """Standard deviation of an outcome about its cell's mean; inf if rewards do not differ.

        ``sqrt((sum of squared surprises + variance of all) / (surprises + 1))``; a surprise is the
        distance from the forecast, in units of what the noise would make of it.
        """
        numbers = self._numbers
        seen = numbers["outcomes"]
        total = numbers["total"] / (seen - 1) if seen > 1 else 0.0
        variance = (numbers["m2"] + total) / (numbers["surprises"] + 1)
        noise = sqrt(variance) if variance > 0 else 0.0
        return noise if noise > _ROUNDING * abs(numbers["origin"] + numbers["centre"]) else inf

    def count(self, reward: float, forecast: Standing) -> None:
        """Take an outcome, relative to the first, into the spread and the noise."""
        numbers = self._numbers
        numbers["outcomes"] += 1
        off = reward - numbers["centre"]
        numbers["centre"] += off / min(numbers["outcomes"], MEMORY)
        numbers["total"] += off * (reward - numbers["centre"])
        if not forecast.weight:
            return
        if numbers["surprises"] < MEMORY:
            numbers["surprises"] += 1
        else:
            numbers["m2"] -= numbers["m2"] / MEMORY
        off = reward - forecast.mean
        numbers["m2"] += off * off * forecast.weight / (forecast.weight + 1)

    def settle(self) -> None:
        """Estimate the variance between layers anew, if there is a quarter more to go by."""
        numbers = self._numbers
        if numbers["outcomes"] < numbers["next"]:
            return
        numbers["next"] = numbers["outcomes"] * _GROWTH
        self.ratio = between(self.kinds, self.noise())
        for kind in self.kinds.values():
            kind.weigh_all(self.ratio)

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as JSON data."""
        return {
            "ratio": self.ratio,
            "numbers": dict(self._numbers),
            "kinds": {
                name: {
                    "weight": kind.weight,
                    "weighted": kind.weighted,
                    "cells": {
                        layer: [cell.count, cell.mean, cell.weight]
                        for layer, cell in kind.cells.items()
                    },
                }
                for name, kind in self.kinds.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked."""
        kinds = {}
        for name, data in state["kinds"].items():
            kind = kinds[name] = Kind()
            kind.weight, kind.weighted = float(data["weight"]), float(data["weighted"])
            kind.cells = {layer: _cell(numbers) for layer, numbers in data["cells"].items()}
        numbers = {name: float(state["numbers"][name]) for name in self._numbers}
        ratio = float(state["ratio"])
        sums = [number for kind in kinds.values() for number in (kind.weight, kind.weighted)]
        if not all(map(isfinite, (*numbers.values(), *sums, ratio))) or ratio < LEAST:
            raise ValueError(ratio)
        self.kinds, self._numbers, self.ratio = kinds, numbers, ratio


@final
class Kinds(LayerKnowledge):
    """One layer's view of the pool that all layers of a history share.

    A seed without a blueprint is like no other: it is learnt alone.

    Args:
        layer_name: Dotted name of the layer.

    Attributes:
        pool: Shared by all layers of a history.
    """

    __slots__ = ("_alone", "_kinds", "_name", "pool")

    def __init__(self, layer_name: str) -> None:
        self.pool = Pool()
        self._name = layer_name
        self._kinds: dict[int, str] = {}
        self._alone: dict[int, Cell] = {}

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, Kinds):
            self.pool = other.pool

    def standing(self, seed_idx: int, kind: str) -> Standing:
        """What is believed of a seed that stands for ``kind``, empty for one that is like none."""
        if kind:
            found = self.pool.kinds.get(kind)
            return found.standing(self._name, self.pool.ratio) if found else NOTHING
        cell = self._alone.get(seed_idx)
        return Standing(cell.mean, cell.count, cell.count, 0) if cell else NOTHING

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        if decision is not None:
            self._kinds[seed_idx] = kind_of(decision.layer_type, decision.blueprint)
        self.take(seed_idx, self._kinds.get(seed_idx, ""), reward)

    def take(self, seed_idx: int, kind: str, reward: float) -> None:
        """Take in an outcome of a seed that stood for ``kind``."""
        pool = self.pool
        reward = pool.relative(reward)
        pool.count(reward, self.standing(seed_idx, kind))
        if not kind:
            cell = self._alone.get(seed_idx) or self._alone.setdefault(seed_idx, Cell())
            cell.add(reward)
            return
        shared = pool.kinds.get(kind) or pool.kinds.setdefault(kind, Kind())
        cell = shared.cells.get(self._name) or shared.cells.setdefault(self._name, Cell())
        shared.weighted -= cell.weight * cell.mean
        cell.add(reward)
        shared.weigh(cell, pool.ratio)
        shared.weighted += cell.weight * cell.mean
        pool.settle()

    @override
    def forget(self, seed_idx: int) -> None:
        # What is known of a kind stays true; what is known of a seed alone does not.
        self._kinds.pop(seed_idx, None)
        self._alone.pop(seed_idx, None)

    @override
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as JSON data, the pool included."""
        return {
            "pool": self.pool.state_dict(),
            "kinds": {str(seed): kind for seed, kind in self._kinds.items()},
            "alone": {
                str(seed): [cell.count, cell.mean, cell.weight]
                for seed, cell in self._alone.items()
            },
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked; the layers that share the pool do so too.

        Raises:
            ConfigError: if ``state`` is another strategy's; nothing is taken over then.
        """
        try:
            kinds = {int(seed): str(kind) for seed, kind in state["kinds"].items()}
            alone = {int(seed): _cell(numbers) for seed, numbers in state["alone"].items()}
            self.pool.load_state_dict(state["pool"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"state has {', '.join(state) or 'nothing'}; it must have pool, kinds and alone, "
                "as state_dict() gave them; the state belongs to another strategy"
            ) from error
        self._kinds, self._alone = kinds, alone


def kind_of(layer_type: str, blueprint: str) -> str:
    """What a seed has in common with seeds of other layers; empty if nothing is known to be.

    Example:
        >>> kind_of("Linear", "lowrank"), kind_of("Linear", "")
        ('Linear/lowrank', '')
    """
    return f"{layer_type}/{blueprint}" if blueprint else ""


def _cell(numbers: Any) -> Cell:
    count, mean, weight = map(float, numbers)
    if not (count >= 1 and isfinite(count) and isfinite(mean) and isfinite(weight)):
        raise ValueError(numbers)
    return Cell(count, mean, weight)
