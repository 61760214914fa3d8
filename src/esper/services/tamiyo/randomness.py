"""Randomness of a choice: a function of run seed, layer and number of the choice, nothing else.

No generator is carried from one choice to the next, so a run that is resumed, replayed or spread
over processes draws the same numbers, and a choice that draws nothing pays nothing.
"""

from hashlib import blake2b
from random import Random  # noqa: TID251 (seeded by us with an integer; never the global one)
from typing import final


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

    __slots__ = ("_generator", "layer_name", "number", "run_seed")

    def __init__(self, run_seed: int, layer_name: str, number: int) -> None:
        self.run_seed = run_seed
        self.layer_name = layer_name
        self.number = number
        self._generator: Random | None = None

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return (self._generator or self._start()).random()

    def index(self, size: int) -> int:
        """A whole number in [0, ``size``)."""
        return (self._generator or self._start()).randrange(size)

    def beta(self, alpha: float, beta: float) -> float:
        """A number in [0, 1] from Beta(``alpha``, ``beta``), both > 0."""
        return (self._generator or self._start()).betavariate(alpha, beta)

    def normal(self, mean: float, sd: float) -> float:
        """A number from the normal distribution."""
        return (self._generator or self._start()).normalvariate(mean, sd)

    def _start(self) -> Random:
        text = f"{self.run_seed}/{self.number}/{self.layer_name}"
        key = blake2b(text.encode(), digest_size=16).digest()
        self._generator = Random(int.from_bytes(key, "big"))
        return self._generator
