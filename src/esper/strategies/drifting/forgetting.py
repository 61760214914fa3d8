"""Two ways to let old rewards fade: by a discount, and by a window."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from math import fsum
from typing import Any, ClassVar, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.strategies.learned import Learned, numbers

_CLOCK = 0
_GONE = -1.0
"""Seed of an outcome that was forgotten before its time."""

_HUGE = 1e6
"""Distance, in standard deviations, beyond which taking a reward out of a mean ruins the mean."""


class Forgetting(Learned, ABC):
    """Means of the seeds over outcomes of which the older ones count less, or no longer."""

    __slots__ = ()

    @abstractmethod
    def means(self) -> dict[int, tuple[float, float]]:
        """Outcomes of each seed that still count, as a number of new ones, and their mean."""

    @abstractmethod
    def total(self, waiting: int) -> float:
        """Outcomes of the layer that still count, and of ``waiting`` choices without one."""

    @abstractmethod
    def evidence(self, seed_idx: int) -> str:
        """How much is known of a seed, in words."""


@final
class Discounted(Forgetting):
    """Each outcome weighs ``discount`` times as much as the next one of the layer.

    A row holds the seed, its weight and mean, and when they were right: they are discounted only
    when they are looked at.

    Example:
        Discount 0.5, rewards 1 and then 4 of seed 0, then one of seed 1: seed 0 has weight
        ``0.5 + 0.25`` and mean ``(0.25 * 1 + 0.5 * 4) / 0.75 = 3``.

        >>> learned = Discounted(0.5)
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0)):
        ...     learned.learn(seed, reward, None)
        >>> learned.means()
        {0: (0.75, 3.0), 1: (1.0, 9.0)}
    """

    __slots__ = ("discount",)
    width: ClassVar[int] = 4

    def __init__(self, discount: float) -> None:
        super().__init__()
        self.discount = discount

    @override
    def learn(self, seed_idx: int, reward: float, decision: object) -> None:
        start = self.place(seed_idx)
        self.count(reward)
        cells, now = self.cells, self.cells[_CLOCK]
        weight = cells[start + 1]
        if weight:
            weight *= self.discount ** (now - cells[start + 3])
            off = reward - cells[start + 2]
            self.surprise(off, weight)
            cells[start + 2] += off / (weight + 1)
        else:
            cells[start + 2] = reward
        cells[start + 1] = weight + 1
        cells[start + 3] = now

    @override
    def means(self) -> dict[int, tuple[float, float]]:
        cells, now, discount = self.cells, self.cells[_CLOCK], self.discount
        return {
            int(cells[start]): (
                max(cells[start + 1] * discount ** (now - cells[start + 3]), 1e-300),
                cells[start + 2],
            )
            for start in self.rows()
        }

    @override
    def total(self, waiting: int) -> float:
        return sum([weight for weight, _ in self.means().values()]) + waiting

    @override
    def evidence(self, seed_idx: int) -> str:
        weight, _ = self.means().get(seed_idx, (0.0, 0.0))
        if not weight:
            return "no outcome yet"
        return (
            f"from outcomes worth {weight:.1f} new ones" if weight >= 0.05 else "not tried of late"
        )


@final
class Windowed(Forgetting):
    """The last ``size`` outcomes of the layer; a row holds the seed, how many are its, their mean.

    Takes 16 bytes for each outcome of the window.

    Example:
        A window of three outcomes; the first has left it.

        >>> learned = Windowed(3)
        >>> for seed, reward in ((0, 1.0), (0, 4.0), (1, 9.0), (0, 6.0)):
        ...     learned.learn(seed, reward, None)
        >>> learned.means()
        {0: (2.0, 5.0), 1: (1.0, 9.0)}
    """

    __slots__ = ("_next", "_window", "size")
    width: ClassVar[int] = 3

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._window = array("d")
        self._next = 0

    @override
    def learn(self, seed_idx: int, reward: float, decision: object) -> None:
        start = self.place(seed_idx)
        self.count(reward)
        cells = self.cells
        known = cells[start + 1]
        if known:
            off = reward - cells[start + 2]
            self.surprise(off, known)
            cells[start + 2] += off / (known + 1)
        else:
            cells[start + 2] = reward
        cells[start + 1] = known + 1
        self._push(seed_idx, reward)

    @override
    def forget(self, seed_idx: int) -> None:
        super().forget(seed_idx)
        for place in range(0, len(self._window), 2):
            if self._window[place] == seed_idx:
                self._window[place] = _GONE

    @override
    def means(self) -> dict[int, tuple[float, float]]:
        cells = self.cells
        return {
            int(cells[start]): (cells[start + 1], cells[start + 2])
            for start in self.rows()
            if cells[start + 1]
        }

    @override
    def total(self, waiting: int) -> float:
        return min(self.outcomes + waiting, self.size)

    @override
    def evidence(self, seed_idx: int) -> str:
        count, _ = self.means().get(seed_idx, (0.0, 0.0))
        of = f"the layer's last {self.size} outcomes"
        return f"from {count:.0f} of {of}" if count else f"not tried in {of}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"window": self._window.tolist(), "next": self._next}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        window, place = numbers(state, "window"), state.get("next")
        if len(window) > 2 * self.size or not isinstance(place, int):
            raise ConfigError(
                f"state['window'] has {len(window) // 2} outcomes and goes on at {place!r}; this "
                f"window has room for {self.size}; the state belongs to other settings"
            )
        super().load_state_dict(state)
        self._window, self._next = window, place

    def _push(self, seed_idx: int, reward: float) -> None:
        window, place = self._window, self._next
        if len(window) < 2 * self.size:
            window.extend((seed_idx, reward))
            return
        oldest, fallen = window[place], window[place + 1]
        window[place], window[place + 1] = seed_idx, reward
        self._next = (place + 2) % len(window)
        if oldest != _GONE:
            self._take_out(int(oldest), fallen)
        if not self._next:
            for start in self.rows():  # once round, so that no rounding lasts
                self._take_anew(start)

    def _take_out(self, seed_idx: int, fallen: float) -> None:
        cells, start = self.cells, self.row(seed_idx)
        left = cells[start + 1] - 1
        off = fallen - cells[start + 2]
        cells[start + 1] = left
        if left:
            cells[start + 2] -= off / left
            if abs(off) > _HUGE * self.noise():
                self._take_anew(start)

    def _take_anew(self, start: int) -> None:
        window, seed = self._window, self.cells[start]
        own = [window[at + 1] for at in range(0, len(window), 2) if window[at] == seed]
        self.cells[start + 1] = len(own)
        if own:
            self.cells[start + 2] = fsum(own) / len(own)
