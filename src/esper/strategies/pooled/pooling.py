"""Random-effects model of mean rewards, by which the layers of a history share what they learn.

The mean reward of a kind in a layer is the kind's mean plus an effect of the layer, whose variance
is ``ratio`` noise variances; outcomes add the noise. A kind is a layer type and a blueprint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any, Final, NamedTuple, Protocol, final

from esper.records.layer_sums import ROUNDING

MEMORY: Final = 1000
"""Outcomes that means and noise remember."""

RATIO, _WEIGHT, LEAST = 0.25, 6.0, 0.02
"""Prior variance between layers, in noise variances; its degrees of freedom; its lower limit, by
which no kind's mean counts for more than 50 outcomes of a layer's own."""

_GROWTH: Final = 1.25
"""Growth in outcomes after which the variance between layers is estimated again."""


class Prior(NamedTuple):
    """Prior of a seed's mean reward, from other layers.

    Attributes:
        mean: Mean reward of its kind there.
        weight: Outcomes of the seed's own that it counts for.
        layers: Seeds of its kind elsewhere that it draws on.
    """

    mean: float
    weight: float
    layers: int


class Member(Protocol):
    """Layer of the pool."""

    def cells(self) -> Iterable[tuple[int, float, float]]:
        """Kind, mean and outcomes of each of its seeds that has a kind and outcomes."""
        ...


@final
@dataclass(slots=True)
class Kind:
    """Sums over the seeds of one kind: their number, weights and weighted means."""

    seeds: int = 0
    weight: float = 0.0
    weighted: float = 0.0


@final
class Pool:
    """Kinds of a history, the noise, and the variance between layers.

    Args:
        restarts: Layers restart when their rewards change.

    Attributes:
        restarts: As given.
        members: The layers.
        ratio: Variance of a kind's mean between layers, in noise variances.
    """

    __slots__ = ("_kinds", "_names", "_numbers", "_past", "members", "ratio", "restarts")

    def __init__(self, *, restarts: bool) -> None:
        self.restarts = restarts
        self.members: list[Member] = []
        self.ratio = RATIO
        self._names: dict[str, int] = {}
        self._kinds = [Kind()]  # the first one is "none"
        self._past: dict[int, tuple[float, float]] = {}
        self._numbers = dict.fromkeys(
            ("origin", "outcomes", "centre", "total", "surprises", "m2", "next"), 0.0
        )

    @property
    def shares(self) -> bool:
        """True if there is a kind, so that layers can learn from each other."""
        return bool(self._names)

    def number(self, kind: str) -> int:
        """Number of a kind, which gets one if it has none; 0 for no kind."""
        if not kind:
            return 0
        found = self._names.get(kind)
        if found is None:
            found = self._names[kind] = len(self._kinds)
            self._kinds.append(Kind())
        return found

    def known(self, kind: str) -> int:
        """Number of a kind; 0 if there is none of that name."""
        return self._names.get(kind, 0)

    def enter(self, kind: int, mean: float, known: float, seeds: int = 1) -> None:
        """Add a seed of the kind that has this mean over ``known`` > 0 outcomes."""
        weight, one = seeds / (self.ratio + 1 / known), self._kinds[kind]
        one.seeds += seeds
        one.weight += weight
        one.weighted += weight * (mean - self._numbers["origin"])

    def leave(self, kind: int, mean: float, known: float) -> None:
        """Remove the seed that entered with these numbers."""
        self.enter(kind, mean, known, -1)

    def retire(self, kind: int, mean: float, known: float) -> None:
        """Keep the outcomes of a seed that changes its kind, as those of one past seed per kind."""
        self.leave(kind, mean, known)
        past, outcomes = self._past.get(kind, (mean, 0.0))
        if outcomes:
            self.leave(kind, past, outcomes)
        outcomes += known
        past += (mean - past) * known / outcomes
        self._past[kind] = past, outcomes
        self.enter(kind, past, outcomes)

    def prior(self, kind: int, mean: float, known: float) -> Prior | None:
        """Prior of a seed with these numbers, from the other seeds of its kind; ``None`` without.

        The mean of the others has variance ``ratio + 1 / (sum of their weights)`` as a forecast, in
        noise variances, so it is worth one over that many outcomes.

        Example:
            Twice 1.0 in one layer, four times 0.0 in another, ratio 0.25. For the second, the first
            is worth ``1 / (0.25 + 0.25 + 1/2) = 1`` outcome.

            >>> pool = Pool(restarts=False)
            >>> kind = pool.number("Linear/glu")
            >>> pool.enter(kind, 1.0, 2.0)
            >>> pool.enter(kind, 0.0, 4.0)
            >>> [round(number, 9) for number in pool.prior(kind, 0.0, 4.0)]
            [1.0, 1.0, 1]
        """
        one, origin = self._kinds[kind], self._numbers["origin"]
        seeds, weight, weighted = one.seeds, one.weight, one.weighted
        if known:
            own = 1 / (self.ratio + 1 / known)
            seeds, weight, weighted = seeds - 1, weight - own, weighted - own * (mean - origin)
        if seeds < 1 or weight <= 0:
            return None
        return Prior(origin + weighted / weight, 1 / (self.ratio + 1 / weight), seeds)

    def variance(self) -> float:
        """Variance of an outcome about its forecast; 0 if rewards do not differ.

        ``(sum of squared surprises + variance of all) / (surprises + 1)``; a surprise is the
        distance from the forecast, in units of what the noise would make of it.
        """
        numbers = self._numbers
        seen = numbers["outcomes"]
        total = numbers["total"] / (seen - 1) if seen > 1 else 0.0
        return (numbers["m2"] + total) / (numbers["surprises"] + 1)

    def noise(self) -> float:
        """Root of `variance`; inf if rewards do not differ."""
        variance, numbers = self.variance(), self._numbers
        noise = sqrt(variance) if variance > 0 else 0.0
        return noise if noise > ROUNDING * abs(numbers["origin"] + numbers["centre"]) else inf

    def count(self, reward: float, forecast: float, weight: float) -> None:
        """Add an outcome to the spread and the noise.

        Args:
            reward: The reward.
            forecast: Its expected value.
            weight: Outcomes that the forecast is worth; 0 for none.
        """
        numbers = self._numbers
        if not numbers["outcomes"]:
            # Relative to the first of all: equal rewards then differ by exactly nothing.
            numbers["origin"] = reward
        numbers["outcomes"] += 1
        reward -= numbers["origin"]
        off = reward - numbers["centre"]
        numbers["centre"] += off / min(numbers["outcomes"], MEMORY)
        numbers["total"] += off * (reward - numbers["centre"])
        if not weight:
            return
        if numbers["surprises"] < MEMORY:
            numbers["surprises"] += 1
        else:
            numbers["m2"] -= numbers["m2"] / MEMORY
        off = reward - (forecast - numbers["origin"])
        numbers["m2"] += off * off * weight / (weight + 1)

    def settle(self) -> None:
        """Estimate the variance between layers again, after a quarter more outcomes."""
        numbers = self._numbers
        if numbers["outcomes"] < numbers["next"]:
            return
        numbers["next"] = numbers["outcomes"] * _GROWTH
        groups: list[list[tuple[float, float]]] = [[] for _ in self._kinds]
        past = [(kind, mean, known) for kind, (mean, known) in self._past.items()]
        for cells in (past, *[member.cells() for member in self.members]):
            for kind, mean, known in cells:
                groups[kind].append((mean - numbers["origin"], known))
        self.ratio = between(groups, self.noise())
        for one, group in zip(self._kinds, groups, strict=True):
            weights = [1 / (self.ratio + 1 / known) for _, known in group]
            one.seeds, one.weight = len(group), sum(weights)
            one.weighted = sum(
                [weight * mean for weight, (mean, _) in zip(weights, group, strict=True)]
            )

    def state_dict(self) -> dict[str, Any]:
        """State that is not in the layers, as JSON data."""
        return {
            "ratio": self.ratio,
            "numbers": dict(self._numbers),
            # A list, since kinds go by their place, and a writer may sort a mapping.
            "kinds": [
                [name, kind.seeds, kind.weight, kind.weighted]
                for name, kind in zip(self._names, self._kinds[1:], strict=True)
            ],
            "past": [[kind, mean, known] for kind, (mean, known) in self._past.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; an error leaves all as it was."""
        kinds = [
            Kind(int(seeds), float(weight), float(weighted))
            for _, seeds, weight, weighted in state["kinds"]
        ]
        numbers = {name: float(state["numbers"][name]) for name in self._numbers}
        past = {int(kind): (float(mean), float(known)) for kind, mean, known in state["past"]}
        ratio = float(state["ratio"])
        sums = [number for kind in kinds for number in (kind.weight, kind.weighted)]
        if not all(map(isfinite, (*numbers.values(), *sums, ratio))) or ratio < LEAST:
            raise ValueError(ratio)
        self._names = {str(kind[0]): at for at, kind in enumerate(state["kinds"], start=1)}
        self._kinds, self._past = [Kind(), *kinds], past
        self._numbers, self.ratio = numbers, ratio


