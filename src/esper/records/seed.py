"""Record of one seed: counts, running mean and squared deviations, and windows of measurements.

A choice reads the sums and never a window. Windows are rings of doubles, about one kilobyte per
seed when full.
"""

from array import array
from math import fsum, isnan, nan
from typing import final

from esper.records.layer_sums import LayerSums

OPEN = 32
"""Decisions without an outcome that are kept per seed; older ones expire."""

_CANCELLED = 1e-8
"""Share to which a sum of squares may fall before rounding rules and it is recomputed."""


@final
class Ring:
    """Ring buffer of ``size`` rows of ``width`` doubles each; NaN is unmeasured."""

    __slots__ = ("_cells", "_oldest", "size", "width")

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self.width = width
        self._cells = array("d")
        self._oldest = 0

    def push(self, *row: float | None) -> float | None:
        """Add a row and return the first value of the row that it replaces, if it does."""
        cells = self._cells
        if len(cells) < self.size * self.width:
            cells.extend([nan if value is None else value for value in row])
            return None
        at = self._oldest
        fallen = cells[at]
        for value in row:
            cells[at] = nan if value is None else value
            at += 1
        self._oldest = at % len(cells)
        return fallen

    def column(self, index: int) -> list[float]:
        """Measured values of one column, oldest first."""
        cells, start = self._cells, self._oldest
        values = cells[start + index :: self.width] + cells[index : start : self.width]
        return [value for value in values if not isnan(value)]


@final
class SeedRecord:
    """Record of one seed of one layer under one blueprint.

    Attributes:
        seed_idx: Index of the seed in its layer.
        layer_name: Dotted name of the layer.
        blueprint: Blueprint of the seed; empty without one.
        kernel_id: The kernel that was measured last.
        count: Outcomes inside the window.
        mean: Mean reward of the window.
        m2: Sum of squared deviations from the mean over the window.
        recent: Exponentially weighted mean of all rewards.
        outcomes: Outcomes ever, failures included.
        total_activations: Choices ever.
        successful_grafts: Kernels that were kept.
        failed_attempts: Grafts that failed with an error.
        last_activation_epoch: Epoch of the latest choice; -1 before the first.
        open: Ids of decisions whose outcome has not come, oldest first.
    """

    __slots__ = (
        "_measured",
        "_row",
        "_sums",
        "_timed",
        "_weight",
        "blueprint",
        "count",
        "failed_attempts",
        "kernel_id",
        "last_activation_epoch",
        "layer_name",
        "m2",
        "mean",
        "open",
        "outcomes",
        "recent",
        "seed_idx",
        "successful_grafts",
        "total_activations",
    )

    def __init__(self, layer_name: str, seed_idx: int, blueprint: str) -> None:
        self.seed_idx = seed_idx
        self.layer_name = layer_name
        self.blueprint = blueprint
        self.kernel_id: str | None = None
        self.count = 0
        self.mean = 0.0
        self.m2 = 0.0
        self.recent = 0.0
        self.outcomes = 0
        self.total_activations = 0
        self.successful_grafts = 0
        self.failed_attempts = 0
        self.last_activation_epoch = -1
        self.open: tuple[str, ...] = ()
        self._weight = 0.0
        self._measured: Ring | None = None
        self._timed: Ring | None = None
        self._sums: LayerSums | None = None
        self._row = 0

    @property
    def pending(self) -> int:
        """Choices whose outcome has not come yet."""
        return len(self.open)

    def choose(self, decision_id: str, epoch: int) -> str:
        """Count a choice, whose id waits for its outcome unless it is empty.

        Returns:
            Id of the decision that expires thereby; empty if none does.
        """
        self.total_activations += 1
        self.last_activation_epoch = max(self.last_activation_epoch, epoch)
        if not decision_id:
            return ""
        waiting = self.open
        self.open = (*waiting[-OPEN + 1 :], decision_id)
        return waiting[0] if len(waiting) >= OPEN else ""

    def await_again(self, decision_id: str) -> None:
        """Wait for the outcome of a decision though it expired."""
        if decision_id not in self.open:
            self.open = (*self.open, decision_id)

    def close(self, decision_id: str) -> bool:
        """Remove an open decision; false if it was not open."""
        if decision_id not in self.open:
            return False
        self.open = tuple([waiting for waiting in self.open if waiting != decision_id])
        return True

    def answer(self) -> str:
        """Remove the latest open decision and return its id; empty if none is open."""
        waiting = self.open
        if not waiting:
            return ""
        self.open = waiting[:-1]
        return waiting[-1]

    def add(
        self,
        reward: float,
        accuracy: float | None,
        loss: float | None,
        *,
        window_size: int,
        decay_factor: float,
    ) -> None:
        """Add one outcome, in constant time."""
        if self._measured is None:
            self._measured = Ring(window_size, 3)
        self.outcomes += 1
        self._weight = self._weight * decay_factor + 1.0
        self.recent += (reward - self.recent) / self._weight
        fallen = self._measured.push(reward, accuracy, loss)
        if fallen is None:
            self.count += 1
            self.mean, self.m2 = grow(self.mean, self.m2, self.count, reward)
        elif fallen != reward:
            slid = slide(self.mean, self.m2, self.count, fallen, reward)
            if slid is not None and self.outcomes % window_size:
                self.mean, self.m2 = slid
            else:
                self.mean, self.m2 = mean_and_m2(self.measured()[0])
        if self._sums is not None:
            self._sums.put(self._row, self.count, self.mean, self.m2)

    def keep_row(self, sums: LayerSums | None, row: int) -> None:
        """Set the row of a layer's sums that each outcome updates; ``None``: no row."""
        self._sums, self._row = sums, row

    def time(self, latency_ms: float | None, memory_mb: float | None, window_size: int) -> None:
        """Add a latency and a memory measurement."""
        if latency_ms is None and memory_mb is None:
            return
        if self._timed is None:
            self._timed = Ring(window_size, 2)
        self._timed.push(latency_ms, memory_mb)

    def measured(self) -> tuple[list[float], list[float], list[float]]:
        """Windows of rewards, accuracy gains and loss reductions, oldest first."""
        ring = self._measured
        return (ring.column(0), ring.column(1), ring.column(2)) if ring else ([], [], [])

    def timed(self) -> tuple[list[float], list[float]]:
        """Windows of latencies in milliseconds and memory in megabytes, oldest first."""
        ring = self._timed
        return (ring.column(0), ring.column(1)) if ring else ([], [])


