"""Cost of contextual choices, beside UCB1 in plain Python in the same process.

Medians over batches; the machine is shared, so judge a figure by the one of the bare loop.
"""

import statistics
from collections.abc import Callable
from math import log, log1p, sqrt
from random import Random  # noqa: TID251 (a baseline and test data, seeded)
from time import perf_counter

import numpy as np

from esper.contracts.health import HealthSignal
from esper.contracts.performance import PerformanceDelta
from esper.contracts.selection import SelectionContext
from esper.records.draws import Draws
from esper.services.tamiyo.seed_selector import SeedSelector
from esper.strategies import STRATEGIES, SelectionStrategy
from esper.strategies.contextual.ridge import Ridges

SEEDS = list(range(8))
FEATURES = 10
BLUEPRINTS = dict(enumerate(["gate", "glu", "lowrank", "scale", "se", "conv", "attention", "mix"]))
HEALTH = HealthSignal(layer_name="fc1", epoch=7, gradient_rms=0.6, input_rms=4.0, activation_sd=1.5)
CONTEXT = SelectionContext(
    current_epoch=7, layer_type="Linear", health=HEALTH, blueprints=BLUEPRINTS, urgency=0.4
)

Row = tuple[str, str, str]
"""Measure, value with its unit, goal."""


def rows() -> list[Row]:
    """Medians of choosing and updating."""
    bare = median_us(_ucb1())
    made = [
        ("UCB1 in plain Python, 8 arms: choose and update", bare, "the floor"),
        ("linucb, bare, 8 arms x 10 features: choose and update", median_us(_bare()), "<= 9.5 µs"),
        ("the same: update alone", median_us(_bare_update()), ""),
    ]
    for name, settings in (
        ("linucb", {}),
        ("linucb", {"model": "shared"}),
        ("lin_ts", {}),
        ("lin_ts", {"model": "shared"}),
        ("neural", {}),
    ):
        strategy = STRATEGIES.create(name, **settings)
        what = f"{name}{' shared' if settings else ''}, 8 blueprints"
        made += [
            (f"{what}: decide", median_us(_deciding(strategy), batch=50), ""),
            (f"{what}: learn", median_us(_learning(strategy), batch=256, batches=9), ""),
        ]
    return [(what, f"{figure:.1f} µs ({figure / bare:.1f} x)", goal) for what, figure, goal in made]


def median_us(step: Callable[[], object], *, batch: int = 200, batches: int = 40) -> float:
    """Median time of a step in microseconds."""
    times = []
    for _ in range(batches):
        started = perf_counter()
        for _ in range(batch):
            step()
        times.append((perf_counter() - started) / batch)
    return statistics.median(times) * 1e6


def _ucb1() -> Callable[[], object]:
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


def _bare() -> Callable[[], object]:
    model, contexts, rewards = _regressions()
    turn = 0

    def step() -> None:
        nonlocal turn
        turn = (turn + 1) % len(contexts)
        x_D = contexts[turn]
        means, variances = model.at(x_D)
        width = sqrt(log1p(model.outcomes))
        bounds = [
            mean + width * sqrt(variance) for mean, variance in zip(means, variances, strict=True)
        ]
        model.learn(bounds.index(max(bounds)), x_D, rewards[turn])

    return step


def _bare_update() -> Callable[[], object]:
    model, contexts, rewards = _regressions()
    turn = 0

    def step() -> None:
        nonlocal turn
        turn = (turn + 1) % len(contexts)
        model.learn(turn & 7, contexts[turn], rewards[turn])

    return step


def _regressions() -> tuple[Ridges, list[np.ndarray], list[float]]:
    generator = np.random.default_rng(0)
    model = Ridges(FEATURES, 1.0)
    contexts = list(generator.standard_normal((1024, FEATURES)))
    rewards = generator.standard_normal(1024).tolist()
    for _ in SEEDS:
        model.add()
    return model, contexts, rewards


def _filled(strategy: SelectionStrategy) -> SeedSelector:
    selector, random = SeedSelector(strategy, seed=0), Random(0)
    for _ in range(300):
        seed_idx, _ = selector.select_seed_now("fc1", SEEDS, CONTEXT)
        delta = PerformanceDelta(reward=0.001 * seed_idx + random.gauss(0, 0.02))
        selector.performance_tracker.update_metrics_now("fc1", seed_idx, delta)
    return selector


def _deciding(strategy: SelectionStrategy) -> Callable[[], object]:
    layer = _filled(strategy).performance_tracker.layer("fc1")
    assert layer is not None
    return lambda: strategy.decide(SEEDS, layer.seeds, CONTEXT, Draws(0, "fc1", layer.choices))


def _learning(strategy: SelectionStrategy) -> Callable[[], object]:
    selector, random = _filled(strategy), Random(1)
    decision = selector.decide("fc1", SEEDS, CONTEXT)
    layer = selector.performance_tracker.layer("fc1")
    assert layer is not None
    knowledge = layer.seeds.knowledge
    assert knowledge is not None
    return lambda: knowledge.learn(decision.seed_idx, random.gauss(0, 0.02), decision)
