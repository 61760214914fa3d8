"""What choosing for 10,000 layers of 8 seeds at once costs, beside what NumPy needs for one line.

Medians over calls, of the processor's time, since the machine is shared; still judge a figure by
the floor of the same table: the bare expression of UCB1 and its argmax over arrays that hold
nothing else.
"""

import statistics
from collections.abc import Callable
from time import process_time

import numpy as np

from esper.services.tamiyo.layer_arrays import LayerArrays
from esper.services.tamiyo.strategies import STRATEGIES

LAYERS, SEEDS = 10_000, 8
EVERY = np.arange(LAYERS)

Row = tuple[str, str, str]
"""What was measured, the figure with its unit, what was asked for."""

CASES = {
    "ucb": {},
    "auto": {},
    "thompson, gaussian": {"posterior": "gaussian"},
    "thompson, nig": {"posterior": "nig"},
    "thompson, beta": {},
    "epsilon_greedy": {},
    "performance_weighted": {},
}


def rows() -> list[Row]:
    """The table of this file."""
    generator = np.random.default_rng(0)
    normals = np.empty((SEEDS, LAYERS))
    floor = median_ms(_floor())
    made = [
        ("mean + sqrt(2 ln(total) / n) and argmax in NumPy", floor, "the floor"),
        ("80,000 normal draws", median_ms(lambda: generator.standard_normal(out=normals)), ""),
    ]
    sizes = []
    for name, settings in CASES.items():
        strategy = STRATEGIES.create(name.split(",")[0], **settings)
        if not strategy.columns:
            continue
        many = _filled(LayerArrays(strategy, LAYERS, SEEDS))
        goal = "<= 2 ms" if name == "ucb" else ""
        made += [
            (f"{name}: select_many", median_ms(many.select_many), goal),
            (f"{name}: update_many, an outcome of each layer", median_ms(_updating(many)), ""),
        ]
        sizes.append((f"{name}: state of a layer of 8", f"{many.nbytes} B", "<= 400 B"))
    times = [(what, f"{ms:.2f} ms ({ms / floor:.1f} x)", goal) for what, ms, goal in made]
    return times + sizes


def median_ms(step: Callable[[], object], *, calls: int = 60) -> float:
    """Median time of the processor for a step in milliseconds."""
    times = []
    for _ in range(calls):
        started = process_time()
        step()
        times.append(process_time() - started)
    return statistics.median(times) * 1e3


def _floor() -> Callable[[], object]:
    generator = np.random.default_rng(0)
    mean_LK = generator.standard_normal((LAYERS, SEEDS))
    count_LK = generator.integers(1, 20, (LAYERS, SEEDS)).astype(float)
    total_L = count_LK.sum(axis=1)
    return lambda: (mean_LK + np.sqrt(2 * np.log(total_L)[:, None] / count_LK)).argmax(axis=1)


def _filled(many: LayerArrays) -> LayerArrays:
    generator = np.random.default_rng(1)
    for _ in range(12 * SEEDS):
        chosen_L = many.select_many()
        many.update_many(EVERY, chosen_L, generator.normal(0.01 * chosen_L, 0.02))
    return many


def _updating(many: LayerArrays) -> Callable[[], object]:
    generator = np.random.default_rng(2)
    seeds_L, rewards_L = generator.integers(0, SEEDS, LAYERS), generator.normal(0, 0.02, LAYERS)
    return lambda: many.update_many(EVERY, seeds_L, rewards_L)


if __name__ == "__main__":
    for what, figure, goal in rows():
        print(f"{what:58} {figure:>20}   {goal}")