def grow(mean: float, m2: float, count: int, reward: float) -> tuple[float, float]:
    """Mean and sum of squared deviations of a window that a reward was added to.

    Args:
        mean: Mean of the window before.
        m2: Sum of squared deviations from it.
        count: Size of the window now.
        reward: The one that came in.

    Example:
        >>> grow(2.0, 2.0, 3, 5.0)
        (3.0, 8.0)
    """
    before = reward - mean
    mean += before / count
    return mean, m2 + before * (reward - mean)


def slide(
    mean: float, m2: float, count: int, fallen: float, reward: float
) -> tuple[float, float] | None:
    """Mean and sum of squared deviations of a full window after its oldest reward is replaced.

    Args:
        mean: Mean of the window so far.
        m2: Sum of squared deviations from it.
        count: Size of the window.
        fallen: The reward that falls out.
        reward: The one that comes in; another.

    Returns:
        Both, or ``None`` where rounding would rule: recompute them by `mean_and_m2`.

    Example:
        >>> slide(2.0, 2.0, 3, 1.0, 4.0), mean_and_m2([2.0, 3.0, 4.0])
        ((3.0, 2.0), (3.0, 2.0))
    """
    change = reward - fallen
    now = mean + change / count
    found = m2 + change * (reward - now + (fallen - mean))
    return (now, found) if found > _CANCELLED * (m2 + change * change) else None


def mean_and_m2(rewards: list[float]) -> tuple[float, float]:
    """Mean, and sum of squared deviations from it; at least one reward."""
    mean = fsum(rewards) / len(rewards)
    return mean, fsum([(value - mean) ** 2 for value in rewards])
