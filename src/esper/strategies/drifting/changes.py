"""Change detection by CUSUM and by generalised likelihood ratio, and means since a change."""

from abc import abstractmethod
from math import isfinite, log, sqrt
from typing import ClassVar, final

from typing_extensions import override

from esper.strategies.drifting.forgetting import Forgetting
from esper.strategies.scoring import count_in_words

_COUNT, _MEAN, _CHANGES, _OWN = 1, 2, 3, 4

_LEARNING = 4
"""Surprises that are needed before one is tested."""

_LIMIT = 2.5
"""Limit of a reward's distance, in standard deviations, so that one outlier raises no alarm."""

_KEPT = 4.0
"""Outcomes that a seed keeps at most when another's change restarts the layer."""

_BUCKETS = 16


class Changing(Forgetting):
    """Means since the last change; weights are counts. Then a row has the number of changes.

    Args:
        false_alarm: Probability that one outcome of a seed that did not change raises an alarm.
        layer: A change of one seed restarts the whole layer.
    """

    __slots__ = ("false_alarm", "layer")

    def __init__(self, *, false_alarm: float, layer: bool) -> None:
        super().__init__()
        self.false_alarm = false_alarm
        self.layer = layer

    @override
    def learn(self, seed_idx: int, reward: float, decision: object) -> None:
        start = self.place(seed_idx)
        self.add_reward(reward)
        known, off = self.cells[start + _COUNT], reward - self.cells[start + _MEAN]
        noise, since = self.noise(), None
        if known and self.surprises >= _LEARNING and isfinite(noise):
            limit = _LIMIT * noise * sqrt(1 + 1 / known)
            since = self.judge(start, reward, max(-limit, min(off, limit)), noise)
        self.add_outcome(start, reward, known)
        if since:
            self._restart(start, *since)

    @abstractmethod
    def judge(
        self, start: int, reward: float, off: float, noise: float
    ) -> tuple[float, float] | None:
        """Test of one more reward of a seed.

        Args:
            start: Index at which the seed's row begins.
            reward: The reward.
            off: Its distance from the seed's mean, clipped.
            noise: Standard deviation of rewards about their seeds' means.

        Returns:
            After a change: the number of outcomes since, this one included, and their mean.
        """

    def clear(self, start: int) -> None:
        """Clear the evidence against a seed's mean, which is the rest of its row."""
        for at in range(start + _OWN, start + self.width):
            self.cells[at] = 0.0

    def changes(self, seed_idx: int) -> int:
        """Number of changes that were detected in a seed's rewards."""
        start = self.row(seed_idx)
        return int(self.cells[start + _CHANGES]) if start else 0

    @override
    def evidence(self, seed_idx: int) -> str:
        count, _ = self.means().get(seed_idx, (0.0, 0.0))
        if not count:
            return count_in_words(0)
        since = " since its rewards changed" if self.changes(seed_idx) else ""
        return f"after {count_in_words(round(count))}{since}"

    def _restart(self, start: int, count: float, mean: float) -> None:
        cells = self.cells
        cells[start + _COUNT], cells[start + _MEAN] = count, mean
        cells[start + _CHANGES] += 1
        if self.layer:
            for other in self.rows():
                if other != start:
                    cells[other + _COUNT] = min(cells[other + _COUNT], _KEPT)
                    self.clear(other)


@final
class Cusum(Changing):
    """Two-sided cumulative sum of ``u - size / 2`` and ``-u - size / 2``, never below 0.

    ``u`` is a reward's distance from its seed's mean in standard deviations of that distance. An
    alarm is raised when ``size`` times a sum exceeds ``ln(1 / false_alarm)``: the sum then is a log
    likelihood ratio of a mean ``size`` away against the old mean. The outcomes since the sum was
    last 0 are kept as the seed's new record.

    Args:
        size: Smallest change that matters, in standard deviations, > 0.
        false_alarm: As for `Changing`.
        layer: As for `Changing`.

    Example:
        After 2 and 0 in turn, 16 times, the rewards are 10. Each is taken to be 2.5 deviations
        off, so the sum grows by 2 each time and passes ``ln(1000) = 6.9`` at the fourth: four
        outcomes are kept.

        >>> learned = Cusum(size=1.0, false_alarm=0.001, layer=False)
        >>> for reward in (2.0, 0.0) * 8 + (10.0, 10.0, 10.0):
        ...     learned.learn(0, reward, None)
        >>> learned.means()[0][0], learned.changes(0)
        (19.0, 0)
        >>> learned.learn(0, 10.0, None)
        >>> learned.means(), learned.changes(0)
        ({0: (4.0, 10.0)}, 1)
    """

    __slots__ = ("size",)
    width: ClassVar[int] = _OWN + 6

    def __init__(self, *, size: float, false_alarm: float, layer: bool) -> None:
        super().__init__(false_alarm=false_alarm, layer=layer)
        self.size = size

    @override
    def judge(
        self, start: int, reward: float, off: float, noise: float
    ) -> tuple[float, float] | None:
        cells, known = self.cells, self.cells[start + _COUNT]
        step = off / noise / sqrt(1 + 1 / known)
        limit = log(1 / self.false_alarm) / self.size
        found = None
        for at, one in ((start + _OWN, step), (start + _OWN + 3, -step)):
            total = cells[at] + one - self.size / 2
            if total <= 0:
                cells[at] = cells[at + 1] = cells[at + 2] = 0.0
                continue
            count = cells[at + 1] + 1
            mean = cells[at + 2] + (reward - cells[at + 2]) / count if count > 1 else reward
            cells[at], cells[at + 1], cells[at + 2] = total, count, mean
            if total > limit:
                found = count, mean
        if found:
            self.clear(start)
        return found


