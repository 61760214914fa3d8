"""Propensities: the probability of each seed being chosen, as numbers or computed when read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Chance(Protocol):
    """Propensities of a choice, computed only when they are read.

    A value: immutable, comparable, and the same answer at every call. One that can give all of
    them more cheaply than one by one is a `Chances`.
    """

    def of(self, seed_idx: int) -> float:
        """Probability with which ``seed_idx`` is chosen; in (0, 1] for the seed that was."""
        ...


class Chances(Chance, Protocol):
    """A `Chance` that knows the propensities of all viable seeds at once; `of` is one of `all`."""

    @property
    def error(self) -> float:
        """Largest absolute error of a propensity; 0 where they are exact."""
        ...

    def all(self) -> Mapping[int, float]:
        """Probability of every viable seed; what is not in it has 0."""
        ...


@dataclass(frozen=True, slots=True)
class Propensities:
    """Propensities of all viable seeds, as plain numbers; a `Chances`.

    Attributes:
        by_seed: Seed to probability; they add up to 1.
        error: Largest absolute error of one of them; 0 where they are exact.
    """

    by_seed: Mapping[int, float]
    error: float = 0.0

    def of(self, seed_idx: int) -> float:
        """Probability of one seed."""
        return self.by_seed.get(seed_idx, 0.0)

    def all(self) -> Mapping[int, float]:
        """Probability of every seed."""
        return self.by_seed


def spread(known: Mapping[int, float], viable: Sequence[int]) -> Propensities:
    """The propensities of all of ``viable`` where only some are known.

    What the known ones leave is spread evenly; the error is as far off as that can be.

    Example:
        A seed has 0.7; the other two share 0.3, and either could have all of it:

        >>> spread({0: 0.7}, [0, 1, 2])
        Propensities(by_seed={0: 0.7, 1: 0.15000000000000002, 2: 0.15000000000000002}, error=0.15)
        >>> spread({0: 0.7}, [0, 1]).error, spread({0: 1.0}, [0, 1, 2]).error
        (0.0, 0.0)
    """
    total = sum(known.values())
    unknown = [seed for seed in viable if seed not in known]
    left = 1.0 - total
    if left <= ROUNDING:
        unknown, left = [], 0.0
    share = left / len(unknown) if unknown else 0.0
    if unknown:
        error = max(share, left - share) if len(unknown) > 1 else 0.0
        found = {seed: known.get(seed, share) for seed in viable}
    else:
        error = abs(1.0 - total)
        found = {seed: known.get(seed, 0.0) / total for seed in viable}
    return Propensities(found, round(error, 12))


ROUNDING = 1e-9
"""Probabilities that differ by less are the same."""


def worked_out(
    given: float | Mapping[int, float] | Chance, seed_idx: int, viable: Sequence[int]
) -> Propensities:
    """The propensities of all of ``viable``, from whatever a strategy gave when it chose.

    Args:
        given: The probability of ``seed_idx``, or of every seed, or what knows either.
        seed_idx: The seed that was chosen.
        viable: All that could have been.

    Example:
        >>> worked_out({0: 0.25, 1: 0.75}, 1, [0, 1, 2]).by_seed, worked_out(1.0, 1, [0, 1]).by_seed
        ({0: 0.25, 1: 0.75, 2: 0.0}, {0: 0.0, 1: 1.0})
    """
    if isinstance(given, int | float):
        if given < 1.0 - ROUNDING:
            return spread({seed_idx: given}, viable)
        found = dict.fromkeys(viable, 0.0)
        found[seed_idx] = 1.0
        return Propensities(found)
    if isinstance(given, Mapping):
        return Propensities({seed: given.get(seed, 0.0) for seed in viable})
    if hasattr(given, "all"):
        chances = given.all()
        return Propensities({seed: chances.get(seed, 0.0) for seed in viable}, given.error)  # type: ignore[attr-defined]  # a Chances, then
    chances = {seed: given.of(seed) for seed in viable}
    return Propensities(chances, round(abs(1.0 - sum(chances.values())), 9))
