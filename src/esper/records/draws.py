"""Random numbers of a choice, as a function of run seed, layer and number of the choice alone.

No generator is carried from one choice to the next, so a run that is resumed, replayed or spread
over processes draws the same numbers, and a choice that draws nothing pays nothing.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from math import cos, log, pi, sin, sqrt
from random import Random  # noqa: TID251 (seeded by us with an integer; never the global one)
from struct import Struct, unpack
from typing import final

_WORD = 2**53
_SHARE = 2.0**-32
_TURN = 2 * pi * _SHARE
_EIGHT = Struct("<8I").unpack_from


@final
class Draws:
    """Random numbers of one choice, in order; equal arguments give equal numbers.

    Args:
        run_seed: The run's seed, any integer.
        layer_name: The layer that grows.
        number: Number of the choice in that layer, from 0.

    Example:
        >>> Draws(0, "fc1", 3).uniform() == Draws(0, "fc1", 3).uniform()
        True
        >>> Draws(0, "fc1", 3).uniform() == Draws(0, "fc1", 4).uniform()
        False
    """

    __slots__ = (
        "_generator",
        "_next_block",
        "_normals",
        "_words",
        "layer_name",
        "number",
        "run_seed",
    )

    def __init__(self, run_seed: int, layer_name: str, number: int) -> None:
        self.run_seed = run_seed
        self.layer_name = layer_name
        self.number = number
        self._words: Iterator[int] | None = None
        self._generator: Random | None = None

    def uniform(self) -> float:
        """Number in [0, 1)."""
        return next(self._words or self._begin()) / _WORD

    def index(self, size: int) -> int:
        """Whole number in [0, ``size``), ``size`` < 2**20."""
        return next(self._words or self._begin()) * size // _WORD

    def beta(self, alpha: float, beta: float) -> float:
        """Number in [0, 1] from Beta(``alpha``, ``beta``), both > 0."""
        return (self._generator or self._start()).betavariate(alpha, beta)

    def normal(self, mean: float, sd: float) -> float:
        """Number from the normal distribution."""
        return (self._generator or self._start()).normalvariate(mean, sd)

    def normals(self, size: int) -> list[float]:
        """First ``size`` numbers of a separate standard normal stream, by the Box-Muller method.

        One digest makes sixteen, of 32 random bits each; seeding a generator would take longer than
        all the rest of a choice.
        """
        digest = _digest(self.run_seed, self.layer_name, self.number, -2)
        found = _eight_normals(*_EIGHT(digest))
        if size == 8:  # as for a layer of eight seeds
            return found
        half, block = 1, -2
        while len(found) < size:
            if half == 2:
                half, block = 0, block - 1
                digest = _digest(self.run_seed, self.layer_name, self.number, block)
            found += _eight_normals(*_EIGHT(digest, 32 * half))
            half += 1
        return found[:size]

    def _begin(self) -> Iterator[int]:
        self._words = _words(self.run_seed, self.layer_name, self.number)
        return self._words

    def _start(self) -> Random:
        key = _digest(self.run_seed, self.layer_name, self.number, -1)[:16]
        self._generator = Random(int.from_bytes(key, "big"))
        return self._generator


def _eight_normals(  # noqa: PLR0913, PLR0917 (a loop over pairs takes half as long again)
    a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int
) -> list[float]:
    first = sqrt(-2.0 * log((a + 1) * _SHARE))
    second = sqrt(-2.0 * log((c + 1) * _SHARE))
    third = sqrt(-2.0 * log((e + 1) * _SHARE))
    fourth = sqrt(-2.0 * log((g + 1) * _SHARE))
    one, two, three, four = b * _TURN, d * _TURN, f * _TURN, h * _TURN
    return [
        *(first * cos(one), first * sin(one), second * cos(two), second * sin(two)),
        *(third * cos(three), third * sin(three), fourth * cos(four), fourth * sin(four)),
    ]


def _words(run_seed: int, layer_name: str, number: int) -> Iterator[int]:
    # Seeding a Random takes longer than the whole choice; most choices draw one number or two.
    for block in count():
        for word in unpack("<8Q", _digest(run_seed, layer_name, number, block)):
            yield word >> 11


def _digest(run_seed: int, layer_name: str, number: int, block: int) -> bytes:
    return blake2b(f"{run_seed}/{number}/{block}/{layer_name}".encode()).digest()
