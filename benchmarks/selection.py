"""What choosing and recording cost, beside UCB1 in plain Python in the same process.

Medians over batches; the machine is shared, so judge a figure by the one of the bare loop.
"""

import statistics
import tracemalloc
from collections.abc import Callable
from math import log, sqrt
from random import Random  # noqa: TID251 (a baseline and test data, seeded)
from time import perf_counter

from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionConstraints, SelectionContext
from esper.services.tamiyo.performance_tracker import PerformanceTracker
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.services.tamiyo.strategies import STRATEGIES
from esper.stores.memory import MemoryStore

SEEDS = list(range(8))
CONTEXT = SelectionContext(current_epoch=7)

Row = tuple[str, str, str]
"""What was measured, the figure with its unit, what was asked for."""


def rows() -> list[Row]:
    """The table of this file."""
    bare = _bare_ucb1()
    one = _select("ucb", layers=1)
    return [
        ("UCB1 in plain Python, 8 arms: choose and update", f"{bare:.1f} µs", "the floor"),
        ("select_seed_now, ucb, 8 seeds, full windows, one layer", f"{one:.1f} µs", "<= 20 µs"),
        _across_layers(),
        *[
            (f"the same, {name}, one layer", f"{_select(name, layers=1):.1f} µs", "")
            for name in STRATEGIES.names()
            if name != "ucb"
        ],
        ("update_metrics_now, no store", f"{_update(None):.1f} µs", ""),
        ("update_metrics_now, memory store", f"{_update(MemoryStore()):.1f} µs", "<= 10 µs"),
        ("memory of a seed, full windows", f"{_bytes_per_seed():,.0f} B", "<= 2,000 B"),
    ]


def _median_us(step: Callable[[], object], *, batch: int = 200, batches: int = 40) -> float:
    times = []
    for _ in range(batches):
        started = perf_counter()
        for _ in range(batch):
            step()
        times.append((perf_counter() - started) / batch)
    return statistics.median(times) * 1e6


def _bare_ucb1() -> float:
    counts, means, random = [20] * 8, [0.01 * arm for arm in range(8)], Random(0)
    total = 160

    def step() -> None:
        nonlocal total
        width = 2 * log(total)
        arm = max(SEEDS, key=lambda arm: means[arm] + sqrt(width / counts[arm]))
        counts[arm] += 1
        total += 1
        means[arm] += (random.random() - means[arm]) / counts[arm]

    return _median_us(step)


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


def _selecting(name: str, layers: int) -> Callable[[], object]:
    selector = SeedSelector(
        STRATEGIES.create(name),
        tracker=_filled(layers),
        constraints=SelectionConstraints(),
    )
    names = [f"layer{layer}" for layer in range(layers)]
    turn = 0

    def step() -> None:
        nonlocal turn
        layer = names[turn]
        turn = (turn + 1) % layers
        seed_idx, _ = selector.select_seed_now(layer, SEEDS, CONTEXT)
        selector.release(layer, seed_idx)

    return step


def _select(name: str, *, layers: int) -> float:
    return _median_us(_selecting(name, layers))


def _across_layers() -> Row:
    one, many = _selecting("ucb", 1), _selecting("ucb", 1000)
    ratios = [_median_us(many, batches=10) / _median_us(one, batches=10) for _ in range(7)]
    return (
        "the same over 1,000 layers in turn, relative to one",
        f"{statistics.median(ratios):.2f} x",
        "<= 1.2 x",
    )


def _update(store: MemoryStore | None) -> float:
    tracker = _filled(1, store)
    delta = PerformanceDelta(accuracy_delta=0.012, loss_delta=0.031, latency_ms=0.4, memory_mb=1.5)
    return _median_us(lambda: tracker.update_metrics_now("layer0", 3, delta))


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
