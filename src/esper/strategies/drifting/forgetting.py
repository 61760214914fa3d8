"""Means of rewards that move: the base class, discounted means, and sliding-window means."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from math import fsum
from typing import Any, ClassVar, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.strategies.base import Metrics, Seeds
from esper.strategies.learned import Learned, numbers
from esper.strategies.scoring import count_in_words, pending_of, upper_bound

_CLOCK = 0
_GONE = -1.0
"""Marker of an outcome in the window whose seed was rebound since."""

_HUGE = 1e6
"""Distance, in standard deviations, beyond which subtracting a reward from a mean cancels it."""


class Forgetting(Learned, ABC):
    """Mean and weight of every seed's outcomes, of which older ones count less or no longer.

    A row begins with the seed, the weight, and the mean.
    """

    __slots__ = ()

    def means(self) -> dict[int, tuple[float, float]]:
        """Weight, in new outcomes, and mean reward of every seed that has any weight."""
        cells = self.cells
        return {
            int(cells[start]): (cells[start + 1], cells[start + 2])
            for start in self.rows()
            if cells[start + 1]
        }

    def total(self, pending: int) -> float:
        """Weight of the layer's outcomes, and of ``pending`` choices without one."""
        return sum([weight for weight, _ in self.means().values()]) + pending

    def add_outcome(self, start: int, reward: float, weight: float) -> None:
        """Add a reward to the mean of a row that has ``weight`` now."""
        cells = self.cells
        if cells[start + 1]:
            off = reward - cells[start + 2]
            self.add_surprise(off, weight)
            cells[start + 2] += off / (weight + 1)
        else:
            cells[start + 2] = reward
        cells[start + 1] = weight + 1

    @abstractmethod
    def evidence(self, seed_idx: int) -> str:
        """Weight of a seed's outcomes, in words."""

    def means_and_trials(self, viable: Seeds, metrics: Metrics) -> dict[int, tuple[float, float]]:
        """Standardised mean and trials of each of ``viable``.

        A choice whose outcome has not come counts as a trial that gave the seed's own mean. Choices
        of a seed that never led to an outcome count too, so that it does not hold up the others.

        Example:
            Means 1 and 3, two outcomes each; the noise is ``sqrt((2 + 2 + 8 / 3) / 3) = 1.49``.

            >>> learned = Discounted(1.0)
            >>> for seed, reward in ((0, 0.0), (0, 2.0), (1, 2.0), (1, 4.0)):
            ...     learned.learn(seed, reward, None)
            >>> found = learned.means_and_trials([0, 1, 2], {})
            >>> {seed: (round(z, 2), trials) for seed, (z, trials) in found.items()}
            {0: (-0.67, 2.0), 1: (0.67, 2.0), 2: (0.0, 0.0)}
        """
        known, noise = self.means(), self.noise()
        means = [mean for _, mean in known.values()]
        origin = means[0] if means else 0.0
        # Deviations from one of the means: equal rewards then differ by exactly nothing.
        centre = origin + sum([mean - origin for mean in means]) / max(len(means), 1)
        found = {}
        for seed in viable:
            record = metrics.get(seed)
            trials, mean = known.get(seed, (0.0, centre))
            if record and trials:
                trials += record.pending
            elif record:
                trials = max(record.pending, record.total_activations - record.outcomes)
            found[seed] = (mean - centre) / noise, trials
        return found

    def upper_bounds(
        self, viable: Seeds, metrics: Metrics, exploration_constant: float
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Standardised mean and `upper_bound` of each of ``viable``; inf where untried."""
        found = self.means_and_trials(viable, metrics)
        total, c = self.total(sum(pending_of(metrics))), exploration_constant
        bounds = {seed: upper_bound(z, trials, total, c) for seed, (z, trials) in found.items()}
        return {seed: z for seed, (z, _) in found.items()}, bounds


@final
class Discounted(Forgetting):
    """Outcomes that each weigh ``discount`` times as much as the next one of the layer.

    A row ends with the number of the outcome at which its weight was right: discounting is lazy.

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
        self.add_reward(reward)
        cells, now = self.cells, self.cells[_CLOCK]
        weight = cells[start + 1] * self.discount ** (now - cells[start + 3])
        self.add_outcome(start, reward, weight)
        cells[start + 3] = now

    @override
    def means(self) -> dict[int, tuple[float, float]]:
        cells, now, discount = self.cells, self.cells[_CLOCK], self.discount
        return {
            int(seed): (max(weight * discount ** (now - then), 1e-300), mean)
            for seed, weight, mean, then in [cells[at : at + 4] for at in self.rows()]
        }

    @override
    def evidence(self, seed_idx: int) -> str:
        weight, _ = self.means().get(seed_idx, (0.0, 0.0))
        if 0 < weight < 0.05:
            return "not tried of late"
        return f"from outcomes worth {weight:.1f} new ones" if weight else count_in_words(0)


@final
class Windowed(Forgetting):
    """Last ``size`` outcomes of the layer, 16 bytes each; weights are counts.

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
        self.add_reward(reward)
        self.add_outcome(start, reward, self.cells[start + 1])
        self._push(seed_idx, reward)

    @override
    def forget(self, seed_idx: int) -> None:
        super().forget(seed_idx)
        for place in range(0, len(self._window), 2):
            if self._window[place] == seed_idx:
                self._window[place] = _GONE

    @override
    def total(self, pending: int) -> float:
        return min(self.outcomes + pending, self.size)

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
            self._drop(int(oldest), fallen)
        if not self._next:
            for start in self.rows():  # once per window, so that rounding does not pile up
                self._recompute(start)

    def _drop(self, seed_idx: int, fallen: float) -> None:
        cells, start = self.cells, self.row(seed_idx)
        left = cells[start + 1] - 1
        off = fallen - cells[start + 2]
        cells[start + 1] = left
        if left:
            cells[start + 2] -= off / left
            if abs(off) > _HUGE * self.noise():
                self._recompute(start)

    def _recompute(self, start: int) -> None:
        window, seed = self._window, self.cells[start]
        own = [window[at + 1] for at in range(0, len(window), 2) if window[at] == seed]
        self.cells[start + 1] = len(own)
        if own:
            self.cells[start + 2] = fsum(own) / len(own)