def between(groups: Iterable[Sequence[tuple[float, float]]], noise: float) -> float:
    """Variance of a kind's mean between layers, in noise variances, by the method of moments.

    The variance of the layers' means is on average that between layers and ``1 / n`` of noise; each
    kind counts as many degrees of freedom as it has layers, less one, and 0.25 counts for 6.

    Args:
        groups: Mean and outcomes of every seed of a kind, kind by kind.
        noise: Standard deviation of an outcome; inf if rewards do not differ.

    Example:
        Two layers with one outcome each, 0 and 3, noise 1: a variance of 4.5, of which 1 is noise.

        >>> between([[(0.0, 1.0), (3.0, 1.0)]], 1.0)  # (3.5 + 6 * 0.25) / (1 + 6)
        0.7142857142857143
    """
    found, freedom = RATIO * _WEIGHT, _WEIGHT
    for group in groups:
        layers = len(group)
        if layers < 2 or not isfinite(noise):
            continue
        centre = sum([mean for mean, _ in group]) / layers
        squares = sum([((mean - centre) / noise) ** 2 for mean, _ in group])
        chance = sum([1 / known for _, known in group]) / layers
        found += squares - (layers - 1) * chance
        freedom += layers - 1
    return max(found / freedom, LEAST)


def kind_of(layer_type: str, blueprint: str) -> str:
    """Name of a kind, by which a seed is like seeds of other layers; empty without a blueprint.

    Example:
        >>> kind_of("Linear", "lowrank"), kind_of("Linear", "")
        ('Linear/lowrank', '')
    """
    return f"{layer_type}/{blueprint}" if blueprint else ""