@final
class Likelihood(Changing):
    """Generalised likelihood ratio of two means against one, over all splits in old and new.

    For a split into ``m`` newest rewards and ``n - m`` before, the log likelihood ratio of two
    means against one is ``m * (n - m) / n * (mean_new - mean_old)**2 / 2`` in standard deviations.
    An alarm is raised when the largest exceeds ``ln(splits / false_alarm)``. Rewards are kept in at
    most 16 groups of 1, 1, 2, 2, 4, 4, ... and all the rest, and split between groups, so that an
    outcome costs the same whenever it comes. The rewards after the best split are the new record.
    """

    __slots__ = ()
    width: ClassVar[int] = _OWN + 2 * _BUCKETS

    @override
    def judge(
        self, start: int, reward: float, off: float, noise: float
    ) -> tuple[float, float] | None:
        groups = [(1.0, self.cells[start + _MEAN] + off), *self._groups(start)]
        _merge(groups)
        split = _best_split(groups, noise, self.false_alarm)
        if split:
            del groups[split:]
        self.clear(start)
        for at, group in enumerate(groups):
            place = start + _OWN + 2 * at
            self.cells[place], self.cells[place + 1] = group
        return (sum([count for count, _ in groups]), _mean(groups)) if split else None

    def _groups(self, start: int) -> list[tuple[float, float]]:
        cells = self.cells
        return [
            (cells[at], cells[at + 1])
            for at in range(start + _OWN, start + self.width, 2)
            if cells[at]
        ]


def _merge(groups: list[tuple[float, float]]) -> None:
    """Merge of the older two of three groups of one size; the newest group is first."""
    at = 0
    while at + 2 < len(groups) and groups[at][0] == groups[at + 1][0] == groups[at + 2][0]:
        _join(groups, at + 1)
        at += 1
    if len(groups) > _BUCKETS:
        _join(groups, _BUCKETS - 1)


def _join(groups: list[tuple[float, float]], at: int) -> None:
    (few, one), (many, other) = groups[at : at + 2]
    groups[at : at + 2] = [(few + many, one + (other - one) * (many / (few + many)))]


def _mean(groups: list[tuple[float, float]]) -> float:
    first = groups[0][1]
    total = sum([count for count, _ in groups])
    return first + sum([count * (mean - first) for count, mean in groups]) / total


def _best_split(groups: list[tuple[float, float]], noise: float, false_alarm: float) -> int:
    """Number of the newest groups that came after the change; 0 if there was none.

    Example:
        Two rewards of mean 3 after four of mean 0: ``2 * 4 / 6 * 3**2 / 2 = 6``, against ``ln(100)
        = 4.6`` or ``ln(1000) = 6.9``.

        >>> groups = [(2.0, 3.0), (4.0, 0.0)]
        >>> _best_split(groups, 1.0, 0.01), _best_split(groups, 1.0, 0.001)
        (1, 0)
    """
    splits = len(groups) - 1
    if splits < 1:
        return 0
    total, mean = sum([count for count, _ in groups]), _mean(groups)
    best, found = log(splits / false_alarm), 0
    count = above = 0.0
    for split, (size, own) in enumerate(groups[:-1], 1):
        count += size
        above += size * (own - mean)
        shift = above / noise
        # With s the sum of (x - mean) over the newest m of n: m (n-m) / n * (difference)**2 / 2.
        ratio = shift * shift * total / (2 * count * (total - count))
        if ratio > best:
            best, found = ratio, split
    return found
