"""Randomness of a choice: a function of run seed, layer and number of the choice, nothing else.

No generator is carried from one choice to the next, so a run that is resumed, replayed or spread
over processes draws the same numbers, and a choice that draws nothing pays nothing.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from random import Random  # noqa: TID251 (seeded by us with an integer; never the global one)
from struct import unpack
from typing import final

_WORD = 2**53


@final
class Draws:
    """The random numbers of one choice, in order; equal arguments give equal numbers.

    Args:
        run_seed: The run's seed, any integer.
        layer_name: The layer that grows.
        number: Which choice of that layer, from 0.

    Example:
        >>> Draws(0, "fc1", 3).uniform() == Draws(0, "fc1", 3).uniform()
        True
        >>> Draws(0, "fc1", 3).uniform() == Draws(0, "fc1", 4).uniform()
        False
    """

    __slots__ = ("_generator", "_words", "layer_name", "number", "run_seed")

    def __init__(self, run_seed: int, layer_name: str, number: int) -> None:
        self.run_seed = run_seed
        self.layer_name = layer_name
        self.number = number
        self._words: Iterator[int] | None = None
        self._generator: Random | None = None

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return next(self._words or self._begin()) / _WORD

    def index(self, size: int) -> int:
        """A whole number in [0, ``size``), ``size`` < 2**20."""
        return next(self._words or self._begin()) * size // _WORD

    def beta(self, alpha: float, beta: float) -> float:
        """A number in [0, 1] from Beta(``alpha``, ``beta``), both > 0."""
        return (self._generator or self._start()).betavariate(alpha, beta)

    def normal(self, mean: float, sd: float) -> float:
        """A number from the normal distribution."""
        return (self._generator or self._start()).normalvariate(mean, sd)

    def _begin(self) -> Iterator[int]:
        self._words = _words(self.run_seed, self.layer_name, self.number)
        return self._words

    def _start(self) -> Random:
        key = _digest(self.run_seed, self.layer_name, self.number, -1)[:16]
        self._generator = Random(int.from_bytes(key, "big"))
        return self._generator


def _words(run_seed: int, layer_name: str, number: int) -> Iterator[int]:
    # Seeding a Random takes longer than the whole choice; most choices draw one number or two.
    for block in count():
        for word in unpack("<8Q", _digest(run_seed, layer_name, number, block)):
            yield word >> 11


def _digest(run_seed: int, layer_name: str, number: int, block: int) -> bytes:
    return blake2b(f"{run_seed}/{number}/{block}/{layer_name}".encode()).digest()
