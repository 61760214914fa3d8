"""Cost of choosing and recording, beside UCB1 in plain Python in the same process.

Processor time, medians over batches. The machine is shared, so a figure is judged by its ratio to
the floor: each batch stands between two of the floor's, and the ratio is the median of theirs.
"""

import statistics
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from math import log, sqrt
from random import Random  # noqa: TID251 (a baseline and test data, seeded)
from time import thread_time
from typing import Any

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionConstraints, SelectionContext
from esper.services.tamiyo.bandit import Bandit
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.stores.memory import MemoryStore
from esper.strategies import STRATEGIES

BATCH = 200
"""Calls that are timed together, and layers that choices go round."""

LAYERS = 10_000

FLOOR_US = 1.1
"""Time of the floor on the machine on which the goals were set."""

SEEDS = list(range(8))
CONTEXT = SelectionContext(current_epoch=7)

Step = Callable[[], object]

Row = tuple[str, str, str]
"""Name of a measurement, its figure with the unit, its goal."""


def rows() -> list[Row]:
    """The table of this file."""
    one_us, _ = _beside(_floor())
    return [
        ("UCB1 in plain Python, 8 arms: choose and update", f"{one_us:.2f} µs", "the floor"),
        _row("Bandit, ucb, 8 arms: choose and update", _bare("ucb"), 11.0),
        _row(
            "Bandit, thompson gaussian: choose and update",
            _bare("thompson", posterior="gaussian"),
        ),
        _row("select_seed_now, ucb, 8 seeds, full windows, no store", _Choosing("ucb"), 10.0),
        _row(
            "the same, logged to a memory store, written behind",
            _Choosing("ucb", store=MemoryStore()),
            10.0,
        ),
        _row(
            "the same with release, which waits for the log of both",
            _with_release("ucb", MemoryStore()),
        ),
        _across_layers(),
        *[
            _row(f"select_seed_now, {name}, no store", _Choosing(name))
            for name in STRATEGIES.names()
            if name != "ucb"
        ],
        _row("update_metrics_now, no store", _updating(None)),
        _row("update_metrics_now, memory store", _updating(MemoryStore()), 10.0),
        ("memory of a seed, full windows", f"{_bytes_per_seed():,.0f} B", "<= 2,000 B"),
    ]


def _row(what: str, step: "Step | _Choosing", goal_us: float | None = None) -> Row:
    taken_us, ratio = _beside(step)
    goal = f"<= {goal_us:g} µs, {goal_us / FLOOR_US:.1f} x" if goal_us else ""
    return what, f"{taken_us:.2f} µs, {ratio:.1f} x", goal


def _beside(step: "Step | _Choosing", *, batches: int = 40) -> tuple[float, float]:
    """Microseconds of a step, and how many floors that is; medians over batches."""
    floor = _floor()
    times, ratios = [], []
    for _ in range(batches):
        before = _batch_us(floor)
        taken = step.batch_us() if isinstance(step, _Choosing) else _batch_us(step)
        times.append(taken)
        ratios.append(2 * taken / (before + _batch_us(floor)))
    return statistics.median(times), statistics.median(ratios)


def _batch_us(step: Step, size: int = BATCH) -> float:
    started = thread_time()
    for _ in range(size):
        step()
    return (thread_time() - started) / size * 1e6


def _floor() -> Step:
    counts, means, random = [20] * 8, [0.01 * arm for arm in range(8)], Random(0)
    total = 160

    def step() -> None:
        nonlocal total
        width = 2 * log(total)
        arm = max(SEEDS, key=lambda arm: means[arm] + sqrt(width / counts[arm]))
        counts[arm] += 1
        total += 1
        means[arm] += (random.random() - means[arm]) / counts[arm]

    return step


def _bare(name: str, **settings: Any) -> Step:
    bandit, rewards = Bandit(STRATEGIES.create(name, **settings)), _rewards()
    for _ in range(400):
        bandit.update(bandit.choose(), next(rewards))
    return lambda: bandit.update(bandit.choose(), next(rewards))


def _rewards() -> Iterator[float]:
    random = Random(0)
    return cycle([random.gauss(0.01, 0.02) for _ in range(5003)])


def _filled(layers: int, store: MemoryStore | None = None) -> PerformanceTracker:
    random = Random(0)
    tracker = PerformanceTracker(store=store)
    for layer in range(layers):
        for seed in SEEDS * 20:
            delta = PerformanceDelta(
                0.001 * seed + random.gauss(0, 0.02), random.gauss(0, 0.02), 0.4, 1.5
            )
            tracker.update_metrics_now(f"layer{layer}", seed, delta)
    return tracker


class _Choosing:
    """Choices of one layer after the other, timed without their release."""

    def __init__(self, name: str, *, layers: int = BATCH, store: MemoryStore | None = None) -> None:
        self.selector = SeedSelector(
            STRATEGIES.create(name),
            tracker=_filled(layers, store),
            constraints=SelectionConstraints(),
        )
        self.names = cycle([f"layer{layer}" for layer in range(layers)])

    def batch_us(self) -> float:
        """Microseconds of one of `BATCH` choices."""
        choose, names = self.selector.select_seed_now, list(islice(self.names, BATCH))
        started = thread_time()
        chosen = [choose(name, SEEDS, CONTEXT)[0] for name in names]
        taken = thread_time() - started
        for name, seed_idx in zip(names, chosen, strict=True):
            self.selector.release(name, seed_idx)
        return taken / BATCH * 1e6


def _with_release(name: str, store: MemoryStore) -> Step:
    selector = _Choosing(name, layers=1, store=store).selector

    def step() -> None:
        seed_idx, _ = selector.select_seed_now("layer0", SEEDS, CONTEXT)
        selector.release("layer0", seed_idx)

    return step


def _across_layers() -> Row:
    few, many = _Choosing("ucb"), _Choosing("ucb", layers=LAYERS)
    ratios = [many.batch_us() / few.batch_us() for _ in range(LAYERS // BATCH)]
    return (
        f"the same over {LAYERS:,} layers in turn, relative to {BATCH}",
        f"{statistics.median(ratios):.2f} x",
        "<= 1.2 x",
    )


def _updating(store: MemoryStore | None) -> Step:
    tracker, random = _filled(1, store), Random(1)
    deltas = cycle(
        [PerformanceDelta(random.gauss(0.01, 0.02), 0.031, 0.4, 1.5) for _ in range(5003)]
    )
    return lambda: tracker.update_metrics_now("layer0", 3, next(deltas))


def _bytes_per_seed() -> float:
    layers = 50
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracker = _filled(layers)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(tracker.layer_names) == layers
    return used / (layers * len(SEEDS))


if __name__ == "__main__":
    for what, figure, goal in rows():
        print(f"{what:58} {figure:>12}   {goal}")
